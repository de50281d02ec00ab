"""`each` looks again only at what is on top, and does what one does that ranks all sites anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.apply import engine
from lissom.rewrite.apply.cost import model_costs
from lissom.rewrite.capture.capture import capture
from lissom.rewrite.channels import cut as cut_module
from lissom.rewrite.channels.classes import classes
from lissom.rewrite.channels.update_after_cut import cut_and_carry
from lissom.rewrite.graph.runs import record
from lissom.rewrite.graph.snapshot import snapshot
from lissom.rewrite.journal import Applied, Refused
from lissom.rewrite.match.site import Site
from lissom.rewrite.measure import compare, recording, samples
from lissom.rewrite.pipeline import queue
from lissom.rewrite.pipeline.orders import ORDERS, Order
from lissom.rewrite.pipeline.strategy import Runner
from lissom.rewrite.proving.choices.source import Rolled
from lissom.rewrite.proving.dims.models import drawn
from lissom.rewrite.rules.binding import NoMatch
from lissom.rewrite.rules.changes import Changes
from lissom.rewrite.rules.rule import CompiledRule
from lissom.rewrite.targets import check, cuts
from lissom.rewrite.targets.choose import target_of
from lissom.rewrite.targets.cuts import EXACT_CUT
from lissom.rewrite.targets.features import FeatureTarget
from lissom.rewrite.targets.target import Target
from lissom.rewrite.targets.weighing import Weighing
from lissom.rewrite.torch_internals import order_of

from .cutting import randomised
from .support import digests, library, state_of, the_rule

Broken = Callable[[], str | None]


@dataclass
class Case:
    """A model with its inputs, a rule, and how its sites are ordered."""

    model: nn.Module
    x: Tensor
    rule: CompiledRule
    order: str = "saving"

    def runner(self) -> Runner:
        runner = Runner(state_of(capture(self.model, (self.x,)).module, (self.x,)), "stage")
        data = [(self.x, torch.zeros(len(self.x))), (self.x.flip(0) * 2, torch.zeros(len(self.x)))]
        runner.state.samples.source = lambda split: data
        runner.state.samples.named = {"calib": data}
        return runner

    def lazily(self, until: int, broken: Broken = lambda: None) -> Runner:
        runner = self.runner()
        done = lambda: runner.applied >= until  # noqa: E731
        runner.each(self.rule, ORDERS[self.order], done, broken)
        return runner

    def eagerly(self, until: int, broken: Broken = lambda: None) -> Runner:
        """Ranks all sites anew for every one that is applied."""
        runner = self.runner()
        state, rank = runner.state, ORDERS[self.order].rank
        target = target_of(state, self.rule)
        waiting = target.candidates()
        while waiting and runner.applied < until:
            found = [(place, target.prepare(place)) for place in waiting]
            ready = [(place, one) for place, one in found if not isinstance(one, NoMatch)]
            waiting = [place for place, _ in ready]
            if ready:
                place, best = max(ready, key=lambda pair: rank(pair[1]))
                waiting.remove(place)
                entry = snapshot(state.module)
                target.commit("stage", best, 0.0)
                if broken() is None:
                    runner.applied += 1
                else:
                    state.journal.events.pop()
                    state.reset(entry)
                    state.samples.forget()
                waiting = target.alive(waiting)
        return runner


def sites(runner: Runner) -> list[str]:
    return [event.site for event in runner.state.journal.of(Applied)]


def outcome(runner: Runner) -> tuple[list[str], dict[str, str]]:
    """The sites in their order, and all weights, bit for bit."""
    return sites(runner), digests(runner.state.module)


def stack(widths: list[int], between: Callable[[], nn.Module] | None = nn.Tanh) -> nn.Module:
    torch.manual_seed(3)
    layers: list[nn.Module] = []
    for wide, out in pairwise(widths):
        layers += [nn.Linear(wide, out), *([] if between is None else [between()])]
    return nn.Sequential(*layers).eval()


class Attention(nn.Module):
    """Three layers that read the same, and a way around them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + (self.q(x) * self.k(x)).softmax(-1) * self.v(x)
        return x + self.down(self.up(x).relu())


def attention(depth: int) -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(*(Attention(12) for _ in range(depth))).eval()


