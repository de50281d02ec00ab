"""The static checker: what can be known to be wrong with a file before any model exists."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from ..algebra.symbolic import TooLarge
from ..diagnostics import Diagnostic, Label, LissomError
from ..library.program import Program
from ..tree import tree as t
from ..tree.clauses import attached_by, guard_holes
from .assumed import equations
from .costs import check_costs
from .declared import DeclaredNames, SymbolTable
from .declaring import check_declarations, check_tests
from .dropped import check_dropped
from .dtypes import check_dtypes
from .facts import FactFlow
from .frozen import check_frozen
from .guards import check_guards
from .instances import MAX_CHOICES
from .names import Names
from .operations import check_operations
from .overlap import Effort, GroupedRule, check_duplicates, check_overlap
from .pipelines import Pipelines
from .report import Messages
from .sampling import TRIES, Sampler, guards_of
from .shapes import ShapeModel, models
from .sides import Sides, sides
from .sizes import check_sizes
from .structure import check_discipline
from .termination import check_cycles, check_growth
from .unsupported import check_unsupported, check_unsupported_steps

MAX_RULE = 80
MAX_FILE = 400
"""Limits on the ops whose sizes are checked, alternatives counted each; the checker says so."""


Method = Literal["proved", "sampled", "not checked"]


def check(
    file: t.File,
    known: DeclaredNames,
    rules: Iterable[t.Rule] = (),
    used: Iterable[str] = (),
    functions: Iterable[str] = (),
) -> list[Diagnostic]:
    """Everything that is wrong with `file`, sorted by place. Never raises.

    known: the ops and functions of the library and of the files that `file` uses.
    rules: the rules that these files provide, for pipelines to name.
    used: the dotted names of the `use` statements that the caller has resolved.
    functions: names of functions that the host program gives.
    """
    names = SymbolTable(file, known)
    foreign = {rule.name.text: rule for rule in rules}
    checker = Checker(file, names, foreign, {*functions, *names.own_externs})
    checker.run(set(used))
    found = [*checker.report.found, *dict.fromkeys(names.broken)]
    return sorted(found, key=lambda d: _place(d, file))


def check_program(program: Program, functions: Iterable[str] = ()) -> list[Diagnostic]:
    """Everything that is wrong with a program: its own file first, then the files that it uses.
    `functions` are those that the host program gives.

    Raises N003 where an op or function is declared twice.
    """
    known = program.declarations
    return [
        diagnostic
        for file in (program.file, *program.used)
        for diagnostic in check(file, known, _foreign(file, program), _uses(file), functions)
    ]


def require_sound(program: Program, functions: Iterable[str] = ()) -> tuple[Diagnostic, ...]:
    """The warnings about a program. Raises all that `check_program` finds where one is an error."""
    found = check_program(program, functions)
    if any(diagnostic.severity == "error" for diagnostic in found):
        raise LissomError(*found)
    return tuple(found)


def _uses(file: t.File) -> list[str]:
    """The `use` statements of a file of a program: reading it has resolved them all."""
    return [".".join(word.text for word in use.path) for use in file.all(t.Use)]


def _foreign(file: t.File, program: Program) -> list[t.Rule]:
    """The rules of the program's other files, and those of the library that the file names."""
    others = [rule for other in program.files if other is not file for rule in other.all(t.Rule)]
    own = program.own_rules
    words = [node for node in t.walk(file) if isinstance(node, t.Ref | t.Fires | t.Silent)]
    names = dict.fromkeys(node.rule.text for node in words if node.rule.text not in own)
    taken = [program.shelf.get(name) for name in names]
    return [*others, *(rule for rule in taken if rule is not None)]


def methods(file: t.File, known: DeclaredNames) -> dict[str, Method]:
    """How the shapes of each rule were compared: by normal form, by drawing sizes, or not."""
    checker = Checker(file, SymbolTable(file, known), {}, set())
    checker.run(set())
    found: dict[str, Method] = {rule.name.text: "not checked" for rule in file.all(t.Rule)}
    for model, _ in checker.built.values():
        if model.right or model.sides.aliases:
            found[model.rule.name.text] = "sampled" if model.sampled else "proved"
    return found


def _place(diagnostic: Diagnostic, file: t.File) -> tuple[bool, int, str]:
    span = diagnostic.labels[0].span if diagnostic.labels else None
    if span is None:
        return True, 0, diagnostic.code
    return span.source is not file.span.source, span.start, diagnostic.code


def _weight(rule: t.Rule, both: Sides) -> float:
    """How much work a rule is, in ops: its steps for each choice, and the size of its text."""
    choices = min(MAX_CHOICES, math.prod(len(step.ops) for step in both.left[:MAX_RULE]))
    return choices * (len(both.left) + len(both.right)) + (rule.span.end - rule.span.start) / 200


