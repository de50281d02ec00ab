"""What sites see of calibration data: recorded when needed, batch by batch, then dropped."""

from __future__ import annotations

import gc
import weakref
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import lissom
from lissom.rewrite import engine, samples
from lissom.rewrite.journal import Applied, Refused

from .support import library

PROGRAM = """
pipeline p {
  data calib = sample("train", 32)
  budget drift(outputs) <= 1000%
  stage s { STEP low_rank_linear(rank = 4, least = LEAST, budget = 100%) }
}
"""


def chain(*widths: int) -> nn.Module:
    torch.manual_seed(0)
    pairs = pairwise(widths)
    layers = [layer for i, o in pairs for layer in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers).eval()


def compiled(model: nn.Module, x: Tensor, batches: list[Tensor], step: str, least: int = 8) -> Any:
    text = library("lowrank") + PROGRAM.replace("STEP", step).replace("LEAST", str(least))
    data = lambda split: [(batch, torch.zeros(len(batch))) for batch in batches]  # noqa: E731
    return lissom.compile(model, text, inputs=(x,), data=data)


class Watched:
    """Every recording: which nodes, and how many values are held when it begins."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recorded: list[list[str]] = []
        run = samples.record

        def watched(module: fx.GraphModule, nodes: Any, args: Any) -> Any:
            self.recorded.append([node.name for node in nodes])
            return run(module, nodes, args)

        monkeypatch.setattr(samples, "record", watched)


def test_nothing_is_recorded_where_no_guard_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    x = torch.randn(2, 12)
    assert compiled(chain(12, 12, 12), x, [x], "once", least=100).applied == []
    assert watched.recorded == []


def test_only_what_may_apply_is_recorded_and_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layer in the middle is too small; what it reads is not recorded."""
    watched = Watched(monkeypatch)
    x = torch.randn(2, 12)
    result = compiled(chain(12, 12, 4, 12, 12, 12), x, [x], "once")
    assert [event.site for event in result.applied] == ["0", "6", "8"]
    assert watched.recorded == [["input_1", "_5", "_7"]]


@pytest.mark.parametrize("step", ["once", "each"])
def test_what_is_recorded_is_dropped(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """With room for one value at a time each site has a pass of its own, and leaves nothing."""
    monkeypatch.setattr(samples, "MEMORY", 0)
    held: list[int] = []
    leave = samples.Samples.leave

    def left(self: samples.Samples, nodes: Any) -> None:
        held.append(len(self._values))
        leave(self, nodes)
        assert not self._values

    monkeypatch.setattr(samples.Samples, "leave", left)
    x = torch.randn(2, 12)
    compiled(chain(12, 12, 12, 12), x, [x], step)
    assert max(held) == 1


@pytest.mark.parametrize("room", [0, samples.MEMORY])
def test_room_for_recordings_changes_no_choice(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    monkeypatch.setattr(samples, "MEMORY", room)
    x = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    result = compiled(chain(12, 12, 12, 12), x, [x, x + 1], "each")
    assert [event.site for event in result.applied] == ["0", "2", "4"]


def test_recording_ends_with_the_last_value_that_is_wanted() -> None:
    class Late(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(1)
            return x

    calls: list[int] = []
    tracer = fx.Tracer()
    tracer.is_leaf_module = lambda module, name: True  # type: ignore[method-assign]
    model = nn.Sequential(nn.ReLU(), Late())
    module = fx.GraphModule(model, tracer.trace(model))
    first = next(node for node in module.graph.nodes if node.op == "call_module")
    (seen,) = samples.Samples((torch.ones(2),)).seen(module, [first])
    assert (torch.equal(seen[first], torch.ones(2)), calls) == (True, [])


@pytest.mark.parametrize("step", ["once", "each"])
def test_a_site_is_let_go_when_it_is_done(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """It holds its weights in float64: they cannot wait for the collector of cycles."""
    held: list[weakref.ref[Any]] = []
    made = engine.construct

    def watched(state: Any, site: Any) -> Any:
        plan = made(state, site)
        weights = (w for planned in plan.ops for w in planned.tensors.values())
        held.extend(map(weakref.ref, [site.scope, *weights, *plan.moved.values()]))
        return plan

    monkeypatch.setattr(engine, "construct", watched)
    gc.disable()
    try:
        x = torch.randn(2, 12)
        compiled(chain(12, 12, 12, 12), x, [x], step)
        alive = [one for one in held if one() is not None]
    finally:
        gc.enable()
    assert len(held) >= 9
    assert alive == []


class Folded(nn.Module):
    """A view whose sizes follow the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu().view(x.shape[0] * 2, 6) + 1


VIEWED = """
approx rule bounded(budget: frac = 100%) {
  match {
    h = relu(x)
    y = reshape(h, shape = s)
  }
  rewrite {
    g = clamp(x, min = 0, max = 1)
    y = reshape(g, shape = s)
  }
  ensure { error(y) <= budget }
}
pipeline p {
  data calib = sample("train", 32)
  budget drift(outputs) <= 1000%
  stage s { once bounded }
}
"""


def test_an_error_behind_a_view_of_the_batch_is_measured() -> None:
    """The example has 2 samples, the data 3 and 5."""
    x = torch.randn(8, 2, 6, generator=torch.Generator().manual_seed(0))
    data = lambda split: [(x[:3], x[:3, 0]), (x[3:], x[3:, 0])]  # noqa: E731
    result = lissom.compile(Folded().eval(), VIEWED, inputs=(x[:2],), data=data)
    assert [event.reason for event in result.journal.of(Refused)] == []
    (event,) = result.journal.of(Applied)
    (error,) = (v for v in event.verdicts if v.claim.startswith("error("))
    moved = (x.relu() - x.clamp(0, 1)).norm() / x.relu().norm()
    assert (error.samples, error.worst) == (8, pytest.approx(float(moved), rel=1e-5))
