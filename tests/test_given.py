"""What the unchanged model gives is found out once, and lent to all candidates of a step."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import lissom
from lissom.rewrite.capture.capture import capture
from lissom.rewrite.channels.classes import classes
from lissom.rewrite.channels.masked import masked
from lissom.rewrite.explain.sensitivity import effects
from lissom.rewrite.graph.snapshot import finish, snapshot
from lissom.rewrite.journal import Refused
from lissom.rewrite.measure import alike, compare, given, recording
from lissom.rewrite.measure.alike import common_front
from lissom.rewrite.measure.given import Given
from lissom.rewrite.pipeline.orders import ORDERS
from lissom.rewrite.pipeline.strategy import Runner
from lissom.rewrite.proving.choices.source import Rolled
from lissom.rewrite.proving.dims.models import drawn
from lissom.rewrite.rules.rule import CompiledRule
from lissom.rewrite.targets import check
from lissom.rewrite.torch_internals import order_of

from .support import library, state_of, the_rule
from .test_cuts_together import counted

BATCHES = [torch.randn(4, 6, generator=torch.Generator().manual_seed(at)) for at in (1, 2)]
"""Two batches, so that a model runs twice where it runs on all data."""

ROUND = library("round").replace("2% on calib", "90% on calib")


def net() -> nn.Module:
    torch.manual_seed(7)
    widths = (6, 7, 8, 7, 3)
    layers = [part for wide, out in pairwise(widths) for part in (nn.Linear(wide, out), nn.Tanh())]
    return nn.Sequential(*layers).eval()


def runner() -> Runner:
    made = Runner(state_of(capture(net(), (BATCHES[0],)).module, (BATCHES[0],)), "stage")
    made.state.samples.named = {"calib": [(x, torch.zeros(4)) for x in BATCHES]}
    return made


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What models were run on, of calibration data alone."""
    found, real, interpret = [], compare.run_model, alike.interpret

    def ran(model: nn.Module, args: Any, kwargs: Any = None, what: str = "") -> Any:
        found.extend([what] if what == "the data" else [])
        return real(model, args, kwargs, what)

    def interpreted(runner: fx.Interpreter, args: Any, what: str) -> Any:
        found.append(what)
        return interpret(runner, args, what)

    monkeypatch.setattr(compare, "run_model", ran)
    monkeypatch.setattr(alike, "interpret", interpreted)
    return found


KINDS = [
    pytest.param("round", {"least": 1}, "error(outputs) <= 2% on calib", id="parameters"),
    pytest.param("bound", {}, "error(outputs) <= 0.1% on calib", id="values"),
    pytest.param("prune", {"ratio": 0.3}, "params(after) < params(before)", id="dimensions"),
]


def rule_with(name: str, args: dict[str, Any], claim: str, budget: str) -> CompiledRule:
    """A rule of the library that promises only how far it moves the outputs."""
    return the_rule(library(name).replace(claim, f"error(outputs) <= {budget}"), **args)


@pytest.mark.parametrize(("name", "args", "claim"), KINDS)
def test_candidates_share_the_run_of_the_unchanged_model(
    runs: list[str], name: str, args: dict[str, Any], claim: str
) -> None:
    """None applies: each is run once, and the model that all are compared with once."""
    made = runner()
    assert made.once([rule_with(name, args, claim, "-1%")]) == 0
    tried = [e for e in made.state.journal.of(Refused) if e.code == "B001"]
    assert len(tried) > 2
    assert len(runs) == len(BATCHES) * (len(tried) + 1)


@pytest.mark.parametrize(("name", "args", "claim"), KINDS)
def test_what_was_measured_for_the_order_is_not_measured_for_the_promise(
    monkeypatch: pytest.MonkeyPatch,
    runs: list[str],
    name: str,
    args: dict[str, Any],
    claim: str,
) -> None:
    made, drifts = runner(), counted(monkeypatch, check, "drift_from")
    done = lambda: made.applied >= 2  # noqa: E731
    rule = rule_with(name, args, claim, "1000%")
    made.each(rule, ORDERS["sensitivity"], done)
    assert made.applied == 2
    tried = made.state.journal.tried[rule.label]
    refused = [e for e in made.state.journal.of(Refused) if e.code != "B003"]
    assert len(drifts) == tried - len(refused)
    assert len(runs) == len(BATCHES) * (len(drifts) + made.applied)


