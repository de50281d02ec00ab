"""What runs in which order: stages, trainings, rounds of them, and controls beside them.

Budgets speak of the model that is left: what stages in front of a `recover` take, it may give back.
So they are judged behind it, and where one breaks all of that is taken back together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import fx, nn

from ...grammar.checks.recovers import split_of
from ...grammar.diagnostics import Label, fail
from ...grammar.library.program import Program
from ...grammar.tree import tree as t
from ..apply.cost import present_costs
from ..graph.snapshot import finish, snapshot
from ..journal import PROMISES, Applied, Note, StageEnd, Trained, Verdict
from ..measure.compare import Metrics
from ..rules.state import State
from ..train.augment import changes_of
from ..train.optimizers import optimizer_class, rate_of
from ..train.recover import Recovery, TrainingHost
from ..train.rewind import Recorded, recorded, redraw, rewind, seed_of
from ..train.settings import Settings, read_settings
from .budgets import Measures
from .other_models import Build, Models, OtherModels, student
from .thresholds import fit_exits

ROUNDS = 100
"""Rounds of a `repeat` that says nothing else."""


@dataclass(frozen=True)
class HostParts:
    """What the host program adds to a program that trains. models: functions that build models, by
    the names that programs use; folder: where the files lie that programs name; checkpoints: where
    trainings write how far they came, None for nowhere.
    """

    models: Models = field(default_factory=dict)
    folder: Path = field(default_factory=Path.cwd)
    checkpoints: Path | None = None


@dataclass
class Schedule:
    """Runs the blocks of a pipeline. stage: runs one stage, judging budgets or not; fail: what
    happens where something does not hold: it raises, or takes back. progress: of a stage.
    """

    state: State
    program: Program
    source: t.Pipeline | None
    measures: Measures
    metrics: Metrics
    given: HostParts
    stage: Callable[[t.Stage, bool, Callable[[str], None]], None]
    budgets: Callable[[], tuple[Verdict, ...]]
    fail: Callable[[t.Word, fx.GraphModule, Verdict], None]
    progress: Callable[[str], Callable[[str], None]]
    rounds: list[str] = field(default_factory=list)
    checkpoints: dict[str, Recorded] = field(default_factory=dict)
    taught: dict[str, fx.GraphModule] = field(default_factory=dict)
    controls: dict[str, fx.GraphModule] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.others = OtherModels(self.state, self.given.models)

    def run(self, blocks: Sequence[t.BlockItem]) -> None:
        """Runs them in order. What is wrong with a training is said before anything runs."""
        self._check(blocks)
        self._blocks(blocks, in_round=False)

    # -- settings ----------------------------------------------------------------------------------

    @property
    def _splits(self) -> dict[str, str]:
        items = self.source.all(t.Data) if self.source is not None else ()
        return {item.name.text: split_of(item) for item in items}

    def _number(self, expr: t.Expr) -> Any:
        return self.measures.scope(None).number(expr)

    def _settings(self, item: t.Recover) -> Settings:
        return read_settings(item, self._number, self._splits)

    def _check(self, blocks: Sequence[t.BlockItem]) -> None:
        for item in blocks:
            if isinstance(item, t.Recover):
                settings = self._settings(item)
                optimizer_class(settings.optimizer)
                rate_of(settings.schedule)
                changes_of(settings.augment)
            elif isinstance(item, t.Repeat):
                with _Variable(self, item, self._values(item)[:1]):
                    self._check(item.items)
            elif isinstance(item, t.Control):
                self._check(item.items)
            elif isinstance(item, t.Rewind) and isinstance(item.target, t.Call):
                seed_of(item.target, self._number)

    def _values(self, item: t.Repeat) -> list[Any]:
        """What the variable of a repeat takes, one after another."""
        found = [] if item.over is None else self._number(item.over)
        if not isinstance(found, (list, tuple)):
            label = Label(item.over.span)  # type: ignore[union-attr]
            hint = "repeat bits in [8, 6, 4] { ... }, or repeat max 3 { ... }"
            raise fail("T001", "`repeat` goes through a list", label, help=hint)
        return list(found)

    # -- blocks ------------------------------------------------------------------------------------

    def _blocks(self, blocks: Sequence[t.BlockItem], in_round: bool) -> bool:
        """Whether all of it was kept. A round ends where something was not; a pipeline goes on."""
        entry, mark, pending = self._stand(), len(self._events), False
        for at, item in enumerate(blocks):
            if not pending:
                entry, mark = self._stand(), len(self._events)
            later = any(isinstance(other, t.Recover) for other in blocks[at + 1 :])
            pending = self._block(item, later) or pending
            if isinstance(item, t.Recover):
                self._settle(item, entry, mark, in_round)
            if in_round and not self._is_kept(item):
                return False
            pending = pending and not isinstance(item, t.Recover)
        return True

    def _is_kept(self, item: t.BlockItem) -> bool:
        """False for a stage or a training that has just been taken back."""
        ends = (e for e in reversed(self._events) if isinstance(e, StageEnd))
        return not isinstance(item, (t.Stage, t.Recover)) or next(ends).kept

    def _block(self, item: t.BlockItem, later: bool) -> bool:
        """Runs one; whether it is still to be judged, behind a later training."""
        if isinstance(item, t.Stage):
            return self._stage(item, later)
        if isinstance(item, t.Recover):
            self._recover(item)
        elif isinstance(item, t.Repeat):
            self._repeat(item)
        elif isinstance(item, t.Control):
            self._control(item)
        elif isinstance(item, t.Checkpoint):
            self.checkpoints[item.name.text] = recorded(self.state)
        elif isinstance(item, t.ExitOn):
            fit_exits(self.state, self.measures, item)
        else:
            self._rewind(item)
        return False

    def _stage(self, item: t.Stage, later: bool) -> bool:
        """A stage of exact rules alone has nothing to be given back."""
        refs = (ref for ref in t.walk(item) if isinstance(ref, t.Ref))
        waits = later and any(self.program.rule(ref.rule).kind == "approx" for ref in refs)
        named = t.replace(item, name=self._named(item.name))
        self.stage(named, not waits, self.progress(named.name.text))
        return waits

    def _named(self, word: t.Word) -> t.Word:
        """A stage has a name of its own in every round."""
        return t.Word(" ".join((word.text, *self.rounds)), span=word.span)

    # -- training ----------------------------------------------------------------------------------

    def _recover(self, item: t.Recover) -> None:
        label = self._named(item.name)
        before = present_costs(self.state)
        settings = self._settings(item)
        if settings.student is not None:
            self._take_student(settings.student)
        around = TrainingHost(
            self.metrics, self._models(), self._number, self.given.folder,
            self.given.checkpoints, self._ends,
        )  # fmt: skip
        event = Recovery(self.state, settings, around, label.text).run(self.progress(label.text))
        finish(self.state.module)
        self.taught[item.name.text] = snapshot(self.state.module)
        after = present_costs(self.state)
        self._events.append(
            StageEnd(label.text, True, before, after, event.verdicts, event.seconds, {})
        )

    def _models(self) -> Mapping[str, Build]:
        """Who may teach: the original, what was trained before, models of the host program."""
        original, held = self.metrics.original, {n: _made(g) for n, g in self.taught.items()}
        return {**self.others.builds(), **held, "original": _made(original)}

    def _take_student(self, expr: t.Expr) -> None:
        graph = student(expr, self._models(), self.metrics, self.state)
        self.state.reset(graph)
        self.state.samples.forget()

    def _ends(self, settings: Settings, values: Mapping[str, float]) -> bool:
        assert settings.until is not None
        found = self.measures.scope(None).child(dict(values)).number(settings.until)
        if not isinstance(found, bool):
            label = Label(settings.until.span, f"this is {found}")
            hint = f"compare it: until {settings.until.span.flat} >= 98%"
            raise fail("T001", "`until` is a condition", label, help=hint)
        return found

    def _settle(self, item: t.Recover, entry: fx.GraphModule, mark: int, in_round: bool) -> None:
        """Judges budgets behind a training; where one breaks, all since `entry` is taken back. What
        is a bug if it does not hold is an error in a round, too.
        """
        *_, end = self._events
        assert isinstance(end, StageEnd)
        with self.measures.of_one_model():
            found = (*end.verdicts, *(self.budgets() if self.state.verify else ()))
        self._events[-1] = replace(end, verdicts=found)
        broken = next((verdict for verdict in found if not verdict.holds), None)
        if broken is None:
            return
        self._back(entry, mark, f"`{broken.claim}` does not hold: {broken.detail}")
        if not in_round or broken.kind in PROMISES:
            self.fail(item.name, entry, broken)

    # -- rounds ------------------------------------------------------------------------------------

    def _repeat(self, item: t.Repeat) -> None:
        values = self._values(item)
        limit = ROUNDS if item.limit is None else item.limit
        most = limit if item.over is None else len(values)
        for number in range(min(most, limit)):
            if item.until is not None and self.measures.ask(item.until)[2]:
                return
            with _Variable(self, item, values[number : number + 1]):
                ended = self._round(item, number + 1)
            if ended:
                self._note(item, ended)
                return
        if not min(most, limit):
            self._note(item, "it has no round")
        elif item.until is not None and not self.measures.ask(item.until)[2]:
            self._note(item, f"`{item.until.span.flat}` was not reached in {most} rounds")

    def _round(self, item: t.Repeat, number: int) -> str:
        """Why no further round follows; "" if one may."""
        entry, mark = self._stand(), len(self._events)
        self.rounds.append(str(number))
        try:
            held = self._blocks(item.items, in_round=True)
        finally:
            self.rounds.pop()
        if not held:
            *_, broken = (e.reason for e in self._events[mark:] if isinstance(e, StageEnd))
            self._back(entry, mark, broken)
            kept = "the round before is what is kept"
            return f"round {number} broke what was asked ({broken}); {kept}"
        fired = any(isinstance(e, Applied) for e in self._events[mark:])
        has_stage = any(isinstance(inner, t.Stage) for inner in item.items)
        idle = has_stage and not fired and item.over is None
        return f"no rule changed anything in round {number}" if idle else ""

    def _note(self, item: t.Repeat, text: str) -> None:
        self.state.journal.add(Note("", "W707", f"the repeat at line {item.span.line}: {text}"))

    # -- beside and back ---------------------------------------------------------------------------

    def _control(self, item: t.Control) -> None:
        """On the model as it is now; afterwards the pipeline goes on as if nothing had been."""
        entry, mark = self._stand(), len(self._events)
        known = dict(self.checkpoints), dict(self.taught)
        self.rounds.append(item.name.text)
        try:
            self._blocks(item.items, in_round=True)
        finally:
            self.rounds.pop()
        self.checkpoints, self.taught = known
        self.controls[item.name.text] = self._stand()
        best = [e for e in self._events[mark:] if isinstance(e, Trained)]
        said = f"`{item.name}` ran beside the pipeline, with {len(best)} trainings"
        self._back(entry, mark, f"a control: {said}")
        self.state.journal.add(Note("", "W708", said))

    def _rewind(self, item: t.Rewind) -> None:
        target = item.target
        if isinstance(target, t.Name) and target.text in self.checkpoints:
            rewind(self.state, self.checkpoints[target.text], target.span)
            return
        if not isinstance(target, t.Call):
            message = f"there is no checkpoint `{target.span.text}`"
            raise fail("N001", message, Label(target.span))
        redraw(self.state, seed_of(target, self._number), target.span)

    @property
    def _events(self) -> list[Any]:
        return self.state.journal.events

    def _stand(self) -> fx.GraphModule:
        return snapshot(self.state.module)

    def _back(self, entry: fx.GraphModule, mark: int, reason: str) -> None:
        """The model as it was, and the journal says that what came since is no part of it."""
        self.state.reset(entry)
        self.state.samples.forget()
        for at in range(mark, len(self._events)):
            event = self._events[at]
            if isinstance(event, StageEnd) and event.kept:
                self._events[at] = replace(event, kept=False, reason=reason)


def _made(graph: nn.Module) -> Build:
    return lambda: graph  # type: ignore[return-value]


@dataclass
class _Variable:
    """While it is entered, the variable of a repeat has a value."""

    schedule: Schedule
    item: t.Repeat
    values: list[Any]

    def __enter__(self) -> None:
        names = self.schedule.measures.names
        self.before = dict(names)
        if self.item.name is not None and self.values:
            self.schedule.measures.names = {**names, self.item.name.text: self.values[0]}

    def __exit__(self, *error: object) -> None:
        self.schedule.measures.names = self.before
