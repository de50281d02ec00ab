"""What a proof says, as plain values: for tables, JSON, certificates and other processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ...grammar.tree import tree as t
from ..evidence.certificate import environment
from .algebra.field import PROVED, UNDECIDED
from .blamed import Blamed
from .budget_check import Confidence, confidence
from .prove import Proof
from .worker import Death


@dataclass(frozen=True, slots=True)
class NearMissReport:
    """One near-miss: how often it was built, how often the rule was silent for the right reason,
    and how often it fired with an equal result.
    """

    name: str
    silent: int
    equal: int


@dataclass(frozen=True, slots=True)
class Found:
    """A mistake: what kind, which condition or check, and what was seen."""

    kind: str
    condition: str
    detail: str


@dataclass(frozen=True, slots=True)
class Algebra:
    """Sites decided in the finite field: how many are identities, with the largest probability that
    chance made one look so; why others are open.
    """

    proved: int
    sites: int
    error: float
    degree: int
    open: dict[str, int]


@dataclass(frozen=True, slots=True)
class RuleReport:
    """Evidence about one rule. `vacuous`: applications that show nothing, by reason.
    `ratio`: the largest difference seen, over the one allowed.
    `confidence`: how well an approximate rule keeps its budget. `because`: what tells models at
    which the sides differ from others. `elsewhere`: how many rewritten models were compared on
    other inputs than their example's, by the kind of inputs.
    `died`: trials that ended their process.
    `blamed`: kernels of this processor that are wrong, and how many sites were left for them.
    """

    rule: str
    kind: str
    place: str
    sha256: str
    verdict: str
    models: int
    fired: int
    silent: dict[str, int]
    refused: dict[str, int]
    vacuous: dict[str, int]
    near: tuple[NearMissReport, ...]
    mutants: int
    killed: int
    survivors: tuple[str, ...]
    algebra: Algebra
    bit_equal: int
    bits: int
    ratio: float
    weak: tuple[str, ...]
    failures: tuple[Found, ...]
    tape: tuple[int, ...]
    seconds: float
    confidence: Confidence | None = None
    because: tuple[str, ...] = ()
    elsewhere: dict[str, int] = field(default_factory=dict)
    blamed: tuple[Blamed, ...] = ()
    died: tuple[Death, ...] = ()

    def as_json(self) -> dict[str, Any]:
        hidden = {"tape"} if self.because else {"tape", "because"}
        return {name: value for name, value in asdict(self).items() if name not in hidden}


def report_of(proof: Proof, source: t.Rule) -> RuleReport:
    """The plain values of a proof."""
    explored, failure = proof.explored, proof.explored.failure
    decided = [result for result in proof.bits if result.verdict == "bit_equal"]
    applicable = [result for result in proof.bits if result.verdict != "not applicable"]
    return RuleReport(
        proof.rule,
        proof.kind,
        str(source.name.span),
        proof.digest,
        proof.verdict,
        explored.models,
        explored.fired,
        dict(explored.silent),
        dict(explored.refused),
        dict(explored.vacuous),
        tuple(NearMissReport(r.near.name, r.silent, r.equal) for r in proof.near),
        len(proof.mutants.fates),
        proof.mutants.killed,
        tuple(f"{fate.mutant.name}: {fate.mutant.text}" for fate in proof.mutants.survivors),
        _algebra(proof),
        len(decided),
        len(applicable),
        explored.ratio,
        tuple(proof.weak),
        tuple(Found(o.kind, o.condition, o.detail) for o in proof.failures),
        failure.tape if failure is not None else (),
        proof.seconds,
        confidence(explored.kept),
        elsewhere=dict(sorted(explored.elsewhere.items())),
        blamed=proof.blamed,
        died=tuple(proof.died),
    )


def _algebra(proof: Proof) -> Algebra:
    proved = [result for result in proof.algebra if result.verdict == PROVED]
    left = Counter(result.reason for result in proof.algebra if result.verdict == UNDECIDED)
    return Algebra(
        len(proved),
        len(proof.algebra),
        max((result.error for result in proved), default=1.0),
        max((result.degree for result in proved), default=0),
        dict(left.most_common(3)),
    )


CLAIMS = (
    "fired: applications that the engine verified, after which the whole model computed the same. "
    "algebra: both sides agreed as polynomials on random residues; `error` bounds the probability "
    "that chance made them agree at one site. bits: float64 without rounding, same bits. "
    "confidence: an approximate rule kept its budget in `held` applications and broke it in none; "
    "with confidence `level`, fewer than `rate_below` of applications drawn like these break it. "
    "elsewhere: rewritten models compared on other inputs that the original takes: another batch "
    "or extent, finite inputs up to the magnitude named (float16: like those drawn), small ones, "
    "numbers at borders. "
    "blamed: kernels of this processor that are far off what float64 gives for the same numbers; "
    "sites at which they stand say nothing about a rule. "
    "died: trials that ended their process, which is one of its own; nothing is known of them. "
    "All of it speaks of the models that were drawn."
)


def _timeless(report: RuleReport) -> dict[str, Any]:
    """A report without its duration: equal work gives equal certificates."""
    return {name: value for name, value in report.as_json().items() if name != "seconds"}


def rule_certificate(reports: Sequence[RuleReport], seed: int) -> dict[str, Any]:
    """What was tried and found, rule by rule; rules are named by the SHA-256 of their text."""
    return {
        "format": 1,
        "environment": environment(),
        "seed": seed,
        "rules": [_timeless(report) for report in reports],
        "claims": CLAIMS,
    }
