"""Why a rule does or does not match: candidates counted at each condition, and the nearest misses.

Nothing is applied. Each candidate is asked as an application would ask it, up to the commit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import fx

from ..grammar import tree as t
from ..grammar.diagnostics import Diagnostic, Label, Span, did_you_mean, fail
from .binding import GUARDS, OWNERS, PLAN, SHAPES, SITES, STRUCTURE, UNLESS, USES, Miss
from .engine import Ready, anchor, candidates, ready_at
from .pattern import PatternOp
from .rule import Rule
from .sought import Hidden, Sought, sought, unknown
from .state import State

NEAREST = 3
"""How many of the nearest misses are told."""


@dataclass(frozen=True, slots=True)
class Level:
    """One condition of a rule: what it says, how many candidates came to it, how many passed."""

    kind: str
    text: str
    came: int
    passed: int


@dataclass(frozen=True, slots=True)
class Near:
    """A candidate that was left: its place in the model, the reason, and the part of the rule."""

    site: str
    source: str
    code: str
    reason: str
    span: Span | None
    rank: tuple[int, int]

    def diagnostic(self) -> Diagnostic:
        where = f"{self.site} ({self.source})" if self.source else self.site
        labels = (Label(self.span, "here it ends"),) if self.span is not None else ()
        message = f"{self.site}: {self.reason}"
        return Diagnostic(
            self.code or "W703", message, (*labels, Label(None, where=where)), severity="note"
        )


@dataclass(frozen=True, slots=True)
class Funnel:
    """The candidates of a rule, condition by condition, in the order in which they are asked.

    `sites` are the places where the rule applies; `nearest` the misses that came furthest. Where
    there is no candidate, `sought` says what the rule looks for, and `unknown` lists the nodes that
    may be anything.
    """

    rule: str
    place: str
    anchor: str
    candidates: int
    levels: tuple[Level, ...]
    sites: tuple[str, ...]
    nearest: tuple[Near, ...]
    sought: tuple[Sought, ...] = ()
    unknown: tuple[Hidden, ...] = ()


def funnel(state: State, rule: Rule, at: str | None = None, nearest: int = NEAREST) -> Funnel:
    """Asks every candidate of `rule`, or those at the module path or glob `at`, and counts.

    Raises U008 if the model has nothing at `at`; whatever the rule itself raises is passed on.
    """
    start = anchor(state, rule)
    nodes = candidates(state, rule)
    if at is not None:
        nodes = [
            node for node in nodes if _near(node, _nodes_at(state, at), rule.pattern.reach - 1)
        ]
    answers = [ready_at(state, rule, node, start) for node in nodes]
    misses = [(node, a) for node, a in zip(nodes, answers, strict=True) if isinstance(a, Miss)]
    near = sorted((_told(node, miss) for node, miss in misses), key=lambda n: n.rank, reverse=True)
    return Funnel(
        rule.label,
        str(rule.source.name.span),
        " or ".join(sorted(start.ops)) if start.ops is not None else "any op",
        len(nodes),
        tuple(_levels(rule, start, len(nodes), [miss for _, miss in misses])),
        tuple(answer.site.name for answer in answers if isinstance(answer, Ready)),
        tuple(_different(near))[:nearest],
        () if nodes else sought(state, rule),
        () if nodes else unknown(state),
    )


# -- where -----------------------------------------------------------------------------------------


def _nodes_at(state: State, at: str) -> set[fx.Node]:
    """The nodes whose module path, or name, is `at` or lies below it."""
    nodes = [node for node in state.module.graph.nodes if node.op not in ("placeholder", "output")]
    found = {node for node in nodes if any(_fits(name, at) for name in _names(node))}
    if not found:
        known = dict.fromkeys(name for node in nodes for name in _names(node))
        hint = next(iter(did_you_mean(at, known)), f"there are {', '.join(list(known)[:12])} ...")
        raise fail("U008", f"the model has nothing at `{at}`", Label(None, where=at), help=hint)
    return found


def _names(node: fx.Node) -> Iterator[str]:
    site = node.meta.get("site")
    if site:
        yield str(site)
    if node.name != site:
        yield node.name


def _fits(name: str, at: str) -> bool:
    return fnmatchcase(name, at) or fnmatchcase(name, f"{at}.*")


def _near(node: fx.Node, wanted: set[fx.Node], reach: int) -> bool:
    """Whether a match that is anchored at `node` could hold one of the `wanted` nodes."""
    found, edge = {node}, [node]
    for _ in range(reach):
        around = (other for n in edge for other in (*n.all_input_nodes, *n.users))
        edge = [other for other in dict.fromkeys(around) if other not in found]
        found.update(edge)
    return not found.isdisjoint(wanted)


def opaque_at(state: State, at: str) -> list[tuple[str, str]]:
    """What at `at` no rule can see: names of nodes that are no known op, and why."""
    nodes = [node for node in _nodes_at(state, at) if node.op != "get_attr"]
    return sorted((n.name, reason) for n in nodes if (reason := state.view.why_opaque(n)))


# -- counting --------------------------------------------------------------------------------------


def _levels(rule: Rule, start: PatternOp, count: int, misses: list[Miss]) -> Iterator[Level]:
    """Every condition with its counts. A miss belongs to the last condition not after its rank."""
    conditions = list(_conditions(rule, start))
    ranks = [rank for rank, _, _ in conditions]
    lost = [0] * len(conditions)
    for miss in misses:
        lost[max((i for i, rank in enumerate(ranks) if rank <= miss.rank), default=0)] += 1
    for (_, kind, text), gone in zip(conditions, lost, strict=True):
        yield Level(kind, text, count, count - gone)
        count -= gone


def _conditions(rule: Rule, start: PatternOp) -> Iterator[tuple[tuple[int, int], str, str]]:
    """(rank, kind, text) of all that can fail, in ascending rank: the ranks of `match.Miss`."""
    for depth, step in enumerate(rule.pattern.order(start)):
        yield (STRUCTURE, depth), "match", _line(step.op.source)
    inner = [name for op in rule.pattern.ops for name in op.targets if name not in rule.outputs]
    if inner:
        yield (USES, 0), "uses", f"nothing else reads {', '.join(inner)}"
    yield (USES, 1), "effects", "nothing between the matched ops computes in place"
    settings = [keyword for op in rule.pattern.ops for keyword in op.source.attrs]
    if settings:
        yield (SHAPES, 0), "settings", "; ".join(map(_line, settings))
    if rule.pattern.shapes:
        yield (SHAPES, 1), "shapes", "; ".join(map(_line, rule.pattern.shapes))
    if rule.at or rule.pattern.sites:
        globs = [f'at "{rule.at}"'] if rule.at else []
        yield (SITES, 0), "site", "; ".join([*globs, *map(_line, rule.pattern.sites)])
    for number, clause in enumerate(rule.source.all(t.Unless)):
        yield (UNLESS, number), "unless", _line(clause)
    yield (OWNERS, 0), "owner", "its weights serve nothing else"
    yield (GUARDS, 0), "fresh", "not made by this rule itself"
    yield from _guards(rule)
    yield (PLAN, 0), "plan", "; ".join(map(_line, rule.claims)) or "the rewrite can be placed"


def _guards(rule: Rule) -> Iterator[tuple[tuple[int, int], str, str]]:
    guards = [guard for where in rule.source.all(t.Where) for guard in where.guards]
    for number, guard in enumerate(guards, 1):
        if isinstance(guard, t.Guard):
            yield (GUARDS, number), "guard", _line(guard.condition)


def _line(node: t.Node) -> str:
    """The source of a node on one line."""
    return " ".join(node.span.text.split())


# -- telling ---------------------------------------------------------------------------------------


def _told(node: fx.Node, miss: Miss) -> Near:
    where = miss.node if miss.node is not None else node
    site = str(node.meta.get("site") or node.name)
    source = str(where.meta.get("source") or node.meta.get("source") or "")
    return Near(site, source, miss.code, miss.text(), miss.span, miss.rank)


def _different(near: Iterable[Near]) -> Iterator[Near]:
    """The first of those that were left for the same reason."""
    seen = set()
    for one in near:
        if (one.reason, one.rank) not in seen:
            seen.add((one.reason, one.rank))
            yield one
