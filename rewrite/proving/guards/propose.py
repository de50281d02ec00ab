"""`where { ? }`: a guard that a rule lacks, from sites where its sides agree and where they differ.

Models are generated around the left side as for any proof, with the hole taken as true. At each
site the engine builds and compares both sides. The simplest conditions that exclude every site at
which the sides differ are then put into the hole, and the rule goes through its proof. A mistake
found there is one more site, and the search goes on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ....grammar.tree import tree as t
from ....grammar.tree.clauses import guard_holes, patterns
from ..choices.source import ChoiceSource, Draw, Recorded, Replayed, Unsuitable
from ..prove import Proof, explore, prove
from ..subject import Subject
from .dim_instances import dim_instances
from .holes import at_fault, before, opened, with_guard
from .instances import HoleSite, instances_of
from .predicates import predicates
from .separate import Conjunction, SiteTable, column_of

ROUNDS = 6
"""Proposals that are tried, each with the sites that spoke against the ones before."""

SPARE = 8
"""Draws for each model that is wanted: some lead nowhere."""

REJECTED = 4
"""Conditions that nearly do, and are shown with what speaks against them."""

OPEN, VERIFIED = "open", "verified"
"""The verdict on a rule with a hole, and that on a rule whose proof lacks nothing."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A simpler condition that will not do, and a site that says why: it holds there and the sides
    differ, or they agree there and it does not hold.
    """

    guard: str
    excluded: int
    kept: int
    site: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """What may stand in a hole.

    guard: its text; "" where none is needed, None where nothing was found. kept: of the sites where
    both sides agree, those that the guard lets through; it keeps the rule from all those where they
    differ. verdict, weak: of the rule's proof with the guard in it. failure: what a proof found
    wrong with the best conditions there are. wider: with an `or`, and what that keeps. sites: where
    nothing was found, one of each sort that differ in the fewest conditions, as far as there are
    any. nameless: ops of the pattern with settings that no condition can speak of.
    """

    rule: str
    place: str
    guard: str | None
    agreeing: int
    differing: int
    kept: int = 0
    rounds: int = 1
    verdict: str = ""
    weak: tuple[str, ...] = ()
    failure: str = ""
    wider: str = ""
    wider_kept: int = 0
    rejected: tuple[Rejected, ...] = ()
    sites: tuple[str, ...] = ()
    nameless: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def clause(self) -> str:
        """The clause to be pasted; empty where there is none."""
        return f"where {{ {self.guard} }}" if self.guard else ""

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": OPEN, "with_guard": self.verdict, "clause": self.clause}


# -- sites -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Sample:
    """Sites of a rule with a hole, and what is known of them."""

    subject: Subject
    hole: t.Hole
    instances: list[HoleSite] = field(default_factory=list)
    banned: set[str] = field(default_factory=set)

    def draw(self, models: int, seed: str, like: tuple[int, ...] | None = None) -> None:
        """Sites of so many more models, every other one like that of a tape if there is one."""
        left = models
        for number in range(SPARE * models):
            drawn = Draw(f"{seed}/{number}", like if number % 2 else None)
            left -= bool(self.learn(drawn.source()))
            if left == 0:
                break

    def learn(self, source: ChoiceSource) -> list[HoleSite]:
        """The sites of one model; none where the draws did not fit together."""
        recorded = Recorded(source)
        sites_of = dim_instances if self.subject.source.all(t.MatchDim) else instances_of
        try:
            found = sites_of(recorded, self.subject, before(self.subject.source, self.hole))
        except Unsuitable:
            return []
        self.instances += found
        return found

    def contradicted(self, tape: Sequence[int]) -> None:
        """A model whose sites do not compute the same, whatever a site alone shows."""
        found = self.learn(Replayed(tape))
        if all(instance.agrees for instance in found):
            for instance in found:
                instance.agrees = False

    def table(self) -> SiteTable:
        scopes = [instance.scope for instance in self.instances]
        asked = predicates(self.subject.source, self.hole, scopes)
        columns = [column_of(p, scopes) for p in asked if p.text not in self.banned]
        good = sum(1 << n for n, i in enumerate(self.instances) if i.agrees is True)
        bad = sum(1 << n for n, i in enumerate(self.instances) if i.agrees is False)
        return SiteTable(columns, good, bad, (1 << len(scopes)) - 1)

    def smallest(self, sites: int) -> HoleSite:
        """The smallest of some sites, given as bits."""
        some = (i for n, i in enumerate(self.instances) if sites >> n & 1)
        return min(some, key=lambda instance: instance.size)


# -- the search ------------------------------------------------------------------------------------


def propose(subject: Subject, models: int, seed: int = 0) -> Proposal:
    """A guard for the first hole of a rule, from `models` generated models, and its proof."""
    begun = time.perf_counter()
    found = _searched(subject, models, seed)
    return replace(found, seconds=time.perf_counter() - begun)


def _searched(subject: Subject, models: int, seed: int) -> Proposal:
    sample = Sample(replace(subject, source=opened(subject.source)), guard_holes(subject.source)[0])
    sample.draw(models, f"guard/{seed}")
    number = 0
    while True:
        table, found = legal(subject, sample)
        if found is None:
            return replace(_nothing(sample, table), rounds=number + 1)
        proof = prove(with_guard(subject, found.text), models, seed)
        if proof.explored.failure is None or number + 1 == ROUNDS:
            tried = _Tried(found, proof, number + 1)
            return _weighed(subject, sample, table, tried, models, seed)
        sample.contradicted(proof.explored.failure.tape)
        sample.draw(models, f"guard/{seed}/{number}")
        number += 1


@dataclass(frozen=True, slots=True)
class _Tried:
    """Conditions, the proof of the rule with them, and how many were tried."""

    guard: Conjunction
    proof: Proof
    rounds: int


def _weighed(
    subject: Subject, sample: Sample, table: SiteTable, tried: _Tried, models: int, seed: int
) -> Proposal:
    """The conditions, and wider ones with an `or`. The wider ones come first where the others leave
    a part of the rule without use, so that its proof is weak: a padding that may only be 0, say.
    What leaves the rule without use and keeps it from most sites is no proposal.
    """
    first = next(iter(tried.proof.failures), None)
    useless = 2 * tried.guard.kept.bit_count() < table.good.bit_count()
    if first is not None or (tried.proof.verdict != VERIFIED and useless):
        said = "" if first is None else f"{first.kind} {first.condition}"
        return replace(_nothing(sample, table), rounds=tried.rounds, failure=said)
    wider = _wider(subject, sample, tried.guard, models, seed) if table.bad else None
    table = sample.table()
    kept = table.same(tried.guard) or tried.guard
    if wider is None or tried.proof.verdict == VERIFIED:
        return _found(sample, table, replace(tried, guard=kept), wider)
    proof = prove(with_guard(subject, wider.text), models, seed)
    better = not proof.failures and len(proof.weak) < len(tried.proof.weak)
    other = _Tried(wider, proof, tried.rounds + 1)
    return _found(sample, table, other if better else replace(tried, guard=kept))


def _wider(
    subject: Subject, sample: Sample, found: Conjunction, models: int, seed: int
) -> Conjunction | None:
    """Wider conditions that no model speaks against."""
    for number in range(ROUNDS):
        table = sample.table()
        kept = table.same(found)
        wider = table.wider(kept) if kept is not None else None
        if wider is None or any(at_fault(subject, column.text) for column in wider.columns):
            return None
        failure = explore(with_guard(subject, wider.text), models, seed).failure
        if failure is None:
            return wider
        sample.contradicted(failure.tape)
        sample.draw(models, f"wider/{seed}/{number}")
    return None


def legal(subject: Subject, sample: Sample) -> tuple[SiteTable, Conjunction | None]:
    """The best conditions that the static checker has nothing against."""
    while True:
        table = sample.table()
        found = _best(table)
        refused = [] if found is None else [c for c in found.columns if at_fault(subject, c.text)]
        if not refused:
            return table, found
        sample.banned |= {column.text for column in refused}


def _best(table: SiteTable) -> Conjunction | None:
    """No condition at all, where both sides agree everywhere."""
    return table.best() if table.bad or not table.good else Conjunction((), table.good)


# -- what is said of it ----------------------------------------------------------------------------


def _found(
    sample: Sample, table: SiteTable, tried: _Tried, wider: Conjunction | None = None
) -> Proposal:
    found, proof = tried.guard, tried.proof
    source = sample.subject.source
    return Proposal(
        source.name.text,
        str(sample.hole.span),
        found.text,
        table.good.bit_count(),
        table.bad.bit_count(),
        found.kept.bit_count(),
        tried.rounds,
        proof.verdict,
        tuple(proof.weak),
        "",
        wider.text if wider is not None else "",
        wider.kept.bit_count() if wider is not None else 0,
        tuple(_rejected(sample, table, found)) if table.bad else (),
    )


def _nothing(sample: Sample, table: SiteTable) -> Proposal:
    """No conditions exclude every site at which the sides differ and keep others."""
    source = sample.subject.source
    good, bad = table.good.bit_count(), table.bad.bit_count()
    rejected = tuple(_rejected(sample, table, None)) if good and bad else ()
    sites = tuple(site.told() for site in alike(sample, table))
    place = str(sample.hole.span)
    told = {"rejected": rejected, "sites": sites, "nameless": tuple(_nameless(sample))}
    return Proposal(source.name.text, place, None, good, bad, **told)


def _nameless(sample: Sample) -> Iterator[str]:
    """Lines of the pattern whose op has an open setting and no name."""
    vocabulary = sample.subject.vocabulary
    for op in patterns(sample.subject.source):
        if isinstance(op, t.OpPattern) and op.handle is None:
            fixed = {keyword.name.text for keyword in op.attrs}
            specs = filter(None, (vocabulary.get(word.text) for word in op.ops.names))
            if any(spec.attrs.keys() - fixed for spec in specs):
                yield op.span.flat


NEAREST = 150
"""Sites of each sort among which two alike are looked for, the smallest first."""


def alike(sample: Sample, table: SiteTable) -> tuple[HoleSite, ...]:
    """Small sites that differ in what becomes of them and in no condition, or in few."""
    order = sorted(range(len(sample.instances)), key=lambda n: sample.instances[n].size)
    goods = [n for n in order if table.good >> n & 1][:NEAREST]
    bads = [n for n in order if table.bad >> n & 1][:NEAREST]
    pairs = ((good, bad) for good in goods for bad in bads)
    alike = min(pairs, key=lambda pair: table.apart(*pair), default=(*goods[:1], *bads[:1]))
    return tuple(sample.instances[number] for number in alike)


def _rejected(sample: Sample, table: SiteTable, found: Conjunction | None) -> Iterator[Rejected]:
    """Single conditions that come near and are simpler: they let a site through at which the sides
    differ, or they keep less.
    """
    taken = {column.text for column in found.columns} if found is not None else set()
    near = [c for c in table.useful if c.text not in taken]
    if found is not None:
        near = [c for c in near if c.cost < found.cost]
    near = [c for c in near if table.near(c)]
    for column in sorted(near, key=lambda c: (table.far([c]), c.cost, len(c.text)))[:REJECTED]:
        wrong = table.bad & ~column.false
        against = sample.smallest(wrong or (table.good & ~column.true))
        counts = (column.false & table.bad).bit_count(), (column.true & table.good).bit_count()
        yield Rejected(column.text, *counts, against.told(column.text))
