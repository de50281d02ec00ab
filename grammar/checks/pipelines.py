"""Names in pipelines: rules and their arguments, data, words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from ..diagnostics import Label
from ..text.references import references
from ..tree import tree as t
from ..tree.clauses import claims, refs_of
from .arguments import check_argument, pair
from .declared import SymbolTable
from .facts import has_budget, steps_of
from .kind import ANY, Kind
from .kinds import Kinds
from .names import WORDS, RuleNames
from .operations import guess_op
from .recovers import NUMBERS, TEST, check_recover, is_stream, split_of
from .report import Messages
from .sides import Sides
from .structure import is_budget

ORDERS = frozenset(("saving", "macs", "sensitivity", "latency"))
POLICIES = frozenset(("rollback", "stop", "keep"))
MODES = frozenset(("eval", "train"))
DRAWN = "drawn"
"""`rewind drawn(seed = 1)`: to weights that each layer draws anew."""


@dataclass(slots=True)
class Pipelines:
    """The names of one pipeline."""

    pipeline: t.Pipeline
    rules: Mapping[str, t.Rule]
    known: SymbolTable
    report: Messages
    data: dict[str, t.Word] = field(default_factory=dict)
    checkpoints: set[str] = field(default_factory=set)
    loops: list[str] = field(default_factory=list)

    def run(self) -> None:
        for item in self.pipeline.all(t.Data, t.Input):
            self._bind(item.name)
        for item in self.pipeline.items:
            _ITEMS[type(item)](self, item)

    def _bind(self, word: t.Word) -> None:
        first = self.data.setdefault(word.text, word)
        if first is not word:
            places = Label(word.span, "declared again"), Label(first.span, "declared here")
            self.report.error("N003", f"`{word}` is declared twice", *places)

    def nothing(self, item: t.PipelineItem) -> None:
        """Inputs bind a name and use none but sizes."""

    def sample(self, item: t.Data) -> None:
        self._uses(item.value, ())

    def budget(self, item: t.Budget) -> None:
        self._uses(item.condition, ())
        self._on(item.data)

    def verify(self, item: t.Verify) -> None:
        for claim in (c for c in item.items if isinstance(c, t.Claim)):
            self._uses(claim.condition, ())
            self._on(claim.data)
        facts = (f for f in item.items if isinstance(f, t.Fact) and f.kind == "forbids")
        for word in (word for fact in facts for word in fact.names):
            if not self.known.is_op(word.text):
                message = f"`verify` forbids the op `{word}`, which is not declared"
                label = Label(word.span, "no op has this name")
                help = guess_op(word.text, self.known) or "ops are declared with `op NAME(...)`"
                self.report.error("T003", message, label, help=help)

    def recover(self, item: t.Recover) -> None:
        check_recover(item, self.splits, self.report)
        valid = item.setting("valid")
        if valid is not None or "valid" in self.data:
            self._held(
                "valid" if valid is None else valid.span.text, Label((valid or item.name).span)
            )
        for setting in item.settings:
            self._setting(setting)

    def _setting(self, setting: t.Binding | t.Until) -> None:
        """Numbers may follow from parameters of the pipeline; other settings have words of their
        own.
        """
        if isinstance(setting, t.Binding) and setting.targets[0].text in NUMBERS:
            self._uses(setting.value, ())

    @property
    def splits(self) -> dict[str, str]:
        """The split of each `data` statement."""
        found = self.pipeline.all(t.Data)
        return {item.name.text: split_of(item) for item in found}

    def repeat(self, item: t.Repeat) -> None:
        if item.over is not None:
            self._uses(item.over, ())
        if item.name is not None:
            self.loops.append(item.name.text)
        self._blocks(item.items)
        if item.until is not None:
            self._uses(item.until, ())
        if item.name is not None:
            self.loops.pop()

    def control(self, item: t.Control) -> None:
        """Checkpoints inside of a control are its own."""
        known = set(self.checkpoints)
        self._blocks(item.items)
        self.checkpoints = known

    def _blocks(self, items: Iterable[t.BlockItem]) -> None:
        for item in items:
            _ITEMS[type(item)](self, item)

    def checkpoint(self, item: t.Checkpoint) -> None:
        self.checkpoints.add(item.name.text)

    def rewind(self, item: t.Rewind) -> None:
        target, known = item.target, self.checkpoints
        if isinstance(target, t.Call) and target.function.span.text == DRAWN:
            for given in (*target.args, *(keyword.value for keyword in target.keywords)):
                self._uses(given, ())
        elif not isinstance(target, t.Name) or target.text not in known:
            label = Label(target.span, f"known: {', '.join(sorted(known)) or 'none'}")
            message = f"there is no checkpoint `{target.span.text}` in front of this"
            self.report.unknown("N001", message, label, target.span.text, known)

    def exit_on(self, item: t.ExitOn) -> None:
        """Thresholds are chosen: on data that nothing is reported on."""
        self._on(item.data)
        for name, span, called in references(item.condition):  # other names are metrics
            if called:
                self._function(name, Label(span, "no extern function has this name"))
        if self.splits.get(item.data.text) == TEST:
            message = "thresholds are chosen on the test split, and then the test says nothing"
            self.report.error("F003", message, Label(item.data.span, "this is a sample of `test`"))

    def on_fail(self, item: t.OnFail) -> None:
        self._one_of(item.policy, POLICIES, "what to do on failure")

    def mode(self, item: t.Mode) -> None:
        self._one_of(item.name, MODES, "a mode")

    def stage(self, stage: t.Stage) -> None:
        for step in steps_of(stage.steps):
            if isinstance(step, t.Calibrate):
                self._on(step.data)
            if isinstance(step, t.Each):
                self._each(step)
            for ref in refs_of(step):
                self._ref(ref)

    def _each(self, step: t.Each) -> None:
        if step.order is not None:
            self._order(step.order)
        if step.until is not None:
            self._uses(step.until, ())

    def _order(self, order: t.Expr) -> None:
        name = order.text if isinstance(order, t.Name) else ""
        if name not in ORDERS:
            label = Label(order.span, f"known: {', '.join(sorted(ORDERS))}")
            message = f"sites cannot be ordered by `{order.span.text}`"
            self.report.unknown("R009", message, label, name, ORDERS)

    def _ref(self, ref: t.Ref) -> None:
        rule = self.rules.get(ref.rule.text)
        if rule is None:
            label = Label(ref.rule.span, "no rule has this name")
            message = f"the rule `{ref.rule}` does not exist"
            self.report.unknown("N001", message, label, ref.rule.text, self.rules)
            return
        self._arguments(ref, rule)
        self._data_of(ref, rule)
        unlimited = rule.kind == "approx" and not any(map(is_budget, claims(rule)))
        if unlimited and not has_budget(self.pipeline):
            places = Label(ref.rule.span, "used here"), Label(rule.name.span, "without a budget")
            message = f"nothing limits the error of `{rule.name}` in this pipeline"
            help = f"add `budget drift(outputs) <= 5%`{self._metric_budget()}"
            self.report.error("X002", message, *places, help=help)

    def _metric_budget(self) -> str:
        """A metric on data to choose by; the test split is for the one number at the end."""
        splits = {d.name.text: d.value.span.text for d in self.pipeline.all(t.Data)}
        fit = [name for name, split in splits.items() if '"test"' not in split]
        metric = f"`budget drop(METRIC) <= 1% on {fit[-1]}`" if fit else ""
        return f", or {metric} with a metric of the model file" if fit else ""

    def _arguments(self, ref: t.Ref, rule: t.Rule) -> None:
        names = [p.name.text for p in rule.params]
        for keyword in ref.keywords:
            if keyword.name.text not in names:
                shown = ", ".join(names) or "none"
                label = Label(keyword.name.span, f"known: {shown}")
                message = f"`{rule.name}` has no parameter `{keyword.name}`"
                self.report.unknown("T004", message, label, keyword.name.text, names)
        if len(ref.args) > len(names):
            places = Label(ref.args[len(names)].span, "one too many"), Label(rule.name.span)
            message = f"`{rule.name}` takes {len(names)} arguments, not {len(ref.args)}"
            self.report.error("T004", message, *places)
        bound, missing = pair(rule.params, ref.args, ref.keywords)
        for param in missing:
            places = Label(ref.span, "used here"), Label(param.span, "has no default")
            message = f"`{rule.name}` lacks its argument `{param.name}`"
            self.report.error("T004", message, *places)
        for param, expr in bound:
            self._uses(expr, ())
            check_argument(self.report, param, expr, self._kind(expr), "", rule.name.text)

    def _kind(self, expr: t.Expr) -> Kind:
        """The kind of an argument; parameters of the pipeline count as anything."""
        rule = t.Rule("exact", self.pipeline.name, (), (), span=self.pipeline.span)
        kinds = Kinds(RuleNames(), Sides(rule), self.known, Messages())
        return ANY if isinstance(expr, t.Name) else kinds.expr(expr, "where")

    def _data_of(self, ref: t.Ref, rule: t.Rule) -> None:
        for claim in claims(rule):
            if claim.data is not None and claim.data.text not in self.data:
                places = Label(ref.rule.span, "used here"), Label(claim.data.span, "measured here")
                message = f"`{rule.name}` is measured on `{claim.data}`, which the pipeline lacks"
                help = f'add `data {claim.data} = sample("train", 512)`'
                self.report.error("F001", message, *places, help=help)
            if claim.data is not None:
                self._held(claim.data.text, Label(ref.rule.span, "measures on it"))

    # -- uses

    def _held(self, name: str, label: Label) -> None:
        """Refuses a stream where data has to be in memory."""
        streams = (item for item in self.pipeline.all(t.Data) if is_stream(item))
        if any(item.name.text == name for item in streams):
            message = f"`{name}` is a stream, and only training reads one"
            help = 'declare samples beside it: `data some = sample("train", 1024)`'
            self.report.error("D009", message, label, help=help)

    def _on(self, word: t.Word | None) -> None:
        if word is not None and word.text not in self.data:
            label = Label(word.span, "no `data` has this name")
            message = f"`{word}` is not bound"
            self.report.unknown("N001", message, label, word.text, self.data)
        elif word is not None:
            self._held(word.text, Label(word.span))

    def _one_of(self, word: t.Word, known: Iterable[str], what: str) -> None:
        if word.text not in set(known):
            label = Label(word.span, f"known: {', '.join(sorted(known))}")
            self.report.unknown("N001", f"`{word}` is not {what}", label, word.text, known)

    def _uses(self, expr: t.Node, words: Iterable[str]) -> None:
        params = {p.name.text for p in self.pipeline.params}
        known = WORDS | set(words) | params | set(self.data) | set(self.loops)
        for name, span, called in references(expr):
            if called:
                self._function(name, Label(span, "no extern function has this name"))
            elif name not in known:
                label = Label(span, "not a parameter, data or known word")
                self.report.unknown("N001", f"`{name}` is not bound", label, name, known)

    def _function(self, name: str, label: Label) -> None:
        if self.known.extern(name) is None:
            message = f"the function `{name}` is not declared"
            self.report.unknown("N001", message, label, name, self.known.extern_names)


_ITEMS: dict[type, Callable[..., None]] = {
    t.Input: Pipelines.nothing, t.Data: Pipelines.sample, t.Budget: Pipelines.budget,
    t.Stage: Pipelines.stage, t.Recover: Pipelines.recover, t.Verify: Pipelines.verify,
    t.OnFail: Pipelines.on_fail, t.Mode: Pipelines.mode, t.Repeat: Pipelines.repeat,
    t.Control: Pipelines.control, t.Checkpoint: Pipelines.checkpoint, t.Rewind: Pipelines.rewind,
    t.ExitOn: Pipelines.exit_on,
}  # fmt: skip
