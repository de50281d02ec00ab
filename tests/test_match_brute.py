"""The matcher against a reference that tries every assignment of pattern ops to nodes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import fx, nn

from lissom.grammar.text.parse import parse
from lissom.grammar.tree import tree as t
from lissom.rewrite.graph.index import GraphView
from lissom.rewrite.match.match import Search
from lissom.rewrite.ops.spec import TensorSpec
from lissom.rewrite.rules.binding import Bindings
from lissom.rewrite.rules.pattern import Pattern, compile_pattern

FUNCTIONS = {
    "relu": (torch.relu, 1),
    "tanh": (torch.tanh, 1),
    "add": (torch.add, 2),
    "sub": (torch.sub, 2),
}
COMMUTE = frozenset({"add"})

Step = tuple[str, tuple[int, ...]]


# -- random graphs and patterns --------------------------------------------------------------------


@st.composite
def graphs(draw: st.DrawFn) -> fx.GraphModule:
    """Two inputs, up to seven ops on any earlier values or the number 2."""
    graph = fx.Graph()
    values: list[Any] = [graph.placeholder("a"), graph.placeholder("b")]
    for _ in range(draw(st.integers(1, 7))):
        name = draw(st.sampled_from(sorted(FUNCTIONS)))
        function, arity = FUNCTIONS[name]
        args = [draw(st.sampled_from(values)) for _ in range(arity)]
        if arity == 2 and draw(st.integers(0, 5)) == 0:
            args[1] = 2
        values.append(graph.call_function(function, tuple(args)))
    graph.output(tuple(v for v in values[2:] if not v.users) or values[-1])
    for node in graph.nodes:
        node.meta["val"] = TensorSpec((3,), torch.float32)
    return fx.GraphModule(nn.Module(), graph)


@st.composite
def patterns(draw: st.DrawFn) -> str:
    """Up to four connected ops; operands are earlier results, free names, `_` or the number 2."""
    known, lines = ["x"], []
    for number in range(draw(st.integers(1, 4))):
        name = draw(
            st.sampled_from(["relu", "tanh", "add", "sub", "(relu | tanh)", "(add | sub)", "_"])
        )
        arity = 1 if "relu" in name or name in ("tanh", "_") else 2
        linked = draw(st.sampled_from(known))
        rest = [draw(st.sampled_from([*known, "x", "z", "_", "2"])) for _ in range(arity - 1)]
        operands = [linked, *rest] if draw(st.booleans()) else [*rest, linked]
        repeat = (
            ""
            if number == 0 or arity == 2 or name == "_"
            else draw(st.sampled_from(["", "", "?", "*"]))
        )
        lines.append(f"v{number} = {name}{repeat}({', '.join(operands)})")
        known += [f"v{number}", *(o for o in rest if o == "z")]
    return "\n".join(lines)


def compiled(match: str) -> Pattern:
    (rule,) = parse(f"exact rule r {{ match {{\n{match}\n}} }}", "r.lissom").all(t.Rule)
    return compile_pattern(rule.all(t.Match)[0].patterns)


# -- the reference ---------------------------------------------------------------------------------


def reference(pattern: Pattern, module: fx.GraphModule) -> set[Any]:
    """All matches, by trying every tuple of nodes; for absent and repeated ops every run."""
    nodes = [node for node in module.graph.nodes if node.op == "call_function"]
    choices = [_runs(op, nodes) for op in pattern.ops]
    found = set()
    for runs in itertools.product(*choices):
        flat = [node for run in runs for node in run]
        if len(set(flat)) == len(flat):
            found |= {_key(pattern, runs, names) for names in _consistent(pattern, runs)}
    return found


def _runs(op: Any, nodes: Sequence[fx.Node]) -> list[tuple[fx.Node, ...]]:
    fitting = [n for n in nodes if op.ops is None or n.target.__name__ in op.ops]
    single = [(node,) for node in fitting]
    if op.repeat == "?":
        return [(), *single]
    if op.repeat != "*":
        return single
    runs: list[tuple[fx.Node, ...]] = [(), *single]
    for run in runs:
        last = run[-1] if run else None
        runs += [
            (*run, n)
            for n in fitting
            if last is not None and n.args[0] is last and list(last.users) == [n]
        ]
    return runs


def _consistent(pattern: Pattern, runs: Sequence[tuple[fx.Node, ...]]) -> Iterator[dict[str, Any]]:
    """Every way to give names to values under which all equations hold."""
    orders = [_equations(op, run) for op, run in zip(pattern.ops, runs, strict=True)]
    for equations in itertools.product(*orders):
        names = _solve([pair for equation in equations for pair in equation])
        if names is not None:
            yield names


def _equations(op: Any, run: tuple[fx.Node, ...]) -> list[list[tuple[Any, Any]]]:
    """For each order of operands: pairs of a pattern name and a value that must be equal."""
    if not run:
        return [[(op.targets[0], _Name(op.reads[0]))]]
    args = run[0].args
    if len(args) != len(op.operands):
        return []
    orders = [args, args[::-1]] if run[0].target.__name__ in COMMUTE else [args]
    wanted = [o.text if isinstance(o, t.Name) else o.value for o in op.operands]
    return [[(op.targets[0], run[-1]), *zip(wanted, order, strict=True)] for order in orders]


class _Name(str):
    """The right side of an equation between two names."""


def _solve(equations: list[tuple[Any, Any]]) -> dict[str, Any] | None:
    names: dict[str, Any] = {}
    waiting = [pair for pair in equations if pair[0] != "_"]
    for _ in range(len(waiting) + 1):
        left = []
        for name, value in waiting:
            if isinstance(name, (int, float)):
                if isinstance(value, fx.Node) or value != name:
                    return None
                continue
            if isinstance(value, _Name):
                known = names.get(str(value), names.get(name))
                if known is None:
                    left.append((name, value))
                    continue
                if (
                    names.setdefault(name, known) is not known
                    or names.setdefault(str(value), known) is not known
                ):
                    return None
                continue
            if names.setdefault(name, value) is not value:
                return None
        waiting = left
    return names


def _key(pattern: Pattern, runs: Sequence[tuple[fx.Node, ...]], names: dict[str, Any]) -> Any:
    values = tuple(sorted((name, str(value)) for name, value in names.items()))
    return tuple(tuple(node.name for node in run) for run in runs), values


# -- the matcher -----------------------------------------------------------------------------------


def matched(pattern: Pattern, module: fx.GraphModule, number: int) -> set[Any]:
    """All matches that a search finds from one of the anchors."""
    view = GraphView(module)
    anchor = pattern.anchors()[number % len(pattern.anchors())]
    nodes = [node for node in module.graph.nodes if view.call(node) is not None]
    found = set()
    for node in nodes:
        for bound in Search(pattern, view).at(anchor, node, Bindings()):
            found.add(_key(pattern, [_run_of(bound, op) for op in pattern.ops], bound.values))
    return found


def _run_of(bound: Bindings, op: Any) -> tuple[fx.Node, ...]:
    if op.index in bound.ops:
        return (bound.ops[op.index].node,)
    return tuple(call.node for call in bound.chains.get(op.index, ()))


@settings(
    max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
@given(graphs(), patterns(), st.integers(0, 3))
def test_matcher_and_reference_agree(module: fx.GraphModule, match: str, number: int) -> None:
    pattern = compiled(match)
    assert matched(pattern, module, number) == reference(pattern, module)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(graphs(), patterns())
def test_every_anchor_finds_the_same(module: fx.GraphModule, match: str) -> None:
    pattern = compiled(match)
    first, *others = (matched(pattern, module, number) for number in range(len(pattern.anchors())))
    assert all(other == first for other in others)


def test_the_drawn_cases_are_not_vacuous() -> None:
    """Most of what is drawn must match somewhere; else agreement means nothing."""
    hits = [0, 0]

    @settings(
        max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
    )
    @given(graphs(), patterns())
    def draw(module: fx.GraphModule, match: str) -> None:
        hits[bool(reference(compiled(match), module))] += 1

    draw()
    assert hits[1] >= 30
