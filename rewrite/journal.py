"""The journal: one list of events that explain, plan, report, certificate and bisect all read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum, auto
from typing import Any

from ..grammar.diagnostics import Diagnostic, Severity


class VerdictKind(StrEnum):
    """What a verdict is about. People read its `claim`; whatever decides something asks this."""

    SHAPES = auto()
    DOUBLE = auto()
    """The rewrite half of one application is exact in float64,"""
    OWN = auto()
    """in the model's own precision,"""
    TYPES = auto()
    """in the types that its ops name,"""
    SIZES = auto()
    """at the sizes of other examples."""
    ERROR = auto()
    """A clause of the rule that compares the error of one application,"""
    CLAIM = auto()
    """and one that speaks of anything else."""
    BOUND = auto()
    EQUALITY = auto()
    """The whole model computes what it did."""
    OUTPUT_SHAPES = auto()
    UNTOUCHED = auto()
    RUNS = auto()
    TRAINED = auto()
    """What a rule says of a weight that is trained holds of its numbers."""
    DRIFT = auto()
    BUDGET = auto()
    """What the pipeline asks of the whole model."""
    ARTIFACT = auto()
    """What is saved is what was verified."""


EXACT = frozenset({VerdictKind.DOUBLE, VerdictKind.OWN, VerdictKind.TYPES})
"""Verdicts on the rewrite half of one application."""

PROMISES = frozenset(
    {
        VerdictKind.UNTOUCHED, VerdictKind.EQUALITY, VerdictKind.OUTPUT_SHAPES, VerdictKind.TRAINED,
    }
)  # fmt: skip
"""What is a bug if it does not hold, whatever the program says about failing."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known about one claim, how, and how well.

    `how` is "proved", "tested" or "not checked"; `worst` is the largest difference seen and
    `tolerance` what was allowed, in the unit of the claim. `clause` says which claim of its rule it
    judges, if any.
    """

    claim: str
    how: str
    holds: bool
    samples: int = 0
    worst: float | None = None
    tolerance: float | None = None
    detail: str = ""
    kind: VerdictKind = field(kw_only=True)
    clause: int | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class Opaque:
    """A node that no rule can see, and that holds parameters or may multiply: its place and line in
    the model, the reason, its parameters, and its multiply-accumulates; None where nobody knows.
    reads: what its inputs are. Two that are equal cost the same.
    """

    site: str
    source: str
    reason: str
    params: int
    macs: int | None
    reads: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.site} ({self.source})" if self.source else self.site


@dataclass(frozen=True, slots=True)
class Costs:
    """Sizes of a site or a model: numbers of parameters, their bytes in memory,
    multiply-accumulates, ops. Where one of `opaque` has no known cost, `macs` is a lower bound.
    """

    params: int
    bytes: int
    macs: int
    ops: int
    opaque: tuple[Opaque, ...] = ()

    @property
    def uncounted(self) -> tuple[Opaque, ...]:
        """What `macs` does not count."""
        return tuple(node for node in self.opaque if node.macs is None)

    @property
    def macs_said(self) -> str:
        """`131,072`, or `at least 131,072`."""
        return f"at least {self.macs:,}" if self.uncounted else f"{self.macs:,}"

    def __sub__(self, other: Costs) -> Costs:
        return Costs(
            self.params - other.params,
            self.bytes - other.bytes,
            self.macs - other.macs,
            self.ops - other.ops,
        )


@dataclass(frozen=True, slots=True)
class Applied:
    """One rewrite that was committed. `renewed` are the parameters that are other tensors now: cut
    smaller, or with other numbers.
    """

    stage: str
    rule: str
    site: str
    place: str
    removed: tuple[str, ...]
    added: tuple[str, ...]
    origins: tuple[str, ...]
    before: Costs
    after: Costs
    verdicts: tuple[Verdict, ...]
    bindings: dict[str, str]
    seconds: float
    renewed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Attached:
    """Observers that a rule attached at one site; the model is as it was."""

    stage: str
    rule: str
    site: str
    place: str


