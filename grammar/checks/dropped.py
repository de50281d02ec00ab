"""T006: a setting that a pattern leaves open and the rewrite drops."""

from __future__ import annotations

from collections.abc import Iterator

from ..diagnostics import Label
from ..tree import tree as t
from .declared import OpFacts, SymbolTable
from .report import Messages
from .sides import Sides, SideStep

_VALUES = frozenset(("float", "frac", "any", "str", "dtype"))
"""Types of settings that no shape shows: a forgotten stride is found by comparing shapes."""

_IN_TRAINING = frozenset(("training", "p", "momentum"))
"""Settings that do nothing in eval mode."""


def check_dropped(rule: t.Rule, both: Sides, known: SymbolTable, report: Messages) -> None:
    """Warn of each setting of a matched op that nothing in the rule speaks of.

    Silent where the rule asks for zeros: what scales nothing does not matter.
    """
    calls = [node for node in t.walk(rule) if isinstance(node, t.Call)]
    zeros = any(call.function.span.text == "all_zero" for call in calls)
    if rule.kind not in ("exact", "lossless") or zeros:
        return
    kept = {step.clone for step in both.right} - {""}
    in_eval = {c.args[0].span.text for c in calls if c.args and c.function.span.text == "mode"}
    for step in both.left:
        if not (step.shared or step.handle in kept or _adds_zero(step)):
            names = _IN_TRAINING if step.handle in in_eval else frozenset[str]()
            _step(step, _spoken(rule, step) | names, known, report)


def _step(step: SideStep, spoken: frozenset[str], known: SymbolTable, report: Messages) -> None:
    for facts in known.facts(() if step.is_wildcard else step.ops):
        for attr in (a for a in _valued(facts) if a.name.text not in spoken):
            _warn(step, facts, attr, report)
            return


def _spoken(rule: t.Rule, step: SideStep) -> frozenset[str]:
    """The settings that the pattern fixes or names, and those that are read: `n.alpha`, or
    `dtype(y)` of the result.
    """
    nodes = t.walk(rule)
    reads = (node for node in nodes if isinstance(node, t.Attribute))
    own = {node.name for node in reads if node.value.span.text == step.handle != ""}
    calls = (node for node in nodes if isinstance(node, t.Call) and node.args)
    asked = {c.function.span.text for c in calls if c.args[0].span.text in step.results}
    return frozenset(own | asked | step.settings.keys())


def _valued(facts: OpFacts) -> Iterator[t.OpAttr]:
    """Settings that change numbers and no shape. Whether a layer trains is the first to say."""
    if "movement" not in facts.traits:
        attrs = sorted(facts.attrs.values(), key=lambda attr: attr.name.text != "training")
        yield from (a for a in attrs if a.type.name in _VALUES or a.name.text == "training")


def _adds_zero(step: SideStep) -> bool:
    """`sub(x, 0)`: whatever zero is multiplied with."""
    return any(isinstance(op, t.Number) and op.value == 0 for op in step.operands)


def _warn(step: SideStep, facts: OpFacts, attr: t.OpAttr, report: Messages) -> None:
    name, handle = attr.name.text, step.handle or "n"
    places = Label(step.whole, "any value matches"), Label(attr.span, "declared here")
    named = "" if step.handle else f"bind it with `as {handle}` and "
    if name == "training":
        message = f"`{facts.name}` may be in training mode, which the rewrite drops"
        help = f"{named}guard it: `mode({handle}) == eval`"
    else:
        message = f"the pattern leaves `{name}` of `{facts.name}` open, and the rewrite drops it"
        help = f"match `{name} = {attr.default.span.text}`, or {named}read `{handle}.{name}`"
    report.warn("T006", message, *places, help=help)
