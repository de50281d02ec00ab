"""Runs of whole models: on copies, without gradients, and what fails is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.capture.capture import capture
from lissom.rewrite.graph.runs import RunFailed, copied, on_copies, own_inputs, run_model
from lissom.rewrite.journal import StageEnd
from lissom.rewrite.measure.gradients import loss_of_task, slopes
from lissom.rewrite.measure.latency import measure_latency
from lissom.rewrite.measure.samples import Samples

FOLD = "pipeline p { stage clean { fixpoint { fold_bn } } }"
CUT = """pipeline p {
  data calib = sample("train", 6)
  budget drift(outputs) <= 1%
  stage cut { once prune_l1(ratio = 50%) }
}"""


class Overwrites(nn.Module):
    """Prepares its images in place, then convolves. Every second channel gives zero."""

    def __init__(self, prepare: Callable[[Tensor], object]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.prepare = prepare
        self.first, self.norm = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6)
        self.last = nn.Conv2d(6, 3, 1)
        with torch.no_grad():
            self.first.weight[1::2] = 0
            self.first.bias[1::2] = 0

    def forward(self, x: Tensor) -> Tensor:
        self.prepare(x)
        return self.last(torch.relu(self.norm(self.first(x))))


def _subtract(x: Tensor) -> None:
    x -= 0.25


def _first_channel(x: Tensor) -> None:
    x[:, 0] = x[:, 0] * 3


WAYS = {"relu_": torch.relu_, "subtract": _subtract, "setitem": _first_channel}


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 2, 7, 6, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_writes_into_its_input(way: str, tmp_path: Path) -> None:
    """Nothing of the caller's is written to; exact rewrites stay; what is saved is what was run."""
    model = Overwrites(WAYS[way]).eval()
    example, data = images(), images(6)
    folded = lissom.compile(model, FOLD, inputs=(example,))
    cut = lissom.compile(model, CUT, inputs=(example,), data=lambda split: [(data, None)])
    assert torch.equal(example, images())
    assert torch.equal(data, images(6))
    expected = model(images(5))
    for result, rule in ((folded, "fold_bn"), (cut, "prune_l1")):
        assert [event.rule.partition("(")[0] for event in result.applied] == [rule]
        torch.testing.assert_close(result.model(images(5)), expected)
    loaded = lissom.load(folded.save(tmp_path / "out"))
    assert torch.equal(loaded(images(5)), folded.model(images(5)))


def test_a_metric_measures_every_time_on_the_same_data() -> None:
    """The model subtracts in place: without copies the second reading sees other images."""
    model = Overwrites(_subtract).eval()
    data = images(6)
    seen: list[float] = []

    def total(part: nn.Module, batches: object) -> float:
        seen.append(float(sum(part(x).sum() for x, _ in batches)))  # type: ignore[attr-defined]
        return seen[-1]

    program = """pipeline p {
      data calib = sample("train", 6)
      budget drop(total) <= 1000 on calib
      stage clean { fixpoint { fold_bn } }
    }"""
    lissom.compile(
        model,
        program,
        inputs=(images(),),
        data=lambda split: [(data, None)],
        metrics={"total": total},
    )
    assert torch.equal(data, images(6))
    assert len(seen) > 1
    assert seen == pytest.approx([seen[0]] * len(seen), rel=1e-4)


def test_gradients_times_and_recorded_values_write_to_nothing() -> None:
    module = capture(Overwrites(_subtract).eval(), (images(),)).module
    x, y = images(4), torch.zeros(4, 3, 5, 4)
    for squared in (False, True):
        slopes(module, [((x,), y)], loss_of_task, squared=squared)
    measure_latency(module, module, (x,), seconds=0)
    inner = next(node for node in module.graph.nodes if node.target == "norm")
    Samples((x,)).values(module, [inner])
    assert torch.equal(x, images(4))


# -- copies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tensor",
    [
        images().to(memory_format=torch.channels_last),
        images()[:, :, ::2],
        images().transpose(1, 3),
        images()[:, :1].expand(3, 4, 7, 6),
        torch.arange(9.0).as_strided((3, 4), (2, 1)),
        torch.tensor(2.0),
        torch.zeros(0, 3),
    ],
    ids=["channels_last", "gaps", "transposed", "expanded", "windows", "scalar", "empty"],
)
def test_a_copy_has_memory_of_its_own_and_the_same_format(tensor: Tensor) -> None:
    copy = copied(tensor)
    assert torch.equal(copy, tensor)
    assert copy.numel() == 0 or copy.data_ptr() != tensor.data_ptr()
    windows = tensor.stride() == (2, 1)
    assert windows or copy.stride() == tensor.stride()


def test_one_tensor_given_twice_stays_one() -> None:
    x = images()
    first, (second, other) = own_inputs((x, [x, images()]))
    assert first is second
    assert first is not x
    assert first is not other


# -- what fails ------------------------------------------------------------------------------------


class Views(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).transpose(1, 2).reshape(x.shape[0], -1).view(-1, 4)


def test_a_run_that_fails_names_run_place_and_reason() -> None:
    module = capture(Views().eval(), (torch.rand(2, 4, 6),)).module
    with pytest.raises(RunFailed) as caught:
        run_model(module, (torch.rand(2, 5, 7),), what="a batch of the data")
    (found,) = caught.value.diagnostics
    assert found.code == "V108"
    assert "a batch of the data" in found.message
    assert found.labels[0].where.startswith("layer (test_runs.py:")
    with pytest.raises(RuntimeError) as own:
        module.layer(torch.rand(2, 5, 7))
    assert str(own.value)[:20] in found.notes[0]


def test_a_run_of_a_plain_module_names_the_line() -> None:
    with pytest.raises(RunFailed) as caught:
        run_model(Views(), (torch.rand(2, 5),))
    assert "test_runs.py:" in str(caught.value)


def test_data_that_the_model_refuses_is_a_diagnostic() -> None:
    model = Overwrites(torch.relu).eval()
    program = CUT.replace("1%", "90%")
    with pytest.raises(LissomError) as caught:
        lissom.compile(
            model, program, inputs=(images(),), data=lambda split: [(torch.rand(2, 5, 7, 6), None)]
        )
    assert {d.code for d in caught.value.diagnostics} == {"V108"}


class Viewed(nn.Module):
    """Reads the memory of what a rule replaces."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x).view(torch.int16)


TURNED = """
exact rule turned {
  match { y = relu(x) }
  where { rank(x) == 2 }
  rewrite {
    h = contiguous(transpose(x, dim0 = 0, dim1 = 1))
    y = transpose(clamp(h, min = 0), dim0 = 0, dim1 = 1)
  }
}
pipeline p { stage turn { once turned } }
"""


def test_a_stage_after_which_the_model_fails_is_rolled_back() -> None:
    """The rule gives the right numbers in a memory format in which no bytes can be taken."""
    result = lissom.compile(Viewed().eval(), TURNED, inputs=(torch.rand(3, 5),))
    assert result.applied == []
    (end,) = result.journal.of(StageEnd)
    assert not end.kept
    assert "stride(-1) must be 1" in end.reason
    assert "test_runs.py:" in end.reason


def test_copies_are_made_for_code_that_is_not_ours_and_only_then() -> None:
    model, x = Overwrites(_subtract).eval(), images()
    with on_copies(model):
        model(x)
    assert torch.equal(x, images())
    model(x)
    assert not torch.equal(x, images())
