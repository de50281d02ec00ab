"""Sites of a rule in generated models, each with whether both sides agree there."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass, field

from ....grammar.diagnostics import LissomError
from ....grammar.tree import tree as t
from ...apply.engine import VerifiedRewrite, prepare
from ...match.site import Site, examine
from ...ops.call import OpCall
from ...ops.text import call_text, weights_of
from ...rules.binding import Bindings
from ...rules.rule import CompiledRule, compile_rule
from ...rules.scope import Scope
from ...rules.state import State
from ..choices.source import ChoiceSource
from ..subject import Subject
from ..trial import bound, model, state_of


@dataclass(slots=True)
class HoleSite:
    """One site. scope: what names mean there before the hole. agrees: whether both sides compute
    the same; None where another guard or the engine keeps the rule away. why: what differs.
    """

    scope: Scope
    agrees: bool | None
    why: str
    size: int
    calls: list[OpCall] = field(repr=False)

    def told(self, about: str = "") -> str:
        """The ops with their settings, for people, and the weights that `about` speaks of."""
        ops = "; ".join(call_text(call, about) for call in self.calls)
        return f"{ops}: {self.why or 'the sides agree'}"


def instances_of(source: ChoiceSource, subject: Subject, early: t.Rule) -> list[HoleSite]:
    """The sites of one generated model. Raises `Unsuitable`.

    `early` is the rule as far as it is asked before the hole; sites that do not come so far are
    left out.
    """
    grown = model(source, subject)
    state = state_of(subject, grown)
    asked = compile_rule(early, grown.rule.given)
    found = (bound(state, grown.rule, planted) for planted in grown.planted)
    each = (_instance(state, grown.rule, asked, b) for b in found if isinstance(b, Bindings))
    return [instance for instance in each if instance is not None]


def _instance(
    state: State, rule: CompiledRule, early: CompiledRule, bindings: Bindings
) -> HoleSite | None:
    try:
        site = examine(state, early, bindings)
    except LissomError:
        return None
    if not isinstance(site, Site):
        return None
    agrees, why = _judged(state, rule, bindings)
    size = _size(site)
    if agrees and not size:  # where there is no element, none can differ
        agrees = None
    return HoleSite(site.scope, agrees, why, size or sys.maxsize, site.calls)


def _judged(state: State, rule: CompiledRule, bindings: Bindings) -> tuple[bool | None, str]:
    """Whether both sides agree; what is left alone for other reasons says nothing.

    Anything that escapes speaks against the site: a guard has to keep the rule from it.
    """
    try:
        site = examine(state, rule, bindings)
        ready = prepare(state, site) if isinstance(site, Site) else site
    except LissomError as error:
        first = error.diagnostics[0]
        neutral = first.code.startswith("K") or first.code == "V106"
        return (None if neutral else False), _reason(error)
    except Exception as error:  # a crash of the engine is a reason to stay away, too
        return False, f"{type(error).__name__} {error}"
    return (True, "") if isinstance(ready, VerifiedRewrite) else (None, ready.text())


def _reason(error: LissomError) -> str:
    """What was seen, in one line."""
    first = error.diagnostics[0]
    note = first.notes[0] if first.notes else first.message
    if first.code == "V101":
        return _DIFFERENCE.sub(r"the sides differ by \1", note)
    return note.removeprefix("shapes: ") if first.code == "S001" else first.message


_DIFFERENCE = re.compile(r".*largest difference (\S+), allowed .*")


# -- in words --------------------------------------------------------------------------------------


def _size(site: Site) -> int:
    """Elements that the matched ops read: what makes a site large for a reader. 0 where a value has
    none.
    """
    shapes = [tuple(n.meta["val"].shape) for n in site.inputs if hasattr(n.meta["val"], "shape")]
    read = [math.prod(shape) for shape in shapes]
    held = sum(weight.numel() for call in site.calls for _, weight in weights_of(call))
    return sum(read) + held if all(read) else 0