def convolutions() -> nn.Module:
    """With a skip, so that dimensions share weights with several others."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 12, 3, padding=1)
            self.one, self.two = nn.Conv2d(12, 20, 1), nn.Conv2d(20, 12, 3, padding=1)
            self.three, self.four = nn.Conv2d(12, 24, 1), nn.Conv2d(24, 16, 1)
            self.head = nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).relu()
            x = x + self.two(self.one(x).relu())
            return self.head(self.four(self.three(x).relu()).relu().mean((2, 3)))

    return randomised(Net()).float()


ROWS = torch.randn(6, 12, generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(2))
WIDTHS = [12, 24, 10, 30, 12, 18, 14, 12]


def low_rank(name: str = "low_rank_linear", **args: Any) -> CompiledRule:
    return the_rule(library("lowrank"), name, **{"least": 4, "budget": 1.0, **args})


def cases() -> Iterator[Any]:
    half, most = low_rank(keep_params=0.5), low_rank(energy=0.8)
    for order in ("saving", "macs", "sensitivity"):
        yield pytest.param(Case(stack(WIDTHS), ROWS, half, order), id=f"stack-{order}")
        if order != "sensitivity":
            adjacent = stack(WIDTHS, None)
            yield pytest.param(Case(adjacent, ROWS, most, order), id=f"adjacent-{order}")
        prune = the_rule(library("prune"), ratio=0.4)
        yield pytest.param(Case(convolutions(), IMAGES, prune, order), id=f"cuts-{order}")
    yield pytest.param(Case(attention(2), ROWS, most), id="attention")
    whitened = low_rank("whitened_linear", energy=0.8)
    yield pytest.param(Case(attention(2), ROWS, whitened), id="whitened")
    tight = low_rank(keep_params=0.5, budget=0.62)
    yield pytest.param(Case(stack(WIDTHS), ROWS, tight), id="tight")
    yield pytest.param(
        Case(Twice().eval(), IMAGES, the_rule(library("fold"), "fold_bn")), id="twice"
    )


class Twice(nn.Module):
    """Two branches through the same layers, whose weights count with the last of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.other, self.small = nn.Conv2d(8, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        both = self.norm(self.conv(x)).relu() + self.norm(self.conv(x.flip(2))).relu()
        return self.small(self.other(both))


@pytest.mark.parametrize("until", [2, 100])
@pytest.mark.parametrize("case", [*cases()])
def test_the_outcome_is_that_of_ranking_all_anew(case: Case, until: int) -> None:
    lazy, eager = case.lazily(until), case.eagerly(until)
    assert outcome(lazy) == outcome(eager)
    assert len(sites(lazy)) >= min(until, 2)


def test_an_error_is_that_of_the_graph_in_which_it_is_applied() -> None:
    """Where several are alike, one whose error has fallen since it was measured waits longer than
    it would if all were measured anew; what is written down is never an old error.
    """
    case = Case(stack(WIDTHS, None), ROWS, low_rank(energy=0.8), "sensitivity")
    lazy, eager = case.lazily(100), case.eagerly(100)
    assert sorted(sites(lazy)) == sorted(sites(eager))
    assert sites(lazy)[:5] == sites(eager)[:5]
    replayed = case.runner()
    target = target_of(replayed.state, case.rule)
    for event in lazy.state.journal.of(Applied):
        (place,) = (node for node in target.candidates() if target.name(node) == event.site)
        ready = target.prepare(place)
        assert not isinstance(ready, NoMatch)
        assert ready.verdicts == event.verdicts
        target.commit("stage", ready, 0.0)


@pytest.mark.parametrize("rule", ["low_rank_linear", "whitened_linear"])
def test_the_same_when_sites_are_taken_back(rule: str) -> None:
    case = Case(attention(2), ROWS, low_rank(rule, energy=0.8))

    def every_third() -> Broken:
        said = iter(range(100))
        return lambda: "too much" if next(said) % 3 == 0 else None

    lazy, eager = case.lazily(100, every_third()), case.eagerly(100, every_third())
    assert outcome(lazy) == outcome(eager)
    codes = [event.code for event in lazy.state.journal.of(Refused)]
    assert codes.count("B002") >= 3


@pytest.mark.parametrize("order", ["saving", "sensitivity"])
def test_room_for_what_waits_changes_nothing(monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    case = Case(attention(2), ROWS, low_rank(energy=0.8), order)
    roomy = outcome(case.lazily(100))
    monkeypatch.setattr(queue, "HELD", 0)
    held: list[int] = []
    push = queue.Queue._push

    def pushed(self: Any, one: Any) -> None:
        push(self, one)
        held.append(sum(bool(other.ready.plan.moved) for other in self.waiting))

    monkeypatch.setattr(queue.Queue, "_push", pushed)
    assert outcome(case.lazily(100)) == roomy
    assert max(held) == 1


# -- how much is looked at -------------------------------------------------------------------------


@dataclass
class Counted:
    """How often plans were made, and promises measured."""

    plans: int = 0
    measured: int = 0


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    count, construct, claims = Counted(), engine.construct, engine.check_claims

    def constructed(state: Any, site: Site) -> Any:
        count.plans += 1
        return construct(state, site)

    def measured(state: Any, site: Site, plan: Any) -> Any:
        count.measured += 1
        return claims(state, site, plan)

    monkeypatch.setattr(engine, "construct", constructed)
    monkeypatch.setattr(engine, "check_claims", measured)
    return count


@pytest.mark.parametrize(("order", "most"), [("saving", 2), ("macs", 2), ("sensitivity", 4)])
def test_a_plan_is_made_once(counted: Counted, order: str, most: int) -> None:
    """And measured once more for each site that is applied; few times where errors decide."""
    runner = Case(stack([12] * 21), ROWS, low_rank(keep_params=0.5), order).lazily(100)
    assert (runner.applied, counted.plans) == (20, 20)
    assert 30 < counted.measured <= most * 20


def test_what_sees_the_same_values_is_not_measured_again(counted: Counted) -> None:
    """The last layers save the most: nothing in front of the others changes."""
    widths = [12, 12, 16, 20, 24, 28, 32]
    runner = Case(stack(widths), ROWS, low_rank(keep_params=0.5)).lazily(100)
    assert sites(runner) == ["10", "8", "6", "4", "2", "0"]
    assert (counted.plans, counted.measured) == (6, 6)


def test_a_neighbour_is_planned_again(counted: Counted) -> None:
    """Without a layer between them, each application gives the next one another input."""
    runner = Case(stack([12] * 11, None), ROWS, low_rank(keep_params=0.5)).lazily(100)
    assert (runner.applied, counted.plans) == (10, 19)


MEASURED = library("prune").replace("params(after) < params(before)", "error(outputs) <= 1e9")


def test_a_cut_is_verified_when_its_turn_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a promise is measured, one by one."""
    verified, judged = [], check.judged

    def watched(trial: Any) -> Any:
        verified.append(trial.site.name)
        return judged(trial)

    monkeypatch.setattr(check, "judged", watched)
    runner = Case(convolutions(), IMAGES, the_rule(MEASURED, ratio=0.4)).lazily(2)
    assert verified == sites(runner)
    assert [e.code for e in runner.state.journal.of(Refused)].count("B003") == 2


# -- cuts ahead ------------------------------------------------------------------------------------


def chain(count: int) -> nn.Module:
    """`count` dimensions to cut, each with another saving."""
    torch.manual_seed(6)
    sizes = [12, *(8 + at % 5 for at in range(count)), 3]
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers).eval()


def calls(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[Any]:
    """What a function gives from now on."""
    found, real = [], getattr(owner, name)

    def told(*args: Any, **named: Any) -> Any:
        found.append(real(*args, **named))
        return found[-1]

    monkeypatch.setattr(owner, name, told)
    return found


@pytest.mark.parametrize("order", ["saving", "macs"])
def test_what_is_done_for_each_cut_does_not_grow_with_the_model(
    monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    """Copies of the model, runs of it, and looks at a candidate for each that there is."""
    runs = calls(monkeypatch, compare, "run_model")
    copies = calls(monkeypatch, cut_module, "snapshot")
    weighed = calls(monkeypatch, Weighing, "weigh")
    found, looks = [], []
    for count in (4, 32):
        for known in (runs, copies, weighed):
            known.clear()
        runner = Case(chain(count), ROWS, the_rule(library("prune"), ratio=0.3), order).lazily(100)
        assert runner.applied == count
        found.append((len(runs), len(copies)))
        looks.append(len(weighed) / count)
    assert found == [(2, 2), (2, 2)]
    assert max(looks) < 3


def test_verdicts_are_those_of_all_cuts_together() -> None:
    runner = Case(chain(4), ROWS, the_rule(library("prune"), ratio=0.3)).lazily(100)
    events = runner.state.journal.of(Applied)
    assert {event.verdicts[0].claim for event in events} == {EXACT_CUT}
    assert all("together with 3 others" in event.verdicts[0].detail for event in events)
    assert all(a.after == b.before for a, b in pairwise(events))
    module = runner.state.module
    assert events[-1].after == model_costs(module, runner.state.view)


def alone(case: Case, broken: Broken = lambda: None) -> Runner:
    """Each cut made in the working model, and verified before the next."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureTarget, "together", Target.together)
        return case.lazily(100, broken)


def told(runner: Runner) -> list[Any]:
    """The journal, without what it says of verdicts and time."""
    return [
        event
        if isinstance(event, Refused)
        else (event.site, event.bindings, event.renewed, event.origins, event.before, event.after)
        for event in runner.state.journal.events
    ]


MANY = (14, 15, 113, 116, 44, 12, 30)
"""Seeds of random models with four dimensions to cut, or more."""


@dataclass
class Drawn(Case):
    """A random model, as it was drawn."""

    def runner(self) -> Runner:
        graph = drawn(Rolled(int(self.x)))
        return Runner(state_of(snapshot(graph.module), tuple(graph.args)), "stage")


@pytest.mark.parametrize("order", ["saving", "macs", "sensitivity"])
@pytest.mark.parametrize("seed", MANY)
def test_random_models_come_out_as_cut_by_cut(seed: int, order: str) -> None:
    case = Drawn(nn.Identity(), torch.tensor(seed), the_rule(library("prune"), ratio=0.4), order)

    def every_third() -> Broken:
        said = iter(range(1000))
        return lambda: "too much" if next(said) % 3 == 2 else None

    ahead, one_by_one = case.lazily(100, every_third()), alone(case, every_third())
    assert told(ahead) == told(one_by_one)
    assert outcome(ahead) == outcome(one_by_one)
    assert ahead.state.journal.tried == one_by_one.state.journal.tried or order != "sensitivity"


def test_a_fault_among_them_is_found_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of what was done ahead is left: the mistake is raised at the cut at fault."""
    case = Case(chain(5), ROWS, the_rule(library("prune"), ratio=0.3))
    wanted = alone(case)
    real = cuts.masked

    def forgetful(flow: Any, removed: Any) -> fx.GraphModule:
        return real(flow, removed[1:] if len(removed) > 4 else removed)

    monkeypatch.setattr(cuts, "masked", forgetful)
    runner = case.lazily(100)
    assert told(runner) == told(wanted)
    assert runner.state.journal.tried == wanted.state.journal.tried
    assert outcome(runner) == outcome(wanted)
    assert all("together" not in e.verdicts[0].detail for e in runner.state.journal.of(Applied))


def test_a_cut_that_is_wrong_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts, "masked", lambda flow, removed: snapshot(flow.view.root))
    with pytest.raises(LissomError) as caught:
        Case(chain(3), ROWS, the_rule(library("prune"), ratio=0.3)).lazily(100)
    assert caught.value.diagnostics[0].code == "V101"


def test_what_was_weighed_is_as_it_was_before() -> None:
    """Costs with and without features, one after another, are those of models that were cut."""
    count = 0
    for seed in MANY:
        graph = drawn(Rolled(seed))
        state = state_of(snapshot(graph.module), tuple(graph.args))
        flow = state.features()
        scales, free = Weighing(flow), [dim for dim in classes(flow) if not dim.blocks]
        count += len(free)
        for dim in (*free, *reversed(free)):
            gone = dim.leaves[: dim.size // 2]
            cut = cut_and_carry(flow, gone)
            found = scales.weigh(gone)
            assert found.before == model_costs(flow.view.root, flow.view)
            assert found.after == model_costs(cut.view.root, cut.view)
    assert count > 10


# -- changes ---------------------------------------------------------------------------------------


def test_changes_are_known_by_the_first_node_behind_them() -> None:
    graph = torch.fx.Graph()
    nodes = [graph.placeholder(name) for name in "abcd"]
    changes = Changes()
    assert changes.since(0) is None
    for number in (2, 1, 3):
        changes.at(nodes[number])
    first = [
        nodes.index(next(n for n in nodes if n._sort_key == changes.since(k))) for k in (0, 1, 2)
    ]
    assert first == [1, 1, 3]
    assert changes.since(3) is None
    changes.everywhere()
    assert changes.since(0) == changes.since(3) == ()


def test_a_run_that_goes_on_gives_the_same() -> None:
    """Values in front of a change are read again, those behind it are computed anew."""
    module = capture(stack([12] * 9), (ROWS,)).module
    nodes = [node for node in module.graph.nodes if node.op == "call_module"]
    stops = recording.Stops(1 << 20)
    ran: list[str] = []

    def resumed(node: fx.Node) -> Tensor:
        ran.clear()
        return recording.resume(module, [node], (ROWS,), stops)[node]

    handles = [
        layer.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, layer in module.named_modules()
        if name
    ]
    for place, most in ((9, 10), (12, 3), (15, 3), (4, 2), (12, 1)):
        value = resumed(nodes[place])
        assert len(ran) <= most
        assert torch.equal(value, record(module, [nodes[place]], (ROWS,))[nodes[place]])
    with torch.no_grad():
        module.get_submodule(str(nodes[6].target)).weight.mul_(2)
    stops.drop(order_of(nodes[6]))
    for place in (12, 5):
        value = resumed(nodes[place])
        assert torch.equal(value, record(module, [nodes[place]], (ROWS,))[nodes[place]])
    assert handles


def test_a_run_goes_on_from_copies_of_what_is_written_to() -> None:
    """The fourth layer's activation changes the value that the first run held."""
    module = capture(stack([12] * 9, partial(nn.ReLU, inplace=True)), (ROWS,)).module
    nodes = [node for node in module.graph.nodes if node.op == "call_module"]
    (stops,) = recording.stops_of(module, 1, 1 << 20)
    assert stops.written
    for place in (9, 12, 12, 14, 13, 14, 4, 7):
        found = recording.resume(module, [nodes[place]], (ROWS,), stops)[nodes[place]]
        assert torch.equal(found, record(module, [nodes[place]], (ROWS,))[nodes[place]])
    assert len(stops.held) > 5


def test_sites_are_measured_from_where_the_last_one_stood(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for two values at a time: each run goes from one site to the next."""
    ran: list[fx.Node] = []
    run_node = recording._Resuming.run_node

    def told(runner: recording._Resuming, node: fx.Node) -> object:
        ran.extend([node] if len(runner.kept) < len(runner.wanted) else [])
        return run_node(runner, node)

    monkeypatch.setattr(recording._Resuming, "run_node", told)
    counts = []
    for room in (4 * ROWS.nbytes, 0):
        monkeypatch.setattr(samples, "MEMORY", room)
        case = Case(stack([12] * 9, partial(nn.ReLU, inplace=True)), ROWS, low_rank(rank=2))
        runner = case.runner()
        runner.once([case.rule])
        assert runner.applied == 8
        counts.append(len(ran))
        ran.clear()
    assert counts[0] < counts[1] / 2


def test_without_room_a_run_begins_at_the_inputs() -> None:
    module = capture(stack([12] * 4), (ROWS,)).module
    (last,) = module.graph.output_node().all_input_nodes
    stops = recording.Stops(0)
    recording.resume(module, [last], (ROWS,), stops)
    assert stops.held == []


def test_what_cannot_be_measured_goes_last() -> None:
    case = Case(stack([12] * 4), ROWS, low_rank(keep_params=0.5))
    ranks = {"0": math.nan, "2": 1.0, "4": 2.0}
    runner = case.runner()
    runner.each(case.rule, Order(lambda ready: ranks[ready.site.name]), lambda: False)
    assert sites(runner) == ["4", "2", "0"]
