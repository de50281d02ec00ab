"""Conditions that a missing guard may be made of, from the text of a rule and from what its names
stand for at sampled sites.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations
from typing import Any

from torch import Tensor, fx

from ....grammar.diagnostics import LissomError
from ....grammar.text.fragment import parse_expression
from ....grammar.text.references import references
from ....grammar.tree import tree as t
from ....grammar.tree.clauses import bindings, patterns
from ...ops.call import OpCall
from ...rules.dimension import DimValue
from ...rules.scope import ParamRef, Scope

MOST_PAIRED = 14
"""Settings or sizes that are compared with each other; a rule rarely names more."""

LITERALS = 5
"""Numbers that were seen, smallest first, with which a setting or size is compared."""

_INSTEAD = {"weight": "1", "running_var": "1"}
"""What an absent weight counts as; 0 for any other."""


@dataclass(frozen=True, slots=True)
class Predicate:
    """One condition. `cost` orders them: what is simpler costs less."""

    text: str
    cost: int
    condition: t.Expr = field(compare=False, repr=False)

    def holds(self, scope: Scope) -> bool | None:
        """Whether it holds at a site; None where it cannot be computed."""
        try:
            return bool(scope.number(self.condition))
        except (LissomError, RuntimeError):  # an array is neither true nor false
            return None


@lru_cache(maxsize=4096)
def predicate(text: str, cost: int) -> Predicate:
    return Predicate(text, cost, parse_expression(text))


Said = tuple[str, int]
"""A condition as text, and its cost."""


@dataclass(frozen=True, slots=True)
class _Term:
    """Something a condition may speak of, with what it was at the sites where it has a value.

    group: `dim` for sizes, `setting` for attributes; only likes are compared. plain: what to write
    where numbers are meant, if that is longer.
    """

    text: str
    cost: int
    values: tuple[Any, ...]
    group: str = ""
    plain: str = ""


def predicates(rule: t.Rule, hole: t.Hole, scopes: Sequence[Scope]) -> list[Predicate]:
    """Every condition of the templates that says something at the sites of `scopes`.

    These are the names as they stand where the hole is.
    """
    terms = list(_terms(rule, hole, scopes))
    made = {
        word.text for op in patterns(rule) if isinstance(op, t.OpPattern) for word in op.targets
    }
    found = [*_of_handles(scopes), *_of_values(made, scopes), *_of_dims(scopes)]
    found += [said for term in terms for said in _of_term(term)]
    found += _of_pairs(terms)
    cheapest: dict[str, int] = {}
    for text, cost in found:
        cheapest[text] = min(cost, cheapest.get(text, cost))
    return [predicate(text, cost) for text, cost in cheapest.items()]


# -- what there is to speak of ---------------------------------------------------------------------


def _names(scopes: Sequence[Scope], kind: type) -> list[str]:
    """The names that stand for something of a kind at one site at least."""
    items = (item for scope in scopes for item in scope.names.items())
    return list(dict.fromkeys(name for name, value in items if isinstance(value, kind)))


def _terms(rule: t.Rule, hole: t.Hole, scopes: Sequence[Scope]) -> Iterator[_Term]:
    handles = _names(scopes, OpCall)
    names = _names(scopes, object)
    for name in (name for name in names if name not in handles):
        group = "dim" if name[0].isupper() else "setting"
        yield from _with_first(_Term(name, 0, _values(name, scopes), group))
    for handle in handles:
        yield from _of_call(handle, _bound_settings(rule, handle), scopes)
    yield from _later(rule, hole, set(names), scopes)


def _values(text: str, scopes: Sequence[Scope]) -> tuple[Any, ...]:
    """What an expression is, at the sites where it can be computed."""
    expr, found = parse_expression(text), []
    for scope in scopes:
        try:
            found.append(scope.value(expr))
        except LissomError:
            continue
    return tuple(found)


def _with_first(term: _Term) -> Iterator[_Term]:
    """A setting, and of several numbers that differ, such as a shape, the first."""
    yield term
    several = [v for v in term.values if isinstance(v, tuple) and v and isinstance(v[0], int)]
    if any(not _numbers(value) for value in several) and len(several) == len(term.values):
        yield _Term(f"{term.text}.0", 1, tuple(value[0] for value in several))


def _bound_settings(rule: t.Rule, handle: str) -> set[str]:
    """Settings of an op that the pattern fixes, or gives a name of its own."""
    return {
        keyword.name.text
        for op in patterns(rule)
        if isinstance(op, t.OpPattern) and op.handle is not None and op.handle.text == handle
        for keyword in op.attrs
    }


def _of_call(handle: str, bound: set[str], scopes: Sequence[Scope]) -> Iterator[_Term]:
    calls = [c for scope in scopes if isinstance(c := scope.names.get(handle), OpCall)]
    for name in dict.fromkeys(name for call in calls for name in call.attrs):
        if name not in bound and name != "training":
            text = f"{handle}.{name}"
            yield from _with_first(_Term(text, 0, _values(text, scopes), "setting"))
    for name in dict.fromkeys(name for call in calls for name in call.params):
        text = f"{handle}.{name}"
        values = _values(text, scopes)
        absent = any(value is None for value in values)
        yield _Term(text, 0, values, plain=f"{text} or {_INSTEAD.get(name, '0')}" if absent else "")


def _later(rule: t.Rule, hole: t.Hole, names: set[str], scopes: Sequence[Scope]) -> Iterator[_Term]:
    """What `let` computes behind the hole, as far as it can be computed here already."""
    for binding in bindings(rule):
        free = {name for name, _, called in references(binding.value) if not called}
        if binding.span.start > hole.span.start and len(binding.targets) == 1 and free <= names:
            text = binding.value.span.flat
            yield _Term(text, 2, _values(text, scopes))


# -- conditions on one thing -----------------------------------------------------------------------


def _of_handles(scopes: Sequence[Scope]) -> Iterator[Said]:
    """The mode of an op, whether it is there, and whether others read its weights."""
    for name in _names(scopes, OpCall):
        found = [scope.names.get(name) for scope in scopes]
        if None in found:
            yield from ((f"known({name})", 1), (f"not known({name})", 1))
        calls = [call for call in found if isinstance(call, OpCall)]
        if any("training" in call.attrs for call in calls):
            yield from ((f"mode({name}) == eval", 1), (f"mode({name}) == train", 2))
        params = dict.fromkeys(param for call in calls for param in call.params)
        if params:
            yield f"owned({', '.join(f'{name}.{param}' for param in params)})", 1


def _of_dims(scopes: Sequence[Scope]) -> Iterator[Said]:
    """What a dimension has: ops that read it without weights, which are mistaken most often, norms
    with factors, weights that make or read it.
    """
    for name in _names(scopes, DimValue):
        for question in ("gathers", "scales", "writers", "readers", "riders"):
            cost = 1 if question == "gathers" else 2
            yield f"known({question}({name}))", cost
            yield f"not known({question}({name}))", cost + 1


def _of_values(made: set[str], scopes: Sequence[Scope]) -> Iterator[Said]:
    """What is known of values without running the model: axes, precision, shape, and of those that
    no matched op has made, whether they are constant.
    """
    names = _names(scopes, fx.Node)
    for name in names:
        if name not in made:
            yield f"constant({name})", 1
        yield from ((f"rank({name}) == {n}", 1) for n in _distinct(f"rank({name})", scopes))
        yield from (
            (f'dtype({name}) == "{kind}"', 2) for kind in _distinct(f"dtype({name})", scopes)
        )
    for first, second in combinations(names, 2):
        for question in ("dtype", "shape", "rank"):
            yield f"{question}({second}) == {question}({first})", 2


def _distinct(text: str, scopes: Sequence[Scope]) -> list[Any]:
    return sorted(set(_values(text, scopes)))


def _of_term(term: _Term) -> Iterator[Said]:
    """Whether it is there, what it equals, and its sign."""
    values, cost = term.values, term.cost
    if any(value is None for value in values):
        yield from ((f"known({term.text})", cost + 1), (f"not known({term.text})", cost + 1))
    if values and all(isinstance(value, bool) for value in values):
        yield from ((term.text, cost + 1), (f"not {_tight(term.text)}", cost + 1))
    words = sorted({value for value in values if isinstance(value, str)})
    yield from ((f'{_tight(term.text)} == "{word}"', cost + 1) for word in words)
    numbers = [n for value in values for n in _numbers(value)]
    if numbers:
        yield from _of_numbers(term, numbers)
    if any(isinstance(value, (Tensor, ParamRef)) or _is_held(value) for value in values):
        yield from _of_weight(term.plain or term.text, cost)


def _numbers(value: Any) -> Iterable[int | float]:
    """The number that a setting is; of a pair such as a stride, the number that it is twice."""
    if isinstance(value, tuple) and value and all(item == value[0] for item in value):
        value = value[0]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (value,) if is_number else ()


def _is_held(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr"


def _of_numbers(term: _Term, numbers: Sequence[int | float]) -> Iterator[Said]:
    text, cost = _tight(term.text), term.cost
    for seen in sorted(set(numbers), key=lambda n: (abs(n), n))[:LITERALS]:
        yield f"{text} == {seen or 0:g}", cost + (1 if seen in (0, 1) else 2)
    if term.group == "dim":
        yield f"{text} > 1", cost + 1
        return
    yield from ((f"{text} {sign} 0", cost + 1) for sign in (">", ">=", "<", "<="))
    yield f"{text} != 0", cost + 2


def _of_weight(text: str, cost: int) -> Iterator[Said]:
    """Signs and zeros of an array."""
    for question in (
        f"min({text}) > 0",
        f"min({text}) >= 0",
        f"max({text}) < 0",
        f"max({text}) <= 0",
        f"min(abs({text})) > 0",
        f"max(abs({text})) == 0",
    ):
        yield question, cost + (3 if "abs" in question else 2)
    if text.endswith((".running_var", ".running_var or 1")):
        handle = text.split(".")[0]
        yield f"min({text}) + {handle}.eps > 0", cost + 3


def _tight(text: str) -> str:
    """In brackets, where an operator would take a part of it only."""
    return text if text.replace(".", "").replace("_", "").isalnum() else f"({text})"


# -- conditions on two things ----------------------------------------------------------------------


def _of_pairs(terms: Sequence[_Term]) -> Iterator[Said]:
    for group in ("dim", "setting"):
        likes = [term for term in terms if term.group == group and any(map(_kind, term.values))]
        for first, second in combinations(likes[:MOST_PAIRED], 2):
            kinds = {_kind(v) for v in (*first.values, *second.values)} - {""}
            if len(kinds) == 1:
                yield from _compared(first.text, second.text, group, kinds == {"pair"})


def _kind(value: Any) -> str:
    if isinstance(value, tuple):
        return "pair" if value and isinstance(value[0], int) else ""
    if isinstance(value, bool):
        return ""
    return "whole" if isinstance(value, int) else "real" if isinstance(value, float) else ""


def _compared(first: str, second: str, group: str, pairs: bool) -> Iterator[Said]:
    yield f"{first} == {second}", 2
    if pairs:
        return
    yield from ((f"{first} <= {second}", 2), (f"{second} <= {first}", 2))
    if group == "dim":
        yield from ((f"{first} mod {second} == 0", 3), (f"{second} mod {first} == 0", 3))