def test_a_commit_ends_what_was_known() -> None:
    made = runner()
    state, rule = made.state, the_rule(ROUND, least=1)
    before = state.given()
    assert state.given() is before
    made.once([rule])
    assert made.applied == 4
    now = state.given()
    assert now is not before
    wanted = [compare.outputs(state.module, (x,)) for x in BATCHES]
    assert all(torch.equal(a, b) for [a], [b] in zip(now, wanted, strict=True))
    state.samples.forget()
    assert state.samples._given is None


@pytest.mark.parametrize(("room", "kept"), [(0, 0), (48, 1), (95, 1), (96, 2)])
def test_outputs_are_kept_as_long_as_there_is_room(
    monkeypatch: pytest.MonkeyPatch, room: int, kept: int
) -> None:
    """Four rows of three float32 are 48 bytes; what is not kept is run again."""
    monkeypatch.setattr(given, "ROOM", room)
    ran: list[int] = []

    def run(model: nn.Module, args: tuple[Any, ...]) -> list[Any]:
        ran.append(len(ran))
        return [args[0][:, :3] * 2]

    found = Given(capture(net(), (BATCHES[0],)).module, run, [(x,) for x in BATCHES])
    first, again = list(found), list(found)
    assert len(ran) == 2 + 2 - kept
    assert all(torch.equal(a, b) for [a], [b] in zip(first, again, strict=True))
    assert len(found.kept) == kept


def test_places_are_compared_with_one_run(runs: list[str]) -> None:
    """`sensitivity` too."""
    state = runner().state
    places = effects(state, the_rule(library("prune"), ratio=0.3), None)
    moved = [place for place in places if not place.reason]
    assert len(moved) == 3
    assert len(runs) == len(BATCHES) * (len(moved) + 1)


def test_the_original_runs_once_for_a_budget_that_is_asked_after_each_commit(
    runs: list[str],
) -> None:
    step = "each round_bfloat16(least = 1) order by saving"
    text = f"budget drift(outputs) <= 50%; stage s {{ {step} }}"
    data = [(x, torch.zeros(4)) for x in BATCHES]
    program = f'{ROUND} pipeline p {{ data calib = sample("train", all); {text} }}'
    result = lissom.compile(net(), program, inputs=(BATCHES[0],), data=data)
    assert len(result.applied) == 4
    # Each is measured for its promise against the model before it, then asked for the budget; and
    # the stage once more at its end.
    assert len(runs) == len(BATCHES) * (4 * 2 + 1 + 4 + 1)


# -- models that begin alike -----------------------------------------------------------------------


def changed_at(module: fx.GraphModule, place: int) -> fx.GraphModule:
    """A copy with a doubled value behind one of its layers."""
    copied = snapshot(module)
    node = [n for n in copied.graph.nodes if n.op == "call_module"][place]
    with copied.graph.inserting_after(node):
        twice = copied.graph.call_function(torch.mul, (node, 2))
    node.replace_all_uses_with(twice, delete_user_cb=lambda user: user is not twice)
    finish(copied)
    return copied


def run_of(model: nn.Module, args: tuple[Any, ...]) -> list[Any]:
    return compare.outputs(model, args, "the data")


def layers_run(module: nn.Module) -> list[str]:
    """The layers that have run since."""
    ran: list[str] = []
    for name, layer in module.named_modules():
        if name:
            layer.register_forward_hook(lambda *_, name=name: ran.append(name))
    return ran


