"""What a rewrite makes lies in memory, and in the state of the model, as what it stands in for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.capture.capture import capture
from lissom.rewrite.capture.equality import first_difference
from lissom.rewrite.evidence.recorded import recorded_inputs, restored
from lissom.rewrite.graph.formats import in_format_of, is_channels_last
from lissom.rewrite.graph.snapshot import snapshot

FOLD = "pipeline p { stage clean { fixpoint { fold_bn } } }"
CUT = "pipeline p { budget drift(outputs) <= 1% \n stage cut { once prune_l1(ratio = 50%) } }"
FACTOR = """pipeline p {
  data calib = sample("train", 2)
  stage factor { once low_rank_conv(rank = 3, least = 1, budget = 99%) }
}"""


class Tokens(nn.Module):
    """Channels become the last axis by a `view`, which takes results that are channels_last."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 8, 1)
        with torch.no_grad():
            self.first.weight[1::2] = 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(torch.relu(self.norm(self.first(x))))
        return y.permute(0, 2, 3, 1).view(y.shape[0], -1, y.shape[1])


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 7, 6, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("program", [FOLD, CUT, FACTOR], ids=["fold", "cut", "factor"])
def test_new_weights_are_channels_last_where_the_old_ones_were(
    program: str, tmp_path: Path
) -> None:
    model = Tokens().eval().to(memory_format=torch.channels_last)
    result = lissom.compile(
        model, program, inputs=(images(),), data=lambda split: [(images(), None)]
    )
    assert result.applied
    weights = [p for p in result.model.parameters() if p.dim() == 4]
    assert all(map(is_channels_last, weights))
    assert result.model(images(3)).shape == model(images(3)).shape
    loaded = lissom.load(result.save(tmp_path / "out"))
    assert torch.equal(loaded(images(3)), result.model(images(3)))


def test_new_weights_are_row_major_where_the_old_ones_were() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)).eval()
    result = lissom.compile(model, FOLD, inputs=(images(),))
    (weight,) = (p for p in result.model.parameters() if p.dim() == 4)
    assert weight.stride() == (3, 1, 1, 1)


def test_a_pointwise_kernel_has_a_format_too() -> None:
    """Its memory is the same in both, its strides are not, and kernels ask for strides."""
    last = torch.empty(4, 3, 1, 1).to(memory_format=torch.channels_last)
    plain = torch.rand(4, 3, 1, 1)
    assert is_channels_last(last)
    assert not is_channels_last(plain)
    assert is_channels_last(in_format_of(plain, [last]))
    assert torch.equal(in_format_of(plain, [last]), plain)
    assert in_format_of(plain, [torch.rand(5, 2)]) is plain


def test_recorded_inputs_keep_their_strides(tmp_path: Path) -> None:
    """What the layer answers lies as its input does, and the `view` asks for that."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), Viewed()).eval()
    x = images().to(memory_format=torch.channels_last)
    result = lissom.compile(model, FOLD, inputs=(x,))
    result.save(tmp_path / "out")  # loads it in another process, and compares bit for bit
    assert result.certificate["examples"][0]["inputs"][0]["stride"] == list(x.stride())


class Viewed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).view(-1)


@pytest.mark.parametrize(
    "value",
    [
        images().transpose(1, 3),
        images()[:, :, ::2],
        images()[:, :1].expand(2, 4, 7, 6),
        torch.arange(9.0).as_strided((3, 4), (2, 1)),
        [images(), {"mask": None, "scale": (2.0, images(1))}],
        "name",
    ],
    ids=["transposed", "gaps", "expanded", "windows", "nested", "text"],
)
def test_inputs_are_read_back_as_they_were_written(value: object) -> None:
    described_, tensors = recorded_inputs((value, 3))
    again = restored(json.loads(json.dumps(described_)), [t.contiguous() for t in tensors])
    assert again is not None
    assert first_difference((value, 3), again) is None
    if isinstance(value, Tensor) and value.stride() != (2, 1):
        assert again[0].stride() == value.stride()


@pytest.mark.parametrize(
    "written",
    [[{"tensor": 7}], [{"tensor": 0, "stride": [10**12, 1]}], [{"set": []}], [3], [{}]],
)
def test_a_description_that_nobody_wrote_is_refused(written: list[object]) -> None:
    with pytest.raises(LissomError) as caught:
        restored(written, [torch.rand(2, 3)])
    assert caught.value.diagnostics[0].code == "A025"


# -- state -----------------------------------------------------------------------------------------


class Turned(nn.Module):
    """State of every kind: a parameter, a buffer of each persistence, and a plain tensor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)
        self.register_buffer("kept", torch.rand(4))
        self.inner = Angles()
        self.plain = torch.rand(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.layer(x) * self.kept) + self.plain


class Angles(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("angles", torch.rand(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.angles.cos() + x.flip(-1) * self.angles


def test_buffers_are_in_the_state_only_where_they_were(tmp_path: Path) -> None:
    model = Turned().eval()
    captured = capture(model, (torch.rand(2, 4),)).module
    result = lissom.compile(model, FOLD, inputs=(torch.rand(2, 4),))
    loaded = lissom.load(result.save(tmp_path / "out"))
    for module in (captured, snapshot(captured), result.model, loaded):
        assert {name for name in module.state_dict() if "folded" not in name} == {
            *model.state_dict()
        }
        assert {"inner.angles", "plain"} <= {name for name, _ in module.named_buffers()}
