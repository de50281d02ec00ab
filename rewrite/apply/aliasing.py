"""Whether in-place ops of the model could tell a rewrite from what it replaces."""

from __future__ import annotations

from torch import fx

from ..graph.memory import parted, seen_through
from ..match.site import Site
from ..ops.call import OpCall
from ..rules.binding import PLAN, NoMatch
from ..rules.state import State
from .planned import Plan, Planned, flat
from .verify import CODES


def unseen(state: State, site: Site, plan: Plan) -> NoMatch | None:
    """Whether in-place ops could tell the new values from the old ones.

    A result that becomes memory of another value must be written by no later op, nor that value. A
    matched in-place op that stays has overwritten its input by the time the new ops run.
    """
    if not state.mutations:
        return None
    for name, old in site.outputs.items():
        apart = parted(state.view, state.mutations, old) if _lies_otherwise(plan, name) else None
        if apart is not None:
            text = f"{apart.name} computes in place, and integer kernels lay values out otherwise"
            return NoMatch(
                PLAN, 0, lambda said=text: said, site.rule.source.name.span, apart, "R006"
            )
        new = _memory(plan.outputs[name])
        other = (
            seen_through(state.view, state.mutations, old, new)
            if new and not _same_memory(site)
            else None
        )
        if other is not None:
            text = f"{other.name} computes in place, and would be seen through `{name}`"
            return NoMatch(
                PLAN, 0, lambda said=text: said, site.rule.source.name.span, other, "R006"
            )
    kept = [call for call in site.calls if call.in_place and call.node not in site.gone]
    lost = next((call for call in kept if call.inputs[0] in plan.reads), None)
    if lost is None:
        return None
    return NoMatch(
        PLAN,
        0,
        lambda: f"{lost.node.name} overwrites what the rewrite reads",
        site.rule.source.name.span,
        lost.node,
        "R006",
    )


def _lies_otherwise(plan: Plan, name: str) -> bool:
    """Whether an op that reads codes gives this result: a kernel answers in its own format."""
    value = plan.outputs[name]
    return isinstance(value, Planned) and any(spec.kind == CODES for spec in value.op.inputs)


def _memory(value: object) -> list[fx.Node]:
    """The nodes whose memory a planned value may be."""
    if isinstance(value, fx.Node):
        return [value]
    if not isinstance(value, Planned) or "alias" not in value.op.traits:
        return []
    return [node for item in flat(value.inputs) for node in _memory(item)]


def _same_memory(site: Site) -> bool:
    """Ops such as identity hand on the very tensor they get, so that nothing changes for in-place
    ops behind them.
    """
    return all(
        {"alias", "elementwise"} <= call.op.traits and _keeps_dtype(call) for call in site.calls
    )


def _keeps_dtype(call: OpCall) -> bool:
    return all(
        node.meta.get("val") == call.node.meta.get("val") for node in call.node.all_input_nodes
    )
