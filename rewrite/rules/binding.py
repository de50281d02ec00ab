"""What pattern names stand for, and why a candidate is none: bindings and misses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from ...grammar.diagnostics import LissomError, Span
from ...grammar.tree import tree as t
from ...grammar.tree.fold import literal
from ..measure.twins import KernelFault
from ..ops.call import OpCall
from .no_value import NoValue

STRUCTURE, USES, SHAPES, SITES, UNLESS, OWNERS, GUARDS, PLAN = range(8)
"""How far a candidate came: the ranking key of near misses."""


@dataclass(slots=True)
class NoMatch:
    """Why a candidate did not match. `text` is built only when someone looks. `raised`: whether an
    expression of the rule, or a step of the engine, failed there. `faults`: the kernels that are to
    blame, where kernels are.
    """

    stage: int
    step: int
    text: Callable[[], str]
    span: Span | None
    node: fx.Node | None
    code: str = ""
    raised: bool = False
    faults: tuple[KernelFault, ...] = ()

    @property
    def rank(self) -> tuple[int, int]:
        return (self.stage, self.step)


OF_A_SITE = frozenset({"K001", "K002", "R010", "R011", "R014", "R017", "V106"})
"""Errors that come from what is at a site: numbers that a function does not take, a movement that
fits nothing, costs that nobody knows, ops that cannot be checked.
"""


def left_for(error: LissomError, span: Span, node: fx.Node | None) -> NoMatch | None:
    """The reason to leave a site, where an error comes from what is there: one of `OF_A_SITE`, or
    an expression that has no value. None for any other error: it is the rule's own.
    """
    first = error.diagnostics[0]
    if first.code not in OF_A_SITE and not isinstance(error, NoValue):
        return None
    said = [first.message, *(label.text for label in first.labels if label.text), *first.helps]
    place = next((label.span for label in first.labels if label.span is not None), span)
    return NoMatch(PLAN, 0, lambda: "; ".join(said), place, node, first.code, raised=True)


class Several(tuple[Any, ...]):
    """What a name with `...` stands for: as many values as there are. They stand side by side where
    an op has several inputs; an op with one input is applied to each.
    """

    __slots__ = ()


@dataclass(slots=True)
class Bindings:
    """What pattern names stand for. Values are nodes or Python scalars; `ops` maps pattern ops to
    their calls.
    """

    values: dict[str, Any] = field(default_factory=dict)
    ops: dict[int, OpCall] = field(default_factory=dict)
    chains: dict[int, list[OpCall]] = field(default_factory=dict)
    names: dict[str, Any] = field(default_factory=dict)

    def copy(self) -> Bindings:
        return Bindings(dict(self.values), dict(self.ops), dict(self.chains), dict(self.names))

    def calls(self) -> list[OpCall]:
        """Every matched call, in no particular order."""
        return list(self.ops.values()) + [call for chain in self.chains.values() for call in chain]


def orders(call: OpCall) -> Iterator[tuple[Any, ...]]:
    """The operands, flattened; both orders where the op commutes and the order can matter.

    `torch.add(x, y, alpha = 2)` is x + 2 y: with a factor on one operand it does not commute.
    """
    operands = operands_of(call)
    yield operands
    if len(operands) < 2 or "commutative" not in call.op.traits or call.attrs.get("alpha", 1) != 1:
        return
    if operands[0] is not operands[1]:
        yield (operands[1], operands[0], *operands[2:])


def operands_of(call: OpCall) -> tuple[Any, ...]:
    """A call's inputs with variadic ones spread out."""
    if not any(type(value) is tuple for value in call.inputs):
        return call.inputs
    return tuple(
        leaf for value in call.inputs for leaf in (value if type(value) is tuple else (value,))
    )


def operand(bound: Bindings, wanted: t.Expr, found: Any) -> bool:
    if isinstance(wanted, t.Name):
        return wanted.text == "_" or unify_value(bound, wanted.text, found)
    if isinstance(wanted, t.Constant) and wanted.value is None:
        return found is None
    return type(found) in (int, float, bool) and _is_number(found, literal(wanted))


def _is_number(found: float, wanted: Any) -> bool:
    """Zeros of either sign are two numbers: `x - 0` keeps the sign of a zero, `x - -0.0` does
    not.
    """
    return found == wanted and (found != 0 or math.copysign(1, found) == math.copysign(1, wanted))


def unify_value(bound: Bindings, name: str, value: Any) -> bool:
    if value is None:
        return False
    if name not in bound.values:
        bound.values[name] = value
        return True
    known = bound.values[name]
    return known is value or (
        not isinstance(known, fx.Node) and not isinstance(value, fx.Node) and known == value
    )


def value_text(value: Any) -> str:
    return value.name if isinstance(value, fx.Node) else str(value)
