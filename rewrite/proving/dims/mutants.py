"""Mutants of rules over dimensions, and whether anything notices them.

What such a rule can get wrong is which positions go: `perturb` and `rewrite` must mean the same
ones, they must exist, and what reads them must be masked. Another choice of positions, made in both
halves, is another rule and no mistake, so none of the mutants is one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ....grammar.diagnostics import LissomError
from ....grammar.tree import tree as t
from ...channels.classes import DimClass
from ...channels.flow import Flow
from ...graph.index import GraphView
from ...measure.compare import outputs
from ...rules.binding import NoMatch
from ...rules.rule import CompiledRule, compile_rule
from ...rules.state import State
from ...targets.features import DimReady, FeatureTarget
from ..choices.source import Replayed
from ..mutants.mutants import Mutant, flat
from ..mutants.mutate import AGREES, MODEL, Fate, Score, readied
from ..subject import Subject
from ..whole import MOVES, farthest, graph_state
from .idle import silence
from .trial import dim_model

WANTED = 64
"""On how many models a mutant is tried at most."""

# -- what mutants call -----------------------------------------------------------------------------


def _shifted(keep: Any, size: int) -> list[int]:
    return [(place + 1) % size for place in _places(keep)]


def _fewer(keep: Any, size: int) -> list[int]:
    return _places(keep)[1:]


def _more(keep: Any, size: int) -> list[int]:
    left = sorted(set(range(size)).difference(_places(keep)))
    return [*_places(keep), *left[:1]]


def _others(keep: Any, size: int) -> list[int]:
    return sorted(set(range(size)).difference(_places(keep)))


def _mirrored(keep: Any, size: int) -> list[int]:
    return [size - 1 - place for place in _places(keep)]


def _first(keep: Any, size: int) -> list[int]:
    return list(range(len(_places(keep))))


def _from_one(keep: Any, size: int) -> list[int]:
    return [place + 1 for place in _places(keep)]


def _places(keep: Any) -> list[int]:
    return sorted(int(place) for place in keep)


CHOICES: dict[str, str] = {
    "_shifted": "positions shifted by one",
    "_fewer": "one position fewer",
    "_more": "one position more",
    "_others": "the other positions",
    "_mirrored": "positions counted from the end",
    "_first": "the first positions, as many",
}
COUNTED = "positions counted from one"
FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (_shifted, _fewer, _more, _others, _mirrored, _first, _from_one)
}
"""What only mutants call. No rule can: their names are in no declaration."""

ROLES: dict[str, tuple[str, ...]] = {
    "writers": ("writes",),
    "readers": ("reads",),
    "riders": ("rides",),
    "params": ("writes", "reads", "rides"),
}
"""The parameters that a question names, by what ops do with the dimension in them."""

# -- the mutants -----------------------------------------------------------------------------------


def dim_mutants(rule: t.Rule) -> tuple[Mutant, ...]:
    """Every mutant of a rule over dimensions, each another rule."""
    return tuple(dict.fromkeys(_mutants(rule)))


def _mutants(rule: t.Rule) -> Iterator[Mutant]:
    dim = rule.all(t.MatchDim)[0].dim
    perturbs, kept = rule.all(t.Perturb), _choices(rule, t.Rewrite)
    if perturbs:
        rest = tuple(item for item in rule.clauses if not isinstance(item, t.Perturb))
        text = f"{perturbs[0].span.flat} -> nothing"
        yield Mutant("nothing is masked", t.replace(rule, clauses=rest), perturbs[0].span, text)
    for named in _named(perturbs):
        for other in ("writers", "riders"):
            if named.text != other:
                yield _mutant(rule, named, t.replace(named, text=other), f"{other} are masked")
    for clause, where in ((t.Perturb, "masked"), (t.Rewrite, "kept")):
        for choice in _choices(rule, clause):
            for function, phrase in CHOICES.items():
                yield _mutant(rule, choice, _called(function, choice, dim), f"{where}: {phrase}")
    both = [*_choices(rule, t.Perturb), *kept]
    changed = [(choice, _called("_from_one", choice, dim)) for choice in both]
    text = f"{flat(kept[0])} -> {flat(changed[-1][1])}"
    yield Mutant(COUNTED, _put(rule, changed), kept[0].span, text)


def _choices(rule: t.Rule, clause: type) -> list[t.Expr]:
    """The expressions that say which positions stay."""
    if clause is t.Rewrite:
        return [s.value for r in rule.all(t.Rewrite) for s in r.steps if isinstance(s, t.Assign)]
    calls = [m.call for p in rule.all(t.Perturb) for m in p.moves if isinstance(m, t.Effect)]
    words = [k for call in calls if isinstance(call, t.Call) for k in call.keywords]
    return [word.value for word in words if word.name.text == "outside"]


def _named(perturbs: Sequence[t.Perturb]) -> list[t.Name]:
    """The questions that name what is masked: `readers` in `zero(readers(D), outside = keep)`."""
    calls = [m.call for p in perturbs for m in p.moves if isinstance(m, t.Effect)]
    asked = [arg for call in calls if isinstance(call, t.Call) for arg in call.args]
    names = [call.function for call in asked if isinstance(call, t.Call)]
    return [name for name in names if isinstance(name, t.Name) and name.text in ROLES]


def _called(function: str, choice: t.Expr, dim: t.Word) -> t.Call:
    name, size = (t.Name(text, span=choice.span) for text in (function, dim.text))
    return t.Call(name, (choice, size), (), span=choice.span)


def _mutant(rule: t.Rule, old: t.Node, new: t.Node, phrase: str) -> Mutant:
    return Mutant(phrase, _put(rule, [(old, new)]), old.span, f"{flat(old)} -> {flat(new)}")


def _put(node: Any, changed: Sequence[tuple[t.Node, t.Node]]) -> Any:
    """The tree with other nodes in the place of some."""
    if isinstance(node, tuple):
        return tuple(_put(item, changed) for item in node)
    if not isinstance(node, t.Node):
        return node
    for old, new in changed:
        if node is old:
            return new
    return t.replace(node, **{name: _put(getattr(node, name), changed) for name in node.content})


# -- models on which the rule applies --------------------------------------------------------------


@dataclass(frozen=True)
class DimSpecimen:
    """A dimension of a model at which the rule applies. keep: the positions that it keeps. own: how
    far its cut is from the model in which the rule's words are taken literally, relative L2; None
    where they cannot be.
    """

    state: State
    rule: CompiledRule
    dim: DimClass
    keep: tuple[int, ...]
    own: float | None

    def ready(self, source: t.Rule) -> DimReady | NoMatch:
        """What the engine says to another text of the rule. Nothing is changed."""
        rule = compile_rule(source, self.rule.given)
        return FeatureTarget(self.state, rule).prepare(self.dim)


def dim_specimens(subject: Subject, tapes: Sequence[Sequence[int]]) -> list[DimSpecimen]:
    """The first dimension of each model at which the rule applies and moves the outputs; a rule
    that perturbs nothing moves none.
    """
    found = (_specimen(subject, tape) for tape in tapes[:WANTED])
    return [specimen for specimen in found if specimen is not None]


def _specimen(subject: Subject, tape: Sequence[int]) -> DimSpecimen | None:
    rule, graph = dim_model(subject, Replayed(tape))
    state = graph_state(subject, graph, FUNCTIONS)
    given = outputs(state.module, graph.args)
    target = FeatureTarget(state, rule)
    for dim in target.candidates():
        try:
            found = target.prepare(dim)
        except LissomError:  # where the rule breaks its promise is none for here
            continue
        if isinstance(found, DimReady) and (
            not rule.source.all(t.Perturb) or farthest(given, _outputs(found, state)) > MOVES
        ):
            apart = _apart(state, rule.source, found)
            return DimSpecimen(state, rule, dim, found.site.keep, apart)
    return None


def _outputs(ready: DimReady, state: State) -> list[Any]:
    return outputs(ready.flow.view.root, state.samples.inputs)


def _apart(state: State, source: t.Rule, ready: DimReady) -> float | None:
    """How far a cut is from the model in which the named parameters are 0 where `perturb` says so.
    This knows nothing of masks: only what the words mean.
    """
    named = _named(source.all(t.Perturb))
    if len(named) != 1:
        return None
    module = _zeroed(state.features(), ready.site.dim, ROLES[named[0].text], ready.site.removed)
    return farthest(outputs(module, state.samples.inputs), _outputs(ready, state))


def _zeroed(flow: Flow, dim: DimClass, roles: Sequence[str], removed: Sequence[int]) -> nn.Module:
    root = flow.view.root
    module = copy.deepcopy(root)
    silence(replace(flow, view=GraphView(module, flow.view.vocabulary)), dim, roles, removed)
    return module


# -- killing ---------------------------------------------------------------------------------------


def dim_score(subject: Subject, specimens: Sequence[DimSpecimen]) -> Score:
    """Tries every mutant that says something else where the rule applies, until one model tells
    both apart.
    """
    found = [m for m in dim_mutants(subject.source) if not _says_the_same(m, specimens)]
    return Score(tuple(_kill(mutant, specimens) for mutant in found), len(specimens))


_CHOSEN = {phrase: FUNCTIONS[name] for name, phrase in CHOICES.items()}


def _says_the_same(mutant: Mutant, specimens: Sequence[DimSpecimen]) -> bool:
    """Whether a mutant keeps what the rule keeps, wherever it was tried: `the first positions` of a
    rule that keeps the first ones. Counting from one is another choice, made in both halves, and a
    mistake only where it leaves the dimension.
    """
    if mutant.name == COUNTED:
        return all(max(one.keep) + 1 < one.dim.size for one in specimens)
    function = _CHOSEN.get(mutant.name.rpartition(": ")[2])
    if function is None:
        return False
    return all(sorted(function(one.keep, one.dim.size)) == list(one.keep) for one in specimens)


def _kill(mutant: Mutant, specimens: Sequence[DimSpecimen]) -> Fate:
    closest = Fate(mutant, "", "no model on which the rule applies")
    for index, specimen in enumerate(specimens):
        fate = _judged(mutant, specimen, index)
        if fate.killed:
            return fate
        closest = fate if closest.sample is None or fate.ratio > closest.ratio else closest
    return closest


def _judged(mutant: Mutant, specimen: DimSpecimen, index: int) -> Fate:
    found = readied(mutant, specimen.ready, index)
    if isinstance(found, Fate):
        return found
    apart = _apart(specimen.state, mutant.source, found)
    if specimen.own is None or specimen.own > AGREES or apart is None:
        return Fate(mutant, "", "its words cannot be taken literally in this model", index)
    text = f"the model moves by {apart:.2g}, with the rule itself by {specimen.own:.2g}"
    return Fate(mutant, MODEL if apart > AGREES else "", text, index, apart / AGREES)