@dataclass
class Checker:
    """The passes over one file. A rule with an error in one pass is left out of the later ones."""

    file: t.File
    known: SymbolTable
    foreign: dict[str, t.Rule]
    functions: set[str]
    report: Messages = field(default_factory=Messages)
    both: dict[str, Sides] = field(default_factory=dict)
    built: dict[int, tuple[ShapeModel, Sampler]] = field(default_factory=dict)
    sound: dict[str, t.Rule] = field(default_factory=dict)
    skipped: list[t.Rule] = field(default_factory=list)
    spent: float = 0
    effort: Effort = field(default_factory=Effort)

    def run(self, used: set[str]) -> None:
        self._uses(used)
        check_declarations(self.file, self.report)
        own = self.file.all(t.Rule)
        tries = max(40, min(TRIES, 20_000 // max(1, len(own))))
        for rule in own:
            self._rule(rule, tries)
        self._say_limit()
        check_duplicates(self._with_sides(), self.known, self.report)
        rules = self.foreign | {rule.name.text: rule for rule in own}
        check_tests(self.file, rules, self.report)
        for pipeline in self.file.all(t.Pipeline):
            self._pipeline(pipeline, rules)

    def _uses(self, used: set[str]) -> None:
        for use in self.file.all(t.Use):
            dotted = ".".join(word.text for word in use.path)
            if dotted not in used:
                label = Label(use.span, "not found")
                help = f"rules and ops of a `use` stand in {dotted.replace('.', '/')}.lissom"
                message = f"no file provides `{dotted}`"
                self.report.error("N007", message, label, help=help)

    def _say_limit(self) -> None:
        if self.skipped:
            label = Label(self.skipped[0].name.span, "the first one: only names and kinds")
            count = len(self.skipped)
            rules = "a rule" if count == 1 else f"{count} rules"
            message = f"sizes, guards and costs of {rules} were not checked"
            help = (
                f"split it: {MAX_RULE} ops of a rule and {MAX_FILE} of a file are checked in full"
            )
            self.report.warn("V003", message, label, help=help)

    def _rule(self, rule: t.Rule, tries: int) -> None:
        before = self.report.errors
        both = sides(rule, self.known)
        scope = Names(rule, both, self.known, self.report).run()
        if self.report.errors == before:
            check_operations(rule, both, scope, self.known, self.report, self.attached)
            check_discipline(rule, both, self.report)
            check_dropped(rule, both, self.known, self.report)
            check_dtypes(rule, both, self.known, self.report)
            check_unsupported(rule, self.functions, self.report)
        if self.report.errors > before or self._is_open(rule):
            return
        self.sound[rule.name.text] = rule
        self.both[rule.name.text] = both
        weight = _weight(rule, both)
        if weight <= MAX_RULE and self.spent + weight <= MAX_FILE:
            self.spent += weight
            self._try_sizes(rule, both, tries)
        else:
            self.skipped.append(rule)

    def _is_open(self, rule: t.Rule) -> bool:
        """Whether a guard is missing. It may be what makes shapes fit and the rule end, so nothing
        is said of those before it is there.
        """
        for hole in guard_holes(rule):
            message = f"a guard of `{rule.name}` is left open"
            note = "sizes, costs and termination are checked once it is written"
            help = f"`lissom test {hole.span.source.name}` proposes a condition"
            self.report.warn("V004", message, Label(hole.span, "when?"), note=note, help=help)
        return bool(guard_holes(rule))

    def _try_sizes(self, rule: t.Rule, both: Sides, tries: int) -> None:
        try:
            self._sizes(rule, both, tries)
        except TooLarge:
            self.skipped.append(rule)

    def _sizes(self, rule: t.Rule, both: Sides, tries: int) -> None:
        found = models(rule, both, self.known)
        samplers = [Sampler(model, guards_of(rule), tries) for model in found]
        if not check_sizes(found, samplers, self.report):
            self.sound.pop(rule.name.text, None)
            return
        model, sampler = found[0], samplers[0]
        self.built[id(rule)] = model, sampler
        check_frozen(model, self.report)
        if check_guards(rule, sampler, self._unguarded(model, sampler), self.report):
            check_costs(rule, model, sampler, self.report)
            check_growth(rule, both, model, sampler, self.known, self.report)

    def _unguarded(self, model: ShapeModel, sampler: Sampler) -> Sampler:
        """A guard is judged without what it says itself."""
        if not equations(model.rule):
            return sampler
        bare = ShapeModel(model.rule, model.sides, model.known, model.ops, guarded=False).build()
        return Sampler(bare, sampler.guards, sampler.tries)

    @cached_property
    def attached(self) -> frozenset[str]:
        """The names under which observers record, in this file and in the rules it uses."""
        rules = [*self.foreign.values(), *self.file.all(t.Rule)]
        return frozenset(name for rule in rules for name in attached_by(rule))

    def _with_sides(self) -> Iterator[tuple[t.Rule, Sides]]:
        for name, rule in self.sound.items():
            yield rule, self.both[name]

    # -- pipelines

    def _pipeline(self, pipeline: t.Pipeline, rules: dict[str, t.Rule]) -> None:
        Pipelines(pipeline, rules, self.known, self.report).run()
        FactFlow(pipeline, rules, self.attached, self.report).run()
        check_unsupported_steps(pipeline, rules, self.report)
        for stage, step in ((s, step) for s in pipeline.inside(t.Stage) for step in s.steps):
            if isinstance(step, (t.Fixpoint, t.Once)):
                self._group(stage, step)

    def _group(self, stage: t.Stage, step: t.Fixpoint | t.Once) -> None:
        group = [entry for ref in step.refs if (entry := self._entry(ref)) is not None]
        check_overlap(stage, group, self.known, self.effort, self.report)
        if isinstance(step, t.Fixpoint):
            check_cycles(stage, group, self.built, self.report)

    def _entry(self, ref: t.Ref) -> GroupedRule | None:
        name = ref.rule.text
        rule = self.sound.get(name) or self.foreign.get(name)
        if rule is None or guard_holes(rule):
            return None
        if name not in self.both:
            self.both[name] = sides(rule, self.known)
        return GroupedRule(rule, self.both[name], ref.rule, ref.at)