def test_a_model_that_begins_alike_runs_from_where_it_differs() -> None:
    module = capture(net(), (BATCHES[0],)).module
    known = Given(module, run_of, [(x,) for x in BATCHES])
    known.hold()
    wanted = list(known)
    ran = layers_run(module)
    for place in range(8):
        other = changed_at(module, place)
        assert len(common_front(module, other)) == place + 2
        ran.clear()
        found = list(known.beside(other))
        assert len(ran) == len(BATCHES) * (7 - place)
        full = [compare.outputs(other, (x,)) for x in BATCHES]
        assert all(torch.equal(a, b) for [a], [b] in zip(found, full, strict=True))
        assert not any(torch.equal(a, b) for [a], [b] in zip(found, wanted, strict=True))


def test_behind_a_change_nothing_is_kept() -> None:
    """The graph itself is changed in the middle: runs begin in front of that, and give the same."""
    module = capture(net(), (BATCHES[0],)).module
    known = Given(module, run_of, [(x,) for x in BATCHES])
    known.hold()
    list(known)
    node = [n for n in module.graph.nodes if n.op == "call_module"][4]
    weight = module.get_submodule(str(node.target)).weight
    with torch.no_grad():
        weight.mul_(3)
    ran = layers_run(module)
    found = list(known.behind(order_of(node)))
    assert len(ran) == len(BATCHES) * 4
    full = [compare.outputs(module, (x,)) for x in BATCHES]
    assert all(torch.equal(a, b) for [a], [b] in zip(found, full, strict=True))


@pytest.mark.parametrize("room", [0, 1, 200, 1000, 1 << 20])
def test_room_for_held_runs_changes_no_number(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    monkeypatch.setattr(given, "ROOM", room)
    for seed in (14, 15, 30):
        graph = drawn(Rolled(seed))
        state = state_of(snapshot(graph.module), tuple(graph.args))
        flow, known, args = state.features(), state.given(), state.samples.inputs
        known.hold()
        wanted = compare.outputs(state.module, args)
        for dim in (dim for dim in classes(flow) if not dim.blocks):
            other = masked(flow, dim.leaves[::2])
            full = compare.outputs(other, args)
            assert compare.drift_from(known, other) == compare.drift_of([wanted], [full])
        held = [value for stop in known.stops for run in stop.held for value in run.env.values()]
        blocks = [value.untyped_storage() for value in held if isinstance(value, Tensor)]
        assert sum({block.data_ptr(): block.nbytes() for block in blocks}.values()) <= room


def test_runs_of_what_writes_are_held_as_copies() -> None:
    """A view that is written to goes on being one of the value it was taken from."""

    class Writing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            y[:, 0].relu_()
            for _ in range(3):
                y = (y + 1).tanh().mul_(2)
            return y

    module = capture(Writing().eval(), (BATCHES[0],)).module
    known = Given(module, run_of, [(x,) for x in BATCHES])
    known.hold()
    full = [run_of(module, (x,)) for x in BATCHES]
    for _ in range(2):
        assert all(torch.equal(a, b) for [a], [b] in zip(known, full, strict=True))
        found = list(known.beside(snapshot(module)))
        assert all(torch.equal(a, b) for [a], [b] in zip(found, full, strict=True))
    assert all(len(stops.held) > 3 for stops in known.stops)
    last = known.stops[0].held[-1]
    assert all(torch.equal(a, b) for [a], [b] in zip(known.behind(last.order), full, strict=True))


def test_a_run_is_not_held_between_inputs() -> None:
    """A run that begins there would hand the first input to the second."""

    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (a - b).tanh() * 2

    args = BATCHES[0], BATCHES[1]
    module = capture(Two().eval(), args).module
    stops = recording.Stops(1 << 20)
    nodes = [
        node for node in module.graph.nodes if node.op == "call_function" or "tanh" in node.name
    ]
    recording.resume(module, nodes[-1:], args, stops)
    stops.drop(order_of(nodes[0].prev))  # as where there is little room
    found = recording.resume(module, nodes, args, stops)
    assert torch.equal(found[nodes[0]], args[0] - args[1])
