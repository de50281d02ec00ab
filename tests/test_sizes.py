"""A verdict holds at more sizes than those of the example: rules that take a size for a number are
found, by what the model's other examples show, and the size at run time says them rightly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.grammar.checks.check import check_program
from lissom.grammar.library.program import program_of
from lissom.rewrite.evidence.artifact import verify_artifact
from lissom.rewrite.evidence.certificate import _outputs_again
from lissom.rewrite.evidence.recorded import recorded_inputs
from lissom.rewrite.journal import Refused, StageEnd, VerdictKind
from lissom.rewrite.measure.compare import EQUALITY, SHAPES_KEPT, equality_at, runs_at
from lissom.rewrite.measure.samples import Example

from .support import Fn, library

TOKENS = """
exact rule tokens {
  match {
    f = flatten(x, start_dim = 2)
    y = transpose(f, dim0 = 1, dim1 = 2)
    x : f[N, C, H, W]
  }
  rewrite {
    p = permute(x, dims = (0, 2, 3, 1))
    y = reshape(p, shape = SHAPE)
  }
}
"""
MEAN = """
exact rule mean_by_hand {
  match {
    y = mean(x, dim = 1, keepdim = false, dtype = none)
    x : f[N, L, C]
  }
  rewrite { y = div(sum(x, dim = 1), COUNT) }
}
"""
POOL = """
exact rule pool {
  match {
    y = adaptive_avg_pool2d(x, output_size = 1)
    x : f[N, C, H, W]
  }
  rewrite { y = avg_pool2d(x, kernel_size = SIZE) }
}
"""


PINNED = """  where { H == 1  else "rows"; W == 1  else "columns" }
  rewrite"""


def tokens(m: Any, x: Tensor) -> Tensor:
    return m.l(m.c(x).flatten(2).transpose(1, 2))


def token_model() -> nn.Module:
    torch.manual_seed(0)
    return Fn(tokens, c=nn.Conv2d(3, 4, 3), l=nn.Linear(4, 5)).eval()


def codes(text: str) -> list[str]:
    found = check_program(program_of(text, "<rule>", Path.cwd()))
    return [diagnostic.code for diagnostic in found]


def refused(model: nn.Module, text: str, x: Tensor, **more: Any) -> lissom.LissomError:
    with pytest.raises(lissom.LissomError) as caught:
        lissom.compile(model, text, inputs=(x,), **more)
    return caught.value


# -- sites -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("shape", ["(N, -1, 4)", "(-1, H * W, 4)", "(N, H * W, C)"])
def test_a_size_of_the_example_is_no_size_of_the_model(shape: str, batch: int) -> None:
    error = refused(token_model(), TOKENS.replace("SHAPE", shape), torch.randn(batch, 3, 6, 6))
    (diagnostic,) = error.diagnostics
    assert diagnostic.code == "V107"
    assert "right on the example, wrong on " in diagnostic.notes[0]
    assert "runtime_size" in diagnostic.helps[0]


def test_a_size_at_run_time_is_computed_at_every_call(tmp_path: Path) -> None:
    shape = "(runtime_size(x, 0), runtime_size(p, 1) * runtime_size(x, -1), 4)"
    model, x = token_model(), torch.randn(2, 3, 6, 6)
    result = lissom.compile(model, TOKENS.replace("SHAPE", shape), inputs=(x,))
    assert len(result.applied) == 1
    loaded = lissom.load(result.save(tmp_path / "out"))
    for size in ((1, 3, 6, 6), (5, 3, 9, 12)):
        x = torch.randn(size)
        assert torch.equal(result.model(x), model(x))
        assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize(("count", "right"), [("L", False), ("runtime_size(x, 1)", True)])
def test_a_size_as_an_operand(count: str, right: bool) -> None:
    model = Fn(lambda m, x: m.l(x.mean(1)), l=nn.Linear(4, 5)).eval()
    x, text = torch.randn(2, 6, 4), MEAN.replace("COUNT", count)
    if not right:
        other = torch.randn(2, 9, 4)
        assert refused(model, text, x, second=(other,)).diagnostics[0].code == "V107"
        return
    result = lissom.compile(model, text, inputs=(x,), second=(torch.randn(2, 9, 4),))
    longer = torch.randn(3, 11, 4)
    assert len(result.applied) == 1
    assert torch.allclose(result.model(longer), model(longer), atol=1e-6)


def test_what_the_model_itself_fixes_may_be_a_number() -> None:
    """A linear layer behind the tokens leaves no other image size; the batch stays open."""

    def fixed(m: Any, x: Tensor) -> Tensor:
        return m.l(x.flatten(2).transpose(1, 2).flatten(1))

    model = Fn(fixed, l=nn.Linear(4 * 36, 5)).eval()
    text = TOKENS.replace("SHAPE", "(-1, H * W, C)")
    result = lissom.compile(model, text, inputs=(torch.randn(2, 4, 6, 6),))
    (event,) = result.applied
    assert [v.how for v in event.verdicts if v.kind is VerdictKind.SIZES] == ["tested"]
    x = torch.randn(5, 4, 6, 6)
    assert torch.equal(result.model(x), model(x))


def test_a_guard_that_holds_at_the_size_of_the_example_alone_leaves_the_site() -> None:
    model = Fn(lambda m, x: m.c(x).amax((2, 3)), c=nn.Conv2d(3, 4, 1)).eval()
    text = """
    exact rule one_pixel {
      match {
        y = amax(x, dim = (2, 3), keepdim = false)
        x : f[N, C, H, W]
      }
      where { H == 1  else "rows"; W == 1  else "columns" }
      rewrite { y = flatten(x, start_dim = 1) }
    }"""
    result = lissom.compile(model, text, inputs=(torch.randn(2, 3, 1, 1),))
    assert result.applied == []
    (refused,) = result.journal.of(Refused)
    assert refused.code == "V107"
    assert "right on the example, wrong on " in refused.reason
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(result.model(x), model(x))


def test_a_setting_that_must_be_a_number_takes_no_size_at_run_time() -> None:
    model = Fn(lambda m, x: m.p(x).flatten(1), p=nn.AdaptiveAvgPool2d(1)).eval()
    text = POOL.replace("SIZE", "(runtime_size(x, 2), runtime_size(x, 3))")
    (diagnostic,) = refused(model, text, torch.randn(2, 3, 8, 8)).diagnostics
    assert diagnostic.code == "T004"
    assert "`kernel_size` of `avg_pool2d` must be a number" in diagnostic.message


def test_a_guard_cannot_ask_for_a_size_at_run_time() -> None:
    text = TOKENS.replace("SHAPE", "(-1, H * W, C)").replace(
        "  rewrite", '  where { runtime_size(x, 0) == 2  else "no" }\n  rewrite'
    )
    (diagnostic,) = refused(token_model(), text, torch.randn(2, 3, 6, 6)).diagnostics
    assert diagnostic.code == "T001"
    assert "only when the model runs" in diagnostic.message


# -- what check says -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        (TOKENS.replace("SHAPE", "(N, H * W, 4)"), True),
        (TOKENS.replace("SHAPE", "(-1, size(x, 2) * size(x, 3), 4)"), True),
        (TOKENS.replace("SHAPE", "(runtime_size(x, 0), -1, 4)"), False),
        (MEAN.replace("COUNT", "L"), True),
        (MEAN.replace("COUNT", "runtime_size(x, 1)"), False),
        (POOL.replace("SIZE", "(H, W)"), True),
        (POOL.replace("SIZE", "(H, W)").replace("  rewrite", PINNED), False),
    ],
)
def test_check_warns_of_sizes_that_become_numbers(text: str, warned: bool) -> None:
    assert ("S004" in codes(text)) == warned


def test_sizes_that_weights_fix_are_no_warning() -> None:
    assert "S004" not in codes(library("attention") + library("fold"))


# -- whole models ----------------------------------------------------------------------------------


class Scaled(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.by if len(x) > 2 else 1.0)


class Short(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:3]


EXAMPLES = [Example("the example", (torch.ones(2, 3),)), Example("batch 4", (torch.ones(4, 3),))]


def test_models_are_compared_on_every_example() -> None:
    found = equality_at(Scaled(1.0), Scaled(2.0), EXAMPLES, 3)
    assert (found.kind, found.holds) == (VerdictKind.EQUALITY, False)
    assert found.detail.startswith("on batch 4: ")
    assert equality_at(Scaled(1.0), Scaled(1.0), EXAMPLES, 3).detail.endswith("also at batch 4")


def test_a_changed_model_must_run_at_every_size() -> None:
    found = runs_at(nn.Identity(), Short(), EXAMPLES)
    assert (found.claim, found.holds) == (SHAPES_KEPT, False)
    assert found.detail == "on batch 4 they have other shapes"
    assert runs_at(nn.Identity(), Scaled(2.0), EXAMPLES).holds


def test_a_stage_says_at_which_sizes_it_was_compared() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    result = lissom.compile(model, library("fold"), inputs=(torch.randn(2, 3, 8, 8),))
    (end,) = result.journal.of(StageEnd)
    (detail,) = (v.detail for v in end.verdicts if v.claim == EQUALITY)
    assert "also at batch 4" in detail


def test_a_cut_is_compared_at_another_size_that_costs_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[list[tuple[int, ...]]] = []

    def spied(before: nn.Module, after: nn.Module, examples: Any, nodes: int) -> Any:
        seen.append([tuple(example.args[0].shape) for example in examples])
        return equality_at(before, after, examples, nodes)

    monkeypatch.setattr("lissom.rewrite.targets.check.equality_at", spied)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    text = (
        library("prune")
        + "pipeline p { budget drift(outputs) <= 1000%; stage s { once prune_l1 } }"
    )
    x, fewer = torch.randn(4, 3, 8, 8), torch.randn(1, 3, 6, 8)
    result = lissom.compile(model, text, inputs=(x,), second=(fewer,))
    assert len(result.applied) == 1
    assert seen == [[(4, 3, 8, 8), (1, 3, 6, 8)]]


# -- artifacts -------------------------------------------------------------------------------------


def test_verify_runs_every_recorded_example_again(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    result = lissom.compile(model, library("fold"), inputs=(torch.randn(2, 3, 8, 8),))
    folder = result.save(tmp_path / "out")
    labels = [example["label"] for example in result.certificate["examples"]]
    assert labels[0] == "the example"
    assert "batch 4" in labels
    _, verdicts = verify_artifact(folder)
    assert verdicts[-1].holds
    assert "batch 4" in verdicts[-1].detail


def test_an_output_of_another_size_that_differs_is_told() -> None:
    examples = [
        {"label": label, "inputs": recorded_inputs((x,))[0]}
        for label, x in (("the example", torch.ones(2, 3)), ("batch 4", torch.ones(4, 3)))
    ]
    probes = [([torch.ones(n, 3)], [torch.ones(n, 3)]) for n in (2, 4)]
    assert _outputs_again(Scaled(1.0), examples, probes).holds
    found = _outputs_again(Scaled(2.0), examples, probes)
    assert not found.holds
    assert found.detail.startswith("on batch 4: ")
