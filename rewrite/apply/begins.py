"""Whether what `train` says of a weight holds of the weight that a rule stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..graph.emit import Emitted
from ..journal import Verdict, VerdictKind
from ..rules.constraint import CONSTRAINTS, ROUNDINGS, Constraint, constraints_at
from .planned import Plan, Planned

BEGINS = "what is trained begins as what is stored"


def begins_as_stored(plan: Plan, emitted: Mapping[Planned, Emitted]) -> tuple[Verdict, ...]:
    """One verdict, where the rule constrains weights: each is left as it is by what it says."""
    found = [
        begins(one, emitted[planned].params[name])
        for planned in plan.ops
        for name, constraints in planned.trained.items()
        for one in constraints
    ]
    return (max(found, key=lambda v: v.worst or 0.0),) if found else ()


def begins(constraint: Constraint, weight: Tensor | None) -> Verdict:
    """In units in the last place of the numbers of the weight."""
    units = float("inf") if weight is None else constraint.apart(weight)
    units = max(units, 0.0 if weight is None else constraint.start_apart(weight))
    said = f"`{constraint.path}`, units in the last place"
    return Verdict(
        BEGINS, "tested", units <= ROUNDINGS, 1, units, ROUNDINGS, said, kind=VerdictKind.TRAINED
    )


def inherited(planned: Planned, emitted: Emitted) -> dict[str, Any]:
    """What a new node says of its weights: what its rule says, and what was said of the op that it
    comes from. A norm that is folded into a pruned layer leaves its zeros where they are.
    """
    origin = planned.origin
    older = {} if origin is None else constraints_at(origin.node)
    kept = {name: _still(older[name], emitted.params.get(name)) for name in older}
    found = {name: one for name, one in kept.items() if one}
    for name, new in planned.trained.items():
        rules = {one.rule for one in new}
        made = (replace(one, made=emitted.params[name]) for one in new)
        found[name] = (*(one for one in found.get(name, ()) if one.rule not in rules), *made)
    return {CONSTRAINTS: found} if found else {}


def _still(older: Sequence[Constraint], weight: Tensor | None) -> tuple[Constraint, ...]:
    """Codes are not trained. What does not hold of the new weight is told when it is trained."""
    if weight is None or not weight.is_floating_point():
        return ()
    return tuple(replace(one, made=weight) if one.holds_of(weight) else one for one in older)
