"""Finding a rule's left side in the live graph. A miss is a value: how far, why, and where."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import fx

from ...grammar.diagnostics import Span
from ...grammar.tree import tree as t
from ..graph.index import GraphView
from ..ops.call import OpCall
from ..rules.binding import (
    STRUCTURE,
    Bindings,
    NoMatch,
    Several,
    operand,
    orders,
    unify_value,
    value_text,
)
from ..rules.pattern import MatchStep, Pattern, PatternOp


class Search:
    """One search of one pattern over one view. Keeps the nearest miss of the present candidate."""

    def __init__(self, pattern: Pattern, view: GraphView) -> None:
        self.pattern = pattern
        self.view = view
        self.miss: NoMatch | None = None

    def at(self, anchor: PatternOp, node: fx.Node, start: Bindings) -> Iterator[Bindings]:
        """All structural matches with `anchor` bound to `node`."""
        self.miss = None
        return self.complete(self.pattern.order(anchor), 0, start, node)

    def complete(
        self,
        steps: tuple[MatchStep, ...],
        index: int,
        bindings: Bindings,
        node: fx.Node | None = None,
    ) -> Iterator[Bindings]:
        if index == len(steps):
            yield bindings
            return
        step = steps[index]
        for bound in self._reach(step, bindings, node):
            yield from self.complete(steps, index + 1, bound)

    def missed(
        self,
        stage: int,
        step: int,
        text: Callable[[], str],
        span: Span | None,
        node: fx.Node | None,
    ) -> None:
        if self.miss is None or (stage, step) > self.miss.rank:
            self.miss = NoMatch(stage, step, text, span, node)

    # -- reaching one op ---------------------------------------------------------------------------

    def _reach(
        self, step: MatchStep, bindings: Bindings, node: fx.Node | None
    ) -> Iterator[Bindings]:
        if step.how == "anchor":
            assert node is not None
            yield from self._bind(step.op, node, bindings)
        elif step.how == "producer":
            yield from self._reach_producer(step, bindings)
        else:
            yield from self._reach_consumer(step, bindings)

    def _reach_producer(self, step: MatchStep, bindings: Bindings) -> Iterator[Bindings]:
        value = bindings.values[step.via]
        if isinstance(value, fx.Node):
            yield from self._bind_repeated(step, _producer(step.op, value), bindings)
        elif step.op.fixed:
            self.missed(
                STRUCTURE,
                len(bindings.ops),
                lambda: f"`{step.via}` is the constant {value}",
                step.op.source.span,
                None,
            )
        if step.op.repeat:
            yield from self._absent(step.op, bindings)

    def _reach_consumer(self, step: MatchStep, bindings: Bindings) -> Iterator[Bindings]:
        value = bindings.values[step.via]
        users = list(value.users) if isinstance(value, fx.Node) else []
        for user in users:
            yield from self._bind_repeated(step, user, bindings)
        if not users and step.op.fixed:
            self.missed(
                STRUCTURE,
                len(bindings.ops),
                lambda: f"nothing reads `{step.via}`",
                step.op.source.span,
                None,
            )
        if step.op.repeat:
            yield from self._absent(step.op, bindings)

    def _absent(self, op: PatternOp, bindings: Bindings) -> Iterator[Bindings]:
        """An optional op that is not there: its result and its operand are the same value."""
        target, operand = op.targets[0], op.reads[0]
        bound = bindings.copy()
        known = bound.values.get(target, bound.values.get(operand))
        if unify_value(bound, target, known) and unify_value(bound, operand, known):
            yield bound

    def _bind_repeated(
        self, step: MatchStep, node: fx.Node, bindings: Bindings
    ) -> Iterator[Bindings]:
        """A chain may have any length: the longest is tried first."""
        op = step.op
        if op.repeat != "*":
            yield from self._bind(op, node, bindings)
            return
        taken = {id(call) for call in bindings.calls()}
        run = (
            self._upwards(op, node, taken)
            if step.how == "producer"
            else self._downwards(op, node, taken)
        )
        for length in range(len(run), 0, -1):
            chain = run[:length] if step.how == "consumer" else run[length - 1 :: -1]
            bound = bindings.copy()
            bound.chains[op.index] = chain
            if unify_value(bound, op.targets[0], chain[-1].node) and unify_value(
                bound, op.reads[0], _link(op, chain[0])
            ):
                yield bound

    def _upwards(self, op: PatternOp, node: Any, taken: set[int]) -> list[OpCall]:
        """Such ops from `node` on towards the inputs, each read by the one before only."""
        run: list[OpCall] = []
        while isinstance(node, fx.Node) and (not run or len(node.users) == 1):
            call = self.view.call(node)
            if call is None or id(call) in taken or _link(op, call) is None:
                break
            run.append(call)
            node = _link(op, call)
        return run

    def _downwards(self, op: PatternOp, node: fx.Node, taken: set[int]) -> list[OpCall]:
        """Such ops from `node` on towards the outputs."""
        run: list[OpCall] = []
        while (call := self.view.call(node)) is not None:
            read = _link(op, call)
            if read is None or id(call) in taken or (run and read is not run[-1].node):
                break
            run.append(call)
            if len(node.users) != 1:
                break
            node = next(iter(node.users))
        return run

    # -- binding one op ----------------------------------------------------------------------------

    def _bind(self, op: PatternOp, node: fx.Node, bindings: Bindings) -> Iterator[Bindings]:
        depth = len(bindings.ops)
        call = self.view.call(node)
        if call is None:
            self.missed(
                STRUCTURE,
                depth,
                lambda: _boundary(op, node) or self.view.why_opaque(node),
                op.source.ops.span,
                node,
            )
            return
        if op.ops is not None and call.op.name not in op.ops:
            self.missed(
                STRUCTURE,
                depth,
                lambda: f"{_wanted(op)} expected, found {call.op.name}",
                op.source.ops.span,
                node,
            )
            return
        if any(other is call for other in bindings.calls()):
            return
        yield from self._bind_operands(op, call, bindings)

    def _bind_operands(self, op: PatternOp, call: OpCall, bindings: Bindings) -> Iterator[Bindings]:
        for operands in orders(call):
            bound = bindings.copy()
            bound.ops[op.index] = call
            if self._targets(op, call, bound) and self._operands(op, call, operands, bound):
                yield bound

    def _targets(self, op: PatternOp, call: OpCall, bound: Bindings) -> bool:
        if len(op.targets) == 1 and call.op.results == 1:
            return unify_value(bound, op.targets[0], call.node)
        parts = result_parts(call.node)
        for index, name in enumerate(op.targets):
            if name != "_" and not unify_value(bound, name, parts.get(index)):
                self.missed(
                    STRUCTURE,
                    len(bound.ops),
                    lambda n=name: f"nothing takes out `{n}`",
                    op.source.span,
                    call.node,
                )
                return False
        return True

    def _operands(
        self, op: PatternOp, call: OpCall, operands: tuple[Any, ...], bound: Bindings
    ) -> bool:
        for index, wanted in enumerate(op.operands):
            if isinstance(wanted, t.Rest):
                there = Several(value for value in operands[index:] if value is not None)
                return unify_value(bound, wanted.name.text, there)
            found = operands[index] if index < len(operands) else None
            if not operand(bound, wanted, found):
                said = f"operand is {value_text(found)}"
                self.missed(
                    STRUCTURE, len(bound.ops), lambda text=said: text, wanted.span, call.node
                )
                return False
        rest = operands[len(op.operands) :]
        if any(value is not None for value in rest):
            self.missed(
                STRUCTURE,
                len(bound.ops),
                lambda: f"{call.op.name} has further inputs",
                op.source.span,
                call.node,
            )
            return False
        return True


def _link(op: PatternOp, call: OpCall) -> Any:
    """What `call` reads as a link of a chain of `op`; None if it is no such link."""
    if op.ops is not None and call.op.name not in op.ops:
        return None
    if not op.operands or not isinstance(op.operands[0], t.Name):
        return None
    for first, *others in orders(call):
        given = [*others, *(None,) * (len(op.operands) - 1 - len(others))]
        pairs = list(zip(op.operands[1:], given, strict=False))
        rest = given[len(pairs) :]
        if all(isinstance(w, t.Expr) and operand(Bindings(), w, v) for w, v in pairs) and all(
            v is None for v in rest
        ):
            return first
    return None


def _wanted(op: PatternOp) -> str:
    return " or ".join(sorted(op.ops or ()))


def _boundary(op: PatternOp, node: fx.Node) -> str:
    """What a miss says at the edge of the model."""
    place = {
        "placeholder": "an input of the model",
        "output": "the model's output",
        "get_attr": "a weight",
    }.get(node.op)
    return f"{_wanted(op) or 'an op'} expected, found {place}" if place else ""


def _producer(op: PatternOp, value: fx.Node) -> fx.Node:
    """The node that makes `value`; a part of a tuple is made by the node that makes the tuple."""
    if len(op.targets) > 1 and is_part(value):
        whole = value.args[0]
        assert isinstance(whole, fx.Node)
        return whole
    return value


def is_part(node: fx.Node) -> bool:
    return node.target is operator.getitem and type(node.args[1]) is int


def result_parts(node: fx.Node) -> dict[int, fx.Node]:
    """The nodes that take single results out of an op with several, by number."""
    found: dict[int, fx.Node] = {}
    for user in node.users:
        if is_part(user) and user.args[0] is node:
            found.setdefault(user.args[1], user)  # type: ignore[arg-type]
    return found


def rarest(pattern: Pattern, counts: Mapping[str, int]) -> PatternOp:
    """The pattern op with the fewest candidates in this graph: the anchor of the search."""
    everything = sum(counts.values())
    return min(
        pattern.anchors(),
        key=lambda op: everything if op.ops is None else sum(counts.get(n, 0) for n in op.ops),
    )
