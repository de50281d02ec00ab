"""What sites see of calibration data: recorded when needed, batch by batch, then dropped."""

from __future__ import annotations

import gc
import os
import resource
import weakref
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import lissom
from lissom.passes import tensors
from lissom.rewrite.apply import engine
from lissom.rewrite.journal import Applied, Refused
from lissom.rewrite.measure import large_blocks, samples

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
    program = PROGRAM if step != "fixpoint" else PROGRAM.replace("STEP", "STEP {") + "}"
    text = library("lowrank") + program.replace("STEP", step).replace("LEAST", str(least))
    data = lambda split: [(batch, torch.zeros(len(batch))) for batch in batches]  # noqa: E731
    return lissom.compile(model, text, inputs=(x,), data=data)


class Watched:
    """Every recording: which nodes, and how many values are held when it begins."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recorded: list[list[str]] = []
        run = samples.resume

        def watched(module: fx.GraphModule, nodes: Any, *rest: Any) -> Any:
            self.recorded.append([node.name for node in nodes])
            return run(module, nodes, *rest)

        monkeypatch.setattr(samples, "resume", watched)


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


def test_samples_are_recorded_before_weights_are_taken_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both take memory, and neither needs the other's; what a guard keeps out needs neither."""
    done: list[str] = []
    run = samples.resume

    def record(module: fx.GraphModule, nodes: Any, *rest: Any) -> Any:
        done.append("record")
        return run(module, nodes, *rest)

    def svd(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        done.append("svd")
        return tensors.svd(w)

    monkeypatch.setattr(samples, "resume", record)
    x = torch.randn(2, 12)
    text = library("lowrank") + PROGRAM.replace("STEP", "once").replace("LEAST", "8")
    data = [(x, torch.zeros(2))]
    model = chain(12, 4, 12, 12)
    result = lissom.compile(model, text, inputs=(x,), data=data, functions={"svd": svd})
    assert [event.site for event in result.applied] == ["4"]
    assert done[:2] == ["record", "svd"]


def test_weights_of_a_plan_keep_nothing_that_they_were_cut_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of factors of full rank the first columns are taken."""
    kept: list[tuple[int, int]] = []
    check = engine.check_exact

    def watched(state: Any, site: Any, plan: Any, emitted: Any) -> Any:
        weights = [w for planned in plan.ops for w in planned.tensors.values()]
        kept.extend((w.nbytes, w.untyped_storage().nbytes()) for w in weights)
        held = [v for v in site.scope.names.values() if isinstance(v, Tensor)]
        assert [*held, *site.scope.doubles.keys() & plan.moved.keys()] == []
        return check(state, site, plan, emitted)

    monkeypatch.setattr(engine, "check_exact", watched)
    x = torch.randn(2, 12)
    compiled(chain(12, 12, 12), x, [x], "once")
    assert len(kept) == 4
    assert all(size == storage for size, storage in kept)


@pytest.mark.parametrize("step", ["once", "fixpoint"])
def test_a_site_is_let_go_before_the_next_one(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Whoever still holds what was prepared, it holds no weights."""
    held: list[weakref.ref[Tensor]] = []
    sites: list[str] = []
    made = engine.construct

    def watched(state: Any, site: Any) -> Any:
        assert [one for one in held if one() is not None] == []
        plan = made(state, site)
        sites.append(site.name)
        weights = [w for planned in plan.ops for w in planned.tensors.values()]
        held.extend(map(weakref.ref, [*weights, *plan.moved.values()]))
        return plan

    monkeypatch.setattr(engine, "construct", watched)
    gc.disable()
    try:
        x = torch.randn(2, 12)
        compiled(chain(12, 12, 12, 12), x, [x], step)
    finally:
        gc.enable()
    assert sites == ["0", "2", "4"]


def test_a_weight_that_moves_is_not_held_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its float64 copy goes before the new numbers are computed, and is made again if they are
    computed from it.
    """
    text = library("lowrank").replace("perturb { l.weight := ", "perturb { l.weight := noted() + ")
    held: list[int] = []
    made = engine.construct

    def watched(state: Any, site: Any) -> Any:
        def noted() -> int:
            held.append(len(site.scope.doubles))
            return 0

        assert len(site.scope.doubles) == 1
        site.scope.functions = {**site.scope.functions, "noted": noted}
        return made(state, site)

    monkeypatch.setattr(engine, "construct", watched)
    x = torch.randn(2, 12)
    program = "extern fn noted() -> number pure\n" + text
    program += PROGRAM.replace("STEP", "once").replace("LEAST", "8")
    data = [(x, torch.zeros(2))]
    given = {"noted": lambda: 0}
    result = lissom.compile(chain(12, 12, 12), program, inputs=(x,), data=data, functions=given)
    assert (len(result.applied), held) == (2, [0, 0])


glibcs = pytest.mark.skipif(
    large_blocks._glibc() is None or bool(os.environ.keys() & set(large_blocks.OWN)),
    reason="another allocator than glibc's, or settings of its own",
)


def resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


@glibcs
def test_large_blocks_go_back_when_they_are_free() -> None:
    """Behind a block of 32 MB the allocator takes the next ones from its heap, which a small block
    at its end keeps from shrinking.
    """

    torch.ones(1 << 23)
    with large_blocks.large_blocks_mapped():
        begun = resident()
        blocks = [torch.ones(1 << 20) for _ in range(12)]
        last = torch.ones(1 << 14)
        assert resident() - begun > 40e6
        blocks.clear()
        assert resident() - begun < 4e6
    assert last.all()


@glibcs
def test_where_blocks_come_and_go_their_memory_stays_at_hand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While that lasts, inside of what maps them; what is free then is given back."""
    told: list[Any] = []
    setting = lambda key, size: told.append(size) if key == large_blocks._THRESHOLD else None  # noqa: E731
    monkeypatch.setattr(large_blocks, "_glibc", lambda: (setting, lambda pad: told.append("trim")))
    with large_blocks.large_blocks_reused():
        assert not told
    with large_blocks.large_blocks_mapped():
        with large_blocks.large_blocks_reused():
            assert told == [large_blocks.LARGE, large_blocks.USUAL]
        assert told[2:] == [large_blocks.LARGE, "trim"]
    assert told[4:] == [large_blocks.USUAL, "trim"]


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
