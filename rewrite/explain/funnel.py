"""Why a rule does or does not match: candidates counted at each condition, and the nearest misses.

Nothing is applied. Each candidate is asked as an application would ask it, up to the commit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import fx

from ...grammar.diagnostics import Diagnostic, Label, Span, did_you_mean, fail
from ...grammar.tree import tree as t
from ..apply.engine import VerifiedRewrite, anchor, candidates, ready_at
from ..channels.classes import DimClass
from ..channels.flow import Flow
from ..channels.listing import dims_at, reason_of, source_of
from ..match.opaque_report import Hidden, Sought, sought, unknown
from ..rules.binding import GUARDS, OWNERS, PLAN, SHAPES, SITES, STRUCTURE, UNLESS, USES, NoMatch
from ..rules.pattern import PatternOp
from ..rules.rule import CompiledRule
from ..rules.state import State
from ..targets.features import DimReady, dim_candidates, dim_ready
from ..targets.images import Image, ImageReady, image_candidates, image_ready

Rank = tuple[int, int]
Condition = tuple[Rank, str, str]
"""(rank, kind, text) of something that can fail."""

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
class NearestMiss:
    """A candidate that was left: its place in the model, the reason, and the part of the rule."""

    site: str
    source: str
    code: str
    reason: str
    span: Span | None
    rank: Rank

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
    nearest: tuple[NearestMiss, ...]
    sought: tuple[Sought, ...] = ()
    unknown: tuple[Hidden, ...] = ()


def funnel(
    state: State, rule: CompiledRule, at: str | None = None, nearest: int = NEAREST
) -> Funnel:
    """Asks every candidate of `rule`, or those at the module path or glob `at`, and counts.

    For a rule over dimensions the candidates are the classes of the model, and `at` is the path of
    a parameter; for one over the resolution they are its image inputs, and `at` is a name. Raises
    U008 if the model has nothing at `at`; whatever the rule itself raises is passed on.
    """
    asked = _asked(state, rule, at)
    near = [answer for answer in asked.answers if isinstance(answer, NearestMiss)]
    near.sort(key=lambda miss: miss.rank, reverse=True)
    return Funnel(
        rule.label,
        str(rule.source.name.span),
        asked.anchor,
        len(asked.answers),
        tuple(_levels(asked.conditions, len(asked.answers), [miss.rank for miss in near])),
        tuple(answer for answer in asked.answers if isinstance(answer, str)),
        tuple(_different(near))[:nearest],
        () if asked.answers else sought(state, rule),
        () if asked.answers else unknown(state),
    )


@dataclass(frozen=True, slots=True)
class _Asked:
    """Every candidate with its answer: the name of the site, or why there is none."""

    anchor: str
    conditions: list[Condition]
    answers: list[str | NearestMiss]


def _asked(state: State, rule: CompiledRule, at: str | None) -> _Asked:
    if rule.images:
        return _images(state, rule, at)
    return _dims(state, rule, at) if rule.dim else _ops(state, rule, at)


def _ops(state: State, rule: CompiledRule, at: str | None) -> _Asked:
    start = anchor(state, rule)
    nodes = candidates(state, rule)
    if at is not None:
        nodes = [
            node for node in nodes if _near(node, _nodes_at(state, at), rule.pattern.reach - 1)
        ]
    found = [(node, ready_at(state, rule, node, start)) for node in nodes]
    return _Asked(
        " or ".join(sorted(start.ops)) if start.ops is not None else "any op",
        list(_conditions(rule, start)),
        [
            answer.site.name if isinstance(answer, VerifiedRewrite) else _told(n, answer)
            for n, answer in found
        ],
    )


def _dims(state: State, rule: CompiledRule, at: str | None) -> _Asked:
    """The same for the dimension classes of the model."""
    flow, dims = state.features(), dim_candidates(state, rule)
    dims = dims if at is None else dims_at(dims, at)
    found = [(dim, dim_ready(state, rule, dim)) for dim in dims]
    return _Asked(
        "any dimension",
        list(_dim_conditions(rule)),
        [dim.name if isinstance(a, DimReady) else _told_dim(flow, dim, a) for dim, a in found],
    )


def _images(state: State, rule: CompiledRule, at: str | None) -> _Asked:
    """The same for the image inputs of the model."""
    images = image_candidates(state, rule)
    named = [image for image in images if at is None or fnmatchcase(image.name, at)]
    if images and not named:
        known = ", ".join(image.name for image in images)
        place = Label(None, where=str(at))
        raise fail("U008", f"the model has no image `{at}`", place, help=f"there are {known}")
    found = [(image, image_ready(state, rule, image)) for image in named]
    return _Asked(
        "any image input",
        list(_image_conditions(rule)),
        [i.name if isinstance(a, ImageReady) else _told_image(i, a) for i, a in found],
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


def _levels(conditions: list[Condition], count: int, misses: list[Rank]) -> Iterator[Level]:
    """Every condition with its counts. A miss belongs to the last condition not after its rank."""
    ranks = [rank for rank, _, _ in conditions]
    lost = [0] * len(conditions)
    for miss in misses:
        lost[max((i for i, rank in enumerate(ranks) if rank <= miss), default=0)] += 1
    for (_, kind, text), gone in zip(conditions, lost, strict=True):
        yield Level(kind, text, count, count - gone)
        count -= gone


def _conditions(rule: CompiledRule, start: PatternOp) -> Iterator[Condition]:
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


def _dim_conditions(rule: CompiledRule) -> Iterator[Condition]:
    """The same for a rule over dimensions: what is asked after the guards is told apart by step."""
    yield from _guards(rule)
    yield (PLAN, _STAYS), "cut", "nothing in the model keeps it from being cut"
    yield (PLAN, _CHOICE), "keep", f"some features go and some stay: {_line(rule.resize)}"
    yield (PLAN, _CLAIM), "plan", "; ".join(map(_line, rule.claims)) or "nothing is promised"


def _image_conditions(rule: CompiledRule) -> Iterator[Condition]:
    """The same for a rule over the resolution."""
    yield from _guards(rule)
    yield (PLAN, _STAYS), "image", "the model neither resizes it nor writes into it"
    yield (
        (PLAN, _CHOICE),
        "fits",
        f"every op takes it, and outputs keep shapes: {_line(rule.resize)}",
    )
    yield (PLAN, _CLAIM), "plan", "; ".join(map(_line, rule.claims)) or "nothing is promised"


_STAYS, _CHOICE, _CLAIM = range(3)


def _dim_rank(miss: NoMatch) -> Rank:
    """How far a dimension came. That it must stay is asked when all guards hold."""
    if miss.stage == GUARDS:
        return miss.rank
    if miss.stage == PLAN:
        return PLAN, _CLAIM if miss.code == "B001" else _CHOICE
    return PLAN, _STAYS


def _guards(rule: CompiledRule) -> Iterator[Condition]:
    guards = [guard for where in rule.source.all(t.Where) for guard in where.guards]
    for number, guard in enumerate(guards, 1):
        if isinstance(guard, t.Guard):
            yield (GUARDS, number), "guard", _line(guard.condition)


def _line(node: t.Node) -> str:
    """The source of a node on one line."""
    return " ".join(node.span.text.split())


# -- telling ---------------------------------------------------------------------------------------


def _told(node: fx.Node, miss: NoMatch) -> NearestMiss:
    where = miss.node if miss.node is not None else node
    site = str(node.meta.get("site") or node.name)
    source = str(where.meta.get("source") or node.meta.get("source") or "")
    return NearestMiss(site, source, miss.code, miss.text(), miss.span, miss.rank)


def _told_dim(flow: Flow, dim: DimClass, miss: NoMatch) -> NearestMiss:
    """With the line of the op that keeps the dimension; else of the one that makes it."""
    told = (reason_of(flow, block).source for block in dim.blocks)
    source = next(told, "") or source_of(flow, dim)
    return NearestMiss(dim.name, source, miss.code, miss.text(), miss.span, _dim_rank(miss))


def _told_image(image: Image, miss: NoMatch) -> NearestMiss:
    """With the line of the op that does not take the smaller image."""
    source = "" if miss.node is None else str(miss.node.meta.get("source") or "")
    return NearestMiss(image.name, source, miss.code, miss.text(), miss.span, _dim_rank(miss))


def _different(near: Iterable[NearestMiss]) -> Iterator[NearestMiss]:
    """The first of those that were left for the same reason."""
    seen = set()
    for one in near:
        if (one.reason, one.rank) not in seen:
            seen.add((one.reason, one.rank))
            yield one
