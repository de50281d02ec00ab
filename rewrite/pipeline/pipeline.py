"""Runs a pipeline: stages in order, each checked as a whole and rolled back where it breaks what
was asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from ...grammar.checks.recovers import is_stream
from ...grammar.checks.unsupported import unsupported_steps
from ...grammar.diagnostics import Label, LissomError, fail
from ...grammar.library.program import Program
from ...grammar.tree import tree as t
from ...grammar.tree.clauses import outdates_observers, over_ops, refs_of
from ...grammar.tree.rules import RULE_KINDS
from ..apply.cost import present_costs
from ..apply.faulty_sites import stage_equality, undo
from ..graph.digest import weights_at
from ..graph.snapshot import finish, snapshot
from ..journal import PROMISES, Applied, Costs, Note, StageEnd, Verdict, VerdictKind
from ..measure.compare import DRIFT, Metrics, checked, runs_at, untouched
from ..measure.observing import forget_seen
from ..measure.samples import Samples
from ..rules.rule import CompiledRule, compile_rule
from ..rules.state import State, sample_count
from .budgets import Measures
from .orders import ORDERS
from .promises import Promises
from .remarks import half_types, tell_of_costs, tell_of_silence, tell_of_slow_types
from .schedule import HostParts, Schedule
from .stages import implicit_stages
from .strategy import Runner

Progress = Callable[[str, int, int], None]


@dataclass
class PipelineRun:
    """One run of one pipeline over a state. `args` override the pipeline's parameters."""

    state: State
    program: Program
    source: t.Pipeline | None
    metrics: Metrics
    args: Mapping[str, Any] = field(default_factory=dict)
    progress: Progress = lambda stage, done, total: None
    allow: frozenset[str] = frozenset(RULE_KINDS)
    given: HostParts = field(default_factory=HostParts)
    begun: int = 0
    judged: bool = True

    def run(self) -> None:
        """Runs every stage, then the checks of `verify`."""
        self._refuse_later_parts()
        self.measures = Measures(self.state, self.program, self.metrics, self.names)
        if self.source is not None:
            self.measures.require_counted(self.source)
            self.measures.require_units(self.source)
        self.define_data()
        self.promises = Promises(self.source, self.state, self.measures)
        types = half_types(self.state.module)
        schedule = self._schedule()
        schedule.run(self._blocks())
        self.controls = schedule.controls
        tell_of_silence(self.state.journal)
        tell_of_costs(self.state.journal)
        tell_of_slow_types(self.state.journal, half_types(self.state.module) - types)
        self.final = self.promises.final()

    def _schedule(self) -> Schedule:
        return Schedule(
            self.state, self.program, self.source, self.measures, self.metrics, self.given,
            self._stage, self.promises.budgets, self._fail, self._teller,
        )  # fmt: skip

    # -- what the program says ---------------------------------------------------------------------

    @property
    def names(self) -> dict[str, Any]:
        if self.source is None:
            return {}
        declared = {
            p.name.text: p.default.value for p in self.source.params if hasattr(p.default, "value")
        }
        return {**declared, **self.args}

    def _refuse_later_parts(self) -> None:
        if self.source is None:
            return
        named = {ref.rule.text: ref.rule for ref in t.walk(self.source) if isinstance(ref, t.Ref)}
        ops = {name for name, word in named.items() if over_ops(self.program.rule(word))}
        for refused in unsupported_steps(self.source, named.keys() - ops, ops):
            raise LissomError(refused)

    def define_data(self) -> None:
        """Gives the data statements of the program their samples."""
        with torch.random.fork_rng(devices=[]):  # what loaders draw is drawn on from there
            for item in self.source.all(t.Data) if self.source is not None else ():
                _define(item, self.state.samples)

    def _blocks(self) -> Sequence[t.BlockItem]:
        return implicit_stages(self.program) if self.source is None else self.source.blocks

    @property
    def on_fail(self) -> str:
        items = self.source.all(t.OnFail) if self.source is not None else ()
        return items[0].policy.text if items else "rollback"

    # -- one stage ---------------------------------------------------------------------------------

    def _teller(self, stage: str) -> Callable[[str], None]:
        """What a long stage is at: seconds pass between one place and the next."""
        number, total = self.begun, len(self._blocks())
        self.progress(stage, number, max(total, number + 1))
        self.begun += 1
        return lambda text: self.progress(f"{stage}: {text}", number, max(total, number + 1))

    def _stage(self, stage: t.Stage, judged: bool, progress: Callable[[str], None]) -> None:
        begun, self.judged = time.perf_counter(), judged
        entry, start = snapshot(self.state.module), len(self.state.journal.events)
        weights = weights_at(entry)
        before = present_costs(self.state)
        while True:
            barred = len(self.state.barred)
            runner = Runner(self.state, stage.name.text, progress=progress)
            verdicts = self._steps_checked(stage, runner, start, entry, weights)
            if barred == len(self.state.barred):
                break
            undo(self.state, entry, start)  # once more, without the sites that a kernel stains
        broken = next((v for v in verdicts if not v.holds), None)
        self._end(stage, broken is None, before, verdicts, begun, broken)
        if broken is not None:
            self._fail(stage.name, entry, broken)

    def _steps_checked(
        self,
        stage: t.Stage,
        runner: Runner,
        start: int,
        entry: fx.GraphModule,
        weights: Mapping[str, tuple[int, int]],
    ) -> tuple[Verdict, ...]:
        for step in stage.steps:
            self._step(runner, step)
        self.state.samples.forget()
        applied = [e for e in self.state.journal.events[start:] if isinstance(e, Applied)]
        if not applied:
            return ()
        finish(self.state.module)
        return self._check_stage(entry, applied, weights)

    def _end(
        self,
        stage: t.Stage,
        kept: bool,
        before: Costs,
        verdicts: tuple[Verdict, ...],
        begun: float,
        broken: Verdict | None = None,
    ) -> None:
        after = present_costs(self.state)
        reason = "" if broken is None else f"`{broken.claim}` does not hold: {broken.detail}"
        seconds = time.perf_counter() - begun
        self.state.journal.add(
            StageEnd(stage.name.text, kept, before, after, verdicts, seconds, {}, reason)
        )

    def _fail(self, stage: t.Word, entry: fx.GraphModule, broken: Verdict) -> None:
        """An exact stage that is not equal is a bug and always an error; a broken budget follows
        `on_fail`.
        """
        if broken.kind in PROMISES or self.on_fail == "stop":
            place = Label(stage.span, "this stage")
            raise fail(
                "V102",
                f"stage `{stage}` breaks what was promised",
                place,
                note=f"{broken.claim}: {broken.detail}",
            )
        self.state.reset(entry)

    def _check_stage(
        self,
        entry: fx.GraphModule,
        applied: Sequence[Applied],
        weights: Mapping[str, tuple[int, int]],
    ) -> tuple[Verdict, ...]:
        if not self.state.verify:
            return ()
        renewed = {path for event in applied for path in event.renewed}
        others = {path: known for path, known in weights.items() if path not in renewed}
        kept = untouched(others, weights_at(self.state.module))
        asked = [lambda: self._outputs_kept(entry, applied)]
        asked += [self.promises.budgets] if self.judged else []
        with self.measures.of_one_model():
            return (kept, *checked(self.state.module, *asked))

    def _outputs_kept(
        self, entry: fx.GraphModule, applied: Sequence[Applied]
    ) -> tuple[Verdict, ...]:
        """Equality after exact rules alone, drift after others."""
        state = self.state
        if all(state.journal.kinds[event.rule] == "exact" for event in applied):
            return (stage_equality(state, entry, applied),)
        apart, seen, kind = self.measures.calibrated(), sample_count(state), VerdictKind.DRIFT
        moved = Verdict(DRIFT, "tested", True, seen, apart, None, "relative L2", kind=kind)
        others = state.samples.others
        return (runs_at(entry, state.module, others), moved) if others else (moved,)

    # -- steps -------------------------------------------------------------------------------------

    def _step(self, runner: Runner, step: t.Step) -> int:
        done = self._rewriting(runner, step)
        if done:
            self._outdate(refs_of(step))
        return done

    def _outdate(self, refs: Sequence[t.Ref]) -> None:
        """What observers saw counts no more once other numbers flow."""
        attached = self.program.attached
        if any(outdates_observers(self.program.rule(ref.rule), attached) for ref in refs):
            forget_seen(self.state.module.graph)

    def _rewriting(self, runner: Runner, step: t.Step) -> int:
        if isinstance(step, t.Once):
            return runner.once(self._rules(step.refs))
        if isinstance(step, t.Fixpoint):
            return runner.fixpoint(self._rules(step.refs), step.limit)
        if isinstance(step, t.Each):
            return self._each(runner, step)
        if isinstance(step, t.First):
            return next((n for inner in step.steps if (n := self._step(runner, inner))), 0)
        if isinstance(step, t.Calibrate):
            return runner.calibrate(step)
        return self._try(runner, step)

    def _try(self, runner: Runner, step: t.Try) -> int:
        """All of the steps, or none of them if one changes nothing."""
        entry = snapshot(self.state.module)
        mark, applied = len(self.state.journal.events), runner.applied
        done = [self._step(runner, inner) for inner in step.steps]
        if all(done):
            return sum(done)
        self.state.reset(entry)
        self.state.samples.forget()
        runner.applied = applied
        kept = [e for e in self.state.journal.events[mark:] if not isinstance(e, Applied)]
        self.state.journal.events[mark:] = kept
        return 0

    def _each(self, runner: Runner, step: t.Each) -> int:
        rules = self._rules((step.ref,))
        if not rules:
            return 0
        order = step.order.text if isinstance(step.order, t.Name) else "saving"
        if order not in ORDERS:
            raise fail(
                "R009",
                f"sites cannot be ordered by `{order}`",
                Label(step.span),
                help=f"one of {', '.join(ORDERS)}",
            )
        until = step.until
        reached = (lambda: False) if until is None else (lambda: bool(self.measures.ask(until)[2]))
        broken = self.promises.broken if self.judged else (lambda: None)
        return runner.each(rules[0], ORDERS[order], reached, broken)

    def _rules(self, refs: Sequence[t.Ref]) -> list[CompiledRule]:
        scope = self.measures.scope(None)
        found = []
        for order, ref in enumerate(refs):
            source = self.program.rule(ref.rule)
            given = {k.name.text: scope.number(k.value) for k in ref.keywords}
            names = [p.name.text for p in source.params]
            given |= dict(zip(names, (scope.number(a) for a in ref.args), strict=False))
            declared = self.program.declarations
            rule = compile_rule(source, given, ref.at, order, self.state.functions, declared)
            self.state.journal.kinds[rule.label] = rule.kind
            if source.kind in self.allow:
                self.state.journal.tried[rule.label] += 0
                found.append(rule)
            else:
                text = f"{rule.label} is {rule.kind} and was not allowed"
                hint = "`allow` names the kinds that are applied"
                self.state.journal.add(Note("", "W701", f"{text}; {hint}"))
        return found


def _define(item: t.Data, samples: Samples) -> None:
    """`sample("train", 512)`, `sample("test", all)` or `stream("train")`."""
    name, call, place = item.name.text, item.value, Label(item.span)
    args = call.args if isinstance(call, t.Call) else ()
    split = args[0].value if args and isinstance(args[0], t.String) else None
    if split is not None and len(args) == 1 and is_stream(item):
        samples.define_stream(name, split, place)
    elif split is not None and len(args) == 2 and not is_stream(item):
        count = int(args[1].value) if isinstance(args[1], t.Number) else None
        samples.define(name, split, count, place)
    else:
        hint = 'sample("train", 512), sample("test", all) or stream("train")'
        message = "data is a sample or a stream of a split"
        raise fail("D005", message, Label(item.value.span), help=hint)
