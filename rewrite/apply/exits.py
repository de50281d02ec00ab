"""What an exit has to be: logits of the form of the model's outputs, a score for each sample."""

from __future__ import annotations

from typing import Any

from torch import fx

from ...grammar.diagnostics import Diagnostic, Label, fail
from ...grammar.reached import reached
from ...grammar.tree import tree as t
from ..graph.exits import LIMIT, outputs_of
from ..ops.spec import TensorSpec
from ..rules.no_value import NoValue
from ..rules.scope import Scope
from ..runtime.exits import TESTS
from .planned import spec_known

EXIT = "exit_at"
"""The op that `exit` writes."""


def exit_settings(step: t.Exit, scope: Scope) -> tuple[t.Expr, dict[str, Any]]:
    """The score that an exit asks, and what it compares it with. Raises R002."""
    condition = step.condition
    if not isinstance(condition, t.Binary) or condition.op not in TESTS:
        message = "an exit asks one score: `exit e when confidence(e) > 90%`"
        raise fail("R002", message, Label(condition.span))
    limit = float(scope.number(condition.right))
    return condition.left, {"test": condition.op, LIMIT: limit}


def require_like_outputs(value: fx.Node, logits: Any, step: t.Exit) -> None:
    """Raises NoValue (R017) where a sample that leaves behind `value` could not be answered with
    `logits`.
    """
    found, outputs = spec_known(logits), outputs_of(value.graph)
    if value not in reached(outputs, lambda node: node.all_input_nodes):
        raise _refused(step, "what the model returns does not follow from the value")
    if len(outputs) != 1:
        raise _refused(step, f"the model returns {len(outputs)} values, and an exit gives one")
    wanted = outputs[0].meta.get("val")
    if not isinstance(found, TensorSpec) or not isinstance(wanted, TensorSpec):
        raise _refused(step, "what the exit gives, or the model, is no tensor of known shape")
    if found != wanted:
        raise _refused(step, f"the exit gives {found}, the model {wanted}")


def _refused(step: t.Exit, why: str) -> NoValue:
    message = "samples cannot leave with what this exit gives"
    return NoValue(Diagnostic("R017", message, (Label(step.name.span, why),)))
