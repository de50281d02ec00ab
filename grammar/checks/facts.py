"""F001 and F002: what a pipeline's steps need, provide and undo, in the order in which they run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ..diagnostics import Label, Span, did_you_mean
from ..tree import tree as t
from ..tree.clauses import facts, outdates_observers, reads_observers, refs_of
from .report import Messages
from .structure import is_budget

KNOWN = frozenset(("traced", "trained", "calibrated", "observers", "quantized", "bn_folded"))
LATER = "recover"
"""The one fact that is owed to the future: training has to follow."""


def steps_of(steps: Iterable[t.Step]) -> Iterator[t.Step]:
    """The simple steps in order; `first` and `try` are opened."""
    for step in steps:
        if isinstance(step, (t.First, t.Try)):
            yield from steps_of(step.steps)
        else:
            yield step


@dataclass(slots=True)
class FactFlow:
    """The facts that hold as the pipeline runs. `undone` says who took a fact away."""

    pipeline: t.Pipeline
    rules: Mapping[str, t.Rule]
    attached: frozenset[str]
    report: Messages
    facts: set[str] = field(default_factory=lambda: {"traced", "trained"})
    undone: dict[str, t.Word] = field(default_factory=dict)
    owed: list[tuple[t.Ref, Span]] = field(default_factory=list)
    told: set[tuple[Span, str]] = field(default_factory=set)

    def run(self) -> None:
        for item in self.pipeline.items:
            self._item(item)
        for ref, span in self.owed:
            places = Label(ref.rule.span, "used here"), Label(span, "asked for here")
            message = f"`{ref.rule}` needs a `recover` after it"
            help = "add `recover tune { ... }` behind the stage"
            self.report.error("F001", message, *places, help=help)

    def _item(self, item: t.PipelineItem) -> None:
        if isinstance(item, t.Stage):
            self._stage(item)
        elif isinstance(item, t.Recover):
            self.owed.clear()
            self._provide("trained")
        elif isinstance(item, t.Repeat):
            for inner in item.items:
                self._item(inner)
        elif isinstance(item, t.Control):
            self._beside(item)
        elif isinstance(item, t.Verify):
            self._verify(item)

    def _beside(self, control: t.Control) -> None:
        """What holds inside of a control holds there alone."""
        kept = set(self.facts), dict(self.undone), list(self.owed)
        for inner in control.items:
            self._item(inner)
        self.facts, self.undone, self.owed = kept

    def _stage(self, stage: t.Stage) -> None:
        steps = list(steps_of(stage.steps))
        for step in steps:
            if isinstance(step, t.Calibrate):
                self._calibrate(step)
            for ref in (r for r in refs_of(step) if r.rule.text in self.rules):
                self._rule(ref, self.rules[ref.rule.text])
        refs = [ref for step in steps for ref in refs_of(step)]
        effects = [_changes(self.rules[r.rule.text]) for r in refs if r.rule.text in self.rules]
        measured = any(isinstance(step, t.Calibrate) for step in steps)
        if not measured and not any(effects) and len(effects) == len(refs):
            label = Label(stage.name.span, "no rule in it perturbs, rewrites or attaches")
            message = f"stage `{stage.name}` cannot change anything"
            self.report.warn("F002", message, label, help="delete the stage")

    def _calibrate(self, step: t.Calibrate) -> None:
        if "observers" not in self.facts:
            label = Label(step.span, "nothing to fill")
            message = "`calibrate` comes before any observer"
            help = "run an observe rule first: `once watch`"
            self.report.error("F001", message, label, help=help)
        self._provide("calibrated")

    def _rule(self, ref: t.Ref, rule: t.Rule) -> None:
        self._observed(ref, rule)
        for fact in facts(rule):
            for word in fact.names:
                self._fact(ref, fact.kind, word)
        if any(isinstance(s, t.Attach) for r in rule.all(t.Rewrite) for s in r.steps):
            self._provide("observers")
        if outdates_observers(rule, self.attached):
            self._undo("calibrated", ref.rule)
        for clause in (c for c in rule.all(t.Train) if c.names):
            self._undo("trained", ref.rule)
            self._owe(ref, clause.span)

    def _owe(self, ref: t.Ref, span: Span) -> None:
        """One training is enough for all that a rule leaves untrained."""
        if all(other is not ref for other, _ in self.owed):
            self.owed.append((ref, span))

    def _observed(self, ref: t.Ref, rule: t.Rule) -> None:
        """A rule that reads what an observer recorded needs a calibration before it."""
        read = reads_observers(rule, self.attached)
        if read is not None and "calibrated" not in self.facts:
            self._missing(ref, "calibrated", read.span)

    def _fact(self, ref: t.Ref, kind: str, word: t.Word) -> None:
        name = word.text
        if kind == "provides":
            self._provide(name)
        elif kind == "invalidates":
            self._undo(name, ref.rule)
        elif kind == "forbids":
            self._forbid(ref, name, word.span)
        elif kind == "needs" and name == LATER:
            self._owe(ref, word.span)
        elif kind == "needs" and name not in self.facts:
            self._missing(ref, name, word.span)

    def _forbid(self, ref: t.Ref, name: str, span: Span) -> None:
        places = Label(ref.rule.span, "used here"), Label(span, "forbidden here")
        if name in self.facts:
            self.report.error("F001", f"`{ref.rule}` forbids `{name}`, which holds here", *places)
        elif name not in self._known():
            message = f"`{ref.rule}` forbids `{name}`, which nothing ever provides"
            guess = next(iter(did_you_mean(name, self._known())), "")
            help = guess or "a pipeline forbids ops: `verify { forbids OP }`"
            self.report.warn("F001", message, *places, help=help)

    def _known(self) -> frozenset[str]:
        return KNOWN | {fact for r in self.rules.values() for fact in _provided(r)}

    def _missing(self, ref: t.Ref, name: str, span: Span) -> None:
        if (ref.span, name) in self.told:
            return
        self.told.add((ref.span, name))
        labels = [Label(ref.rule.span, "used here"), Label(span, "needed here")]
        if name in self.undone:
            labels.append(Label(self.undone[name].span, "undone here"))
        providers = [r.name.text for r in self.rules.values() if name in _provided(r)]
        help = f"run `{providers[0]}` before it" if providers else ""
        help = help or {"calibrated": "add `calibrate DATA` before it"}.get(name, "")
        help = help or next(iter(did_you_mean(name, self._known() - {name})), "")
        message = f"`{ref.rule}` needs `{name}`, which does not hold here"
        self.report.error("F001", message, *labels, help=help)

    def _provide(self, name: str) -> None:
        self.facts.add(name)
        self.undone.pop(name, None)

    def _undo(self, name: str, word: t.Word) -> None:
        if name in self.facts:
            self.facts.discard(name)
            self.undone[name] = word

    def _verify(self, verify: t.Verify) -> None:
        needs = [f for f in verify.items if isinstance(f, t.Fact) and f.kind == "needs"]
        for word in (w for f in needs for w in f.names if w.text not in self.facts):
            message = f"`verify` needs `{word}`, which does not hold here"
            self.report.error("F001", message, Label(word.span, "needed here"))


def _provided(rule: t.Rule) -> set[str]:
    return {word.text for f in facts(rule) if f.kind == "provides" for word in f.names}


def _changes(rule: t.Rule) -> bool:
    return any(c.steps for c in rule.all(t.Rewrite)) or any(c.moves for c in rule.all(t.Perturb))


def has_budget(pipeline: t.Pipeline) -> bool:
    """Whether a pipeline limits the error of what it does."""
    claims = [c for v in pipeline.all(t.Verify) for c in v.items if isinstance(c, t.Claim)]
    return bool(pipeline.all(t.Budget)) or any(map(is_budget, claims))