@dataclass(frozen=True, slots=True)
class Calibrated:
    """Observers that were told what they watch holds on named data."""

    stage: str
    data: str
    samples: int
    observers: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass over the training data: the mean loss of its samples, metrics on the validation data
    by name, the learning rate at its end. Epoch 0 is the model as it came, with no loss.
    """

    stage: str
    number: int
    loss: float | None
    metrics: dict[str, float]
    rate: float
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Trained:
    """A training that ended: its settings, the SHA-256 of each data that it read and of its teacher
    ("" without one), how many samples there were, the versions of what it ran on, its best epoch,
    why it stopped early ("" if it did not), and what holds of constrained weights.
    """

    stage: str
    settings: dict[str, Any]
    data: dict[str, str]
    teacher: str
    samples: int
    weights: int
    versions: dict[str, str]
    best: int
    epochs: int
    stopped: str
    verdicts: tuple[Verdict, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class ExitRow:
    """One exit, or the output: when samples leave there (""), which share of the data does, and
    multiply-accumulates up to there, at the example's batch.
    """

    name: str
    test: str
    share: float
    macs: float


@dataclass(frozen=True, slots=True)
class ExitsFitted:
    """Thresholds that were chosen: so that `asked` holds on the samples `data`. macs: on average;
    metrics: by name, on that data; frontier: costs and metric of the best thresholds at each cost.
    """

    asked: str
    data: str
    rows: tuple[ExitRow, ...]
    macs: float
    metrics: dict[str, float]
    frontier: tuple[tuple[float, float], ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Refused:
    """One candidate that was left as it was, and why. `structural` says that it only looked like
    one: no news.
    """

    stage: str
    rule: str
    site: str
    code: str
    reason: str
    place: str
    structural: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """A warning or remark about the run as a whole."""

    stage: str
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class StageEnd:
    """What a stage did to the whole model. `kept` is False where it was rolled back."""

    stage: str
    kept: bool
    before: Costs
    after: Costs
    verdicts: tuple[Verdict, ...]
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    reason: str = ""


HELPS = {"W702": ("lissom why MODEL RULE --program PROGRAM",)}

_TOGETHER = {"W702": "rules changed nothing"}
"""What one remark says of several notes with the same code."""

Event = Applied | Attached | Calibrated | Epoch | ExitsFitted | Trained | Refused | Note | StageEnd


def _remark(code: str, texts: Sequence[str], severity: Severity) -> Diagnostic:
    said: str = texts[0]
    notes: tuple[str, ...] = ()
    if len(texts) > 1:
        said, notes = f"{len(texts)} {_TOGETHER[code]}", tuple(texts)
    return Diagnostic(code, said, (), notes, HELPS.get(code, ()), severity)


_REFERENCES = frozenset({"kind", "clause"})
"""How the engine refers to what a verdict is about; who reads it elsewhere has the claim."""


def plain(value: Verdict | Event) -> dict[str, Any]:
    """A verdict or an event as plain values, as certificates and `--json` hold it."""
    return asdict(
        value, dict_factory=lambda pairs: {k: v for k, v in pairs if k not in _REFERENCES}
    )


@dataclass
class Journal:
    """Events in the order in which they happened."""

    events: list[Event] = field(default_factory=list)
    tried: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, str] = field(default_factory=dict)
    """`exact`, `approx`, ... of each rule, by the name that its events have."""

    def add(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def sites(self, rule: str) -> int:
        """How often a rule was applied, or attached observers."""
        return sum(event.rule == rule for event in (*self.of(Applied), *self.of(Attached)))

    def misses(self, rule: str) -> Counter[str]:
        """Why candidates of a rule were left, most frequent first."""
        return Counter(event.reason for event in self.of(Refused) if event.rule == rule)

    def remarks(self, severity: Severity = "warning") -> list[Diagnostic]:
        """What the run had to say as a whole; rules that did not fire are told together."""
        texts: dict[tuple[str, int | None], list[str]] = {}
        for number, note in enumerate(self.of(Note)):
            together = note.code in _TOGETHER
            texts.setdefault((note.code, None if together else number), []).append(note.text)
        return [_remark(code, said, severity) for (code, _), said in texts.items()]

    def as_json(self) -> list[dict[str, Any]]:
        return [{"event": type(event).__name__.lower(), **plain(event)} for event in self.events]
