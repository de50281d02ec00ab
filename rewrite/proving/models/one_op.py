"""One more op of a model, drawn from its declaration."""

from __future__ import annotations

from functools import cache

from torch import fx

from ....grammar.diagnostics import LissomError
from ....grammar.text.parse import parse
from ....grammar.tree import tree as t
from ...ops.opspec import OpSpec
from ...rules.rule import CompiledRule, compile_rule
from ..choices.source import Unsuitable
from .builder import GraphBuilder
from .planter import Planter


def drawn_op(builder: GraphBuilder, op: OpSpec, first: fx.Node) -> fx.Node:
    """A call of the op on a value: an instance of the pattern `y = op(first, ...)`, in which
    further operands, weights and settings are open. Raises `Unsuitable`.
    """
    spread = op.inputs[-1].variadic
    given = len(op.inputs) - spread
    while given > 1 and op.inputs[given - 1].optional and not builder.source.chance(30):
        given -= 1
    planter = Planter(builder, _pattern(op.name, given, spread), None)
    planter.planted.values["x0"] = first
    try:
        return planter.plant().nodes[0]
    except LissomError as error:  # a setting that the op does not take, say
        raise Unsuitable(error.diagnostics[0].message) from error


@cache
def _pattern(name: str, given: int, spread: bool) -> CompiledRule:
    operands = ", ".join(f"x{number}" for number in range(max(given, 1)))
    more = ", more..." if spread else ""
    text = f"exact rule any {{ match {{ y = {name}({operands}{more}) }}\nrewrite {{ y = x0 }} }}"
    (rule,) = parse(text, "pattern").all(t.Rule)
    return compile_rule(rule, {})
