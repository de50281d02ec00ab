"""The cuts of a step are planned on one copy of the model and verified together: results as one by
one, few forward passes, and a cut at fault is found among the others.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

import lissom
from lissom.grammar.diagnostics import LissomError
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.apply.queries import QUESTIONS
from lissom.rewrite.channels import masked as masked_module
from lissom.rewrite.channels.analyse import analyse
from lissom.rewrite.channels.classes import DimClass, classes
from lissom.rewrite.channels.flow import Flow
from lissom.rewrite.channels.update_after_cut import CutEffect, Shrinking
from lissom.rewrite.graph.index import GraphView
from lissom.rewrite.graph.snapshot import finish, snapshot
from lissom.rewrite.journal import Applied, Journal, Refused
from lissom.rewrite.measure import compare
from lissom.rewrite.measure.samples import Samples
from lissom.rewrite.ops.vocabulary import Vocabulary
from lissom.rewrite.pipeline.strategy import Runner
from lissom.rewrite.proving.choices.source import Rolled
from lissom.rewrite.proving.dims.models import Graph, drawn
from lissom.rewrite.rules.state import State
from lissom.rewrite.targets import cuts as trials
from lissom.rewrite.targets import features, sweep
from lissom.rewrite.targets.dims import key_of

from .cutting import flow_of, randomised
from .support import library, rules_of

PRUNE = library("prune")
STEP = "pipeline p { budget drift(outputs) <= 1000%; stage s { once prune_l1(ratio = 50%) } }"
ROWS = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


def chain(count: int) -> nn.Module:
    """Linear layers of 5 -> 8 -> 8 ... -> 3, a tanh between two: `count` dimensions to cut."""
    sizes = [5, *[8] * count, 3]
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.Tanh())]
    return randomised(nn.Sequential(*layers[:-1])).float()


def compiled(model: nn.Module, rules: str = PRUNE) -> Any:
    return lissom.compile(model, rules + STEP, inputs=(ROWS,))


def cuts(result: Any) -> list[str]:
    return [event.site for event in result.journal.of(Applied)]


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[Any]:
    """What a function is called with from now on."""
    calls, real = [], getattr(owner, name)

    def told(*args: Any, **named: Any) -> Any:
        calls.append(args)
        return real(*args, **named)

    monkeypatch.setattr(owner, name, told)
    return calls


# -- how much is done ------------------------------------------------------------------------------


def test_many_cuts_run_the_model_as_often_as_few(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = counted(monkeypatch, compare, "run_model")
    copies = counted(monkeypatch, sweep, "Shrinking")
    found = []
    for count in (3, 20):
        runs.clear()
        assert len(cuts(compiled(chain(count)))) == count
        found.append(len(runs))
    assert found[0] == found[1] <= 12
    assert len(copies) == 2


def test_a_claim_that_measures_is_measured_at_each_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    copies = counted(monkeypatch, sweep, "Shrinking")
    rule = PRUNE.replace("params(after) < params(before)", "error(outputs) <= 1000%")
    result = compiled(chain(3), rule)
    assert len(cuts(result)) == 3
    assert not copies
    assert all(len(event.verdicts) == 2 for event in result.journal.of(Applied))


def test_a_verdict_says_how_many_were_compared_together() -> None:
    result = compiled(chain(3))
    said = {event.verdicts[0].detail.rpartition("; ")[2] for event in result.journal.of(Applied)}
    assert said == {"together with 2 others"}
    (alone,) = compiled(chain(1)).journal.of(Applied)
    assert "together" not in alone.verdicts[0].detail


def test_costs_go_from_cut_to_cut() -> None:
    result = compiled(chain(4))
    events = result.journal.of(Applied)
    assert all(a.after == b.before for a, b in pairwise(events))
    assert events[-1].after.params == sum(p.numel() for p in result.model.parameters())
    assert events[0].before.params == sum(p.numel() for p in chain(4).parameters())


# -- the same as one by one ------------------------------------------------------------------------


def outcome(graph: Graph, single: bool, fuel: int | None = None) -> tuple[list[Any], list[Any]]:
    """Events and outputs of two steps of cuts: half of every dimension, then a third."""
    module = snapshot(graph.module)
    samples = Samples(tuple(graph.args))
    given = Vocabulary.library(), FUNCTIONS, QUESTIONS, samples, Journal()
    state = State(module, *given, fuel=fuel)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "one_by_one", lambda rule: single)
        for ratio in (0.5, 0.3):
            Runner(state, "s").once(rules_of(PRUNE, ratio=ratio))
    finish(state.module)
    with torch.no_grad():
        found = tree_leaves(state.module(*graph.args))
    return [_told(event) for event in state.journal.events], found


def _told(event: Any) -> Any:
    if isinstance(event, Refused):
        return event
    costs = event.after.params, event.after.macs
    claims = [verdict.claim for verdict in event.verdicts]
    return event.site, event.bindings, event.renewed, event.origins, costs, claims


@pytest.mark.parametrize("seed", range(12))
def test_random_models_come_out_bit_for_bit(seed: int) -> None:
    graph = drawn(Rolled(seed))
    (events, found), (wanted, values) = outcome(graph, False), outcome(graph, True)
    assert events == wanted
    assert all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(found, values, strict=True)
    )


class Heads(nn.Module):
    """Blocks of attention on [4, 6, 8], two heads each, with a residual sum around every one."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.embed, self.score = nn.Linear(5, 8), nn.Linear(8, 3)
        self.qkv = nn.ModuleList(nn.Linear(8, 24) for _ in range(blocks))
        self.out = nn.ModuleList(nn.Linear(8, 8) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for qkv, out in zip(self.qkv, self.out, strict=True):
            q, k, v = qkv(x).reshape(4, 6, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
            mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
            x = x + out(mixed.transpose(1, 2).flatten(2))
        return self.score(x)


def heads(blocks: int) -> Flow:
    return flow_of(Heads(blocks).eval(), torch.zeros(4, 6, 5))


def cut_by_cut(flow: Flow) -> Iterator[tuple[Shrinking, DimClass, CutEffect]]:
    """Half of each dimension of a model; what is known after each cut."""
    model = Shrinking(flow)
    for dim in classes(flow):
        if not dim.blocks:
            with contextlib.suppress(LissomError):
                yield model, dim, model.cut(dim.leaves[: dim.size // 2])


def known(dims: Iterable[DimClass]) -> dict[object, tuple[str, set[int]]]:
    return {key_of(dim): (dim.name, set(dim.leaves)) for dim in dims}


@pytest.mark.parametrize("seed", range(8))
def test_only_what_a_cut_moved_is_grouped_anew(seed: int) -> None:
    """All other dimensions are those of the model before."""
    flow = heads(2) if not seed else analyse(GraphView(drawn(Rolled(seed)).module))
    dims = known(classes(flow))
    for model, dim, change in cut_by_cut(flow):
        del dims[key_of(dim)]
        moved = set(change.moved.tolist())
        dims = {key: told for key, told in dims.items() if moved.isdisjoint(told[1])}
        dims |= known(model.classes(change.moved))
        found = known(classes(model.finished()))
        assert {key: found.get(key) for key in dims} == dims
        assert all(moved.isdisjoint(found[key][1]) for key in found.keys() - dims)


@pytest.mark.parametrize("seed", range(1, 13))
def test_what_is_known_of_calls_is_what_the_cut_graph_says(seed: int) -> None:
    flow = analyse(GraphView(drawn(Rolled(seed)).module))
    for model, _, _ in cut_by_cut(flow):
        known, fresh = model.flow.view, GraphView(model.module)
        for node in model.module.graph.nodes:
            a, b = known.call(node), fresh.call(node)
            assert known.may_be(node) == fresh.may_be(node)
            assert known.why_opaque(node) == fresh.why_opaque(node)
            if a is None or b is None:
                assert a is b
            else:
                assert (a.op, a.inputs, a.params, a.attrs) == (b.op, b.inputs, b.params, b.attrs)
        for path in (name for name, _ in model.module.named_parameters()):
            assert set(known.owners(path)) == set(fresh.owners(path))


def test_the_cut_of_a_head_looks_at_its_block_alone() -> None:
    """However many blocks there are."""
    found = []
    for blocks in (2, 5):
        cuts = cut_by_cut(heads(blocks))
        sizes = [(d.name, len(c.moved)) for _, d, c in cuts if "qkv.0" in d.name]
        assert any(count for _, count in sizes)
        found.append(sizes)
    assert found[0] == found[1]


def test_fuel_makes_the_first_cuts_only() -> None:
    graph = drawn(Rolled(12))
    whole = [event for event in outcome(graph, False)[0] if isinstance(event, tuple)]
    assert len(whole) > 2
    for fuel in range(len(whole)):
        events, _ = outcome(graph, False, fuel)
        assert [event for event in events if isinstance(event, tuple)] == whole[:fuel]


# -- a cut at fault --------------------------------------------------------------------------------


class Grouped(nn.Module):
    """Three blocks; the norm in the second refuses groups of a single number."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 8)
        self.d, self.e = nn.Linear(8, 8), nn.Linear(8, 3)
        self.norm = nn.GroupNorm(3, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.b(self.a(x).relu())).relu()
        return self.e(self.d(self.c(x).relu()).relu())


def test_what_cannot_run_is_refused_by_name_and_the_others_stand() -> None:
    result = lissom.compile(randomised(Grouped()).float(), PRUNE + STEP, inputs=(ROWS[:1],))
    refused = {event.site: event.code for event in result.journal.of(Refused)}
    assert [code for code in refused.values() if code == "R013"] == ["R013"]
    (fault,) = (site for site, code in refused.items() if code == "R013")
    assert fault.startswith("b")
    assert {"a", "c", "d"} <= set(cuts(result))
    assert result.model.a.out_features == result.model.c.out_features == 4
    events = [event for event in result.journal.events if isinstance(event, (Applied, Refused))]
    assert list(result.journal.tried.values()) == [len(events)]


def wrong_at(place: str) -> Callable[[Flow, Any], fx.GraphModule]:
    """A mask that forgets the op that reads what `place` makes, once that loses features."""
    real = masked_module.masked

    def forgetful(flow: Flow, removed: Any) -> fx.GraphModule:
        path = f"{place}.weight"
        leaves = {
            leaf for t in flow.weight(path) if t.shape[0] > 1 for leaf in t.flatten().tolist()
        }
        if leaves.isdisjoint(removed):
            return real(flow, removed)
        kept = [leaf for leaf in removed if leaf not in leaves]
        return real(flow, kept)

    return forgetful


@pytest.mark.parametrize("place", ["0", "8", "22"])
def test_a_wrong_cut_among_many_is_named(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    proofs = counted(monkeypatch, features, "proof")
    monkeypatch.setattr(trials, "masked", wrong_at(place))
    with pytest.raises(LissomError, match="V101") as raised:
        compiled(chain(12))
    assert f"at {place}: " in str(raised.value)
    assert len(proofs) <= 6


def test_many_faults_cost_about_as_much_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    proofs = counted(monkeypatch, features, "proof")
    monkeypatch.setattr(features, "proof", lambda *_: proofs.append(_))
    result = compiled(chain(12))
    assert len(cuts(result)) == 12
    assert len(proofs) <= 12 + 4


def test_a_claim_on_costs_that_one_cut_breaks_leaves_the_others() -> None:
    rule = PRUNE.replace("params(after) < params(before)", "params(before) - params(after) > 45")
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    model = randomised(model).float()
    result = compiled(model, rule)
    one = [event for event in result.journal.of(Refused) if event.code == "B001"]
    assert Counter(event.site for event in one) == {"2": 1}
    assert cuts(result) == ["0"]
    (event,) = result.journal.of(Applied)
    assert event.after.params == sum(p.numel() for p in result.model.parameters())
