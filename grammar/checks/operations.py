"""Ops in patterns and builds against their declarations: inputs, attributes, weights, results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..diagnostics import Label, Span, nearest
from ..tree import tree as t
from .arguments import check_argument
from .declared import OpFacts, SymbolTable
from .kind import ANY, NUMBERS, TENSOR, Kind, accepts, declared_kind
from .kinds import Kinds
from .names import RuleNames
from .report import Messages
from .sides import Sides, SideStep, pattern_steps, perturbed_steps


@dataclass(slots=True)
class Operations:
    """Checks every step of a rule and every clause's expressions, in textual order."""

    rule: t.Rule
    sides: Sides
    known: SymbolTable
    report: Messages
    kinds: Kinds

    def run(self) -> None:
        self._params()
        for step in self._pattern_steps():
            self.step(step, "match")
        for clause in self.rule.all(t.MatchParam):
            self._readers(clause)
        for clause in self.rule.clauses:
            _CLAUSES.get(type(clause), lambda *_: None)(self, clause)
        for step in (*perturbed_steps(self.rule, self.known), *self.sides.right):
            self.step(step, "rewrite")

    def _pattern_steps(self) -> list[SideStep]:
        unless = [u.patterns for u in self.rule.all(t.Unless)]
        return self.sides.left + [step for patterns in unless for step in pattern_steps(patterns)]

    def _params(self) -> None:
        for param in self.rule.params:
            self.kinds.bound[param.name.text] = declared_kind(param.type)
            if param.default is not None:
                kind = self.kinds.expr(param.default, "where")
                check_argument(self.report, param, param.default, kind, "", self.rule.name.text)

    def _readers(self, clause: t.MatchParam) -> None:
        """The ops of `match param w of (...)` exist, and read weights."""
        for word in (word for word in clause.ops.names if word.text != "_"):
            facts = self.known.op(word.text)
            if facts is None:
                self._undeclared(word.span, word.text)
            elif not facts.weights:
                label = Label(word.span, "it has no weight")
                message = f"`{clause.name}` can never be a parameter of `{word}`"
                self.report.error("P004", message, label, help="name ops that read weights")

    # -- clauses

    def where(self, clause: t.Where) -> None:
        for guard in clause.guards:
            if isinstance(guard, t.Guard):
                self.kinds.condition(guard.condition, "where")

    def let(self, clause: t.Let) -> None:
        for binding in clause.bindings:
            kind = self.kinds.expr(binding.value, "let")
            self._bind(binding, kind)

    def _bind(self, binding: t.Binding, kind: Kind) -> None:
        count = len(binding.targets)
        if count == 1:
            self.kinds.bound[binding.targets[0].text] = kind
            return
        items = kind.items if kind.name == "tuple" else (ANY,) * count
        if len(items) != count or kind.name not in ("tuple", "any"):
            given = f"{len(items)} values" if kind.items else str(kind)
            labels = Label(binding.value.span, given), Label(binding.targets[0].span, "names here")
            self.report.error("T004", f"{count} names cannot take {given}", *labels)
            items = (ANY,) * count
        for word, item in zip(binding.targets, items, strict=True):
            self.kinds.bound[word.text] = item

    def perturb(self, clause: t.Perturb) -> None:
        for move in clause.moves:
            if isinstance(move, t.Effect):
                self.kinds.expr(move.call, "perturb")
            else:
                self._assign(move, "perturb", ("param", "value"))

    def _assign(self, move: t.Assign, clause: str, targets: tuple[str, ...]) -> None:
        kind = self._path_kind(move.path, clause)
        if kind.name not in (*targets, "any"):
            label = Label(move.path.span, f"this is {kind}")
            wanted = " or ".join(str(Kind(name)) for name in targets)
            self.report.error("T001", f"`{clause}` can only change {wanted}", label)
        given = self.kinds.expr(move.value, clause)
        if kind.name in ("param", "value") and not accepts(TENSOR, given, clause):
            label = Label(move.value.span, f"this is {given}")
            self.report.error("T001", f"`{move.path}` takes numbers", label)

    def _path_kind(self, path: t.Path, clause: str) -> Kind:
        root, rest = path.parts[0], path.parts[1:]
        kind = self.kinds.expr(t.Name(root.text, span=root.span), clause)
        if rest and kind.name == "node":
            return self.kinds.node_part(root.text, rest[0].text, rest[0].span)
        return ANY if rest else kind

    def rewrite(self, clause: t.Rewrite) -> None:
        for step in clause.steps:
            if isinstance(step, t.Assign):
                self._assign(step, "rewrite", ("param", "int", "dim"))
            elif isinstance(step, t.Store):
                self.kinds.expr(step.value, "rewrite")
            elif isinstance(step, t.Attach):
                self._named(step.on, "value", "an observer watches an activation")
            elif isinstance(step, t.Exit):
                self._named(step.name, "value", "an exit returns an activation")
                self.kinds.condition(step.condition, "exit")
            elif step.origin is not None:
                self._named(step.origin, "node", "`from` names an op bound with `as`")
        self._odd_builds()

    def _odd_builds(self) -> None:
        for build in self.sides.odd:
            label = Label(build.value.span, "neither an op nor a value")
            help = "use an op, such as `add(x, z)` or `mul(x, 2)`; compute weights in `let`"
            self.report.error("T001", f"`{build.targets[0]}` cannot be built", label, help=help)

    def _named(self, word: t.Word, wanted: str, help: str) -> None:
        kind = self.kinds.expr(t.Name(word.text, span=word.span), "rewrite")
        if kind.name not in (wanted, "any"):
            label = Label(word.span, f"this is {kind}")
            message = f"`{word}` is not {Kind(wanted)}"
            self.report.error("T001", message, label, help=help)

    def train(self, clause: t.Train) -> None:
        for word in clause.names:
            self._named(word, "node", "name what a build made with `as`")
        for constraint in clause.constraints:
            self._trained(constraint)

    def _trained(self, constraint: t.TrainAs) -> None:
        """`y.weight := expr` of an op that the rule made, or `w := expr` of its parameter."""
        word = constraint.path.parts[0]
        if len(constraint.path.parts) == 1:
            self._named(word, "param", "name a weight: `y.weight := ...`")
        else:
            self._named(word, "node", "name what a build made with `as`")
        for expr in (constraint.value, constraint.start):
            if expr is not None:
                self.kinds.expr(expr, "train")

    def ensure(self, clause: t.Ensure) -> None:
        for item in clause.items:
            if isinstance(item, t.Claim):
                self.kinds.condition(item.condition, "ensure")

    # -- steps

    def step(self, step: SideStep, clause: str) -> None:
        for name in () if step.is_wildcard else step.ops:
            facts = self.known.op(name)
            if facts is None:
                self._undeclared(step.span, name)
            else:
                self._operands(step, facts, clause)
                self._settings(step, facts, clause)
                self._results(step, facts)

    def _undeclared(self, span: Span, name: str) -> None:
        guess = guess_op(name, self.known)
        if guess:
            label = Label(span, "no op has this name")
            self.report.error("T003", f"the op `{name}` is not declared", label, help=guess)
            return
        label = Label(span, "not statically checked")
        help = f"declare it: op {name}(x: f[...]) -> f[...] {{ ... }}"
        self.report.warn("T005", f"the op `{name}` is not declared", label, help=help)

    def _operands(self, step: SideStep, facts: OpFacts, clause: str) -> None:
        named = sum(p.name.text in step.settings for p in facts.inputs)
        count = len(step.operands) + named
        rest = any(isinstance(operand, t.Rest) for operand in step.operands)
        few, many = count < facts.fewest and not rest, facts.most is not None and count > facts.most
        if few or many:
            place = Label(facts.decl.name.span, "declared here")
            takes = facts.fewest if few else facts.most
            message = f"`{facts.name}` takes {takes} input{'s' * (takes != 1)}, not {count}"
            help = "write `_` for an input that does not matter" if clause == "match" else ""
            self.report.error("T004", message, Label(step.whole), place, help=help)
        if step.extra is not None:
            place = Label(facts.decl.name.span, "declared here")
            message = f"`{facts.name}` has no attribute for this argument"
            self.report.error("T004", message, Label(step.extra.span, "one too many"), place)
        if clause == "rewrite":
            self._activations(step, facts)

    def _activations(self, step: SideStep, facts: OpFacts) -> None:
        for operand in step.operands:
            if isinstance(operand, str) and not operand.startswith("%"):
                kind = self.kinds.expr(t.Name(operand, span=step.span), "rewrite")
                plain = operand
            elif isinstance(operand, t.Expr):
                kind, plain = self.kinds.expr(operand, "rewrite"), operand.span.text
            else:
                continue
            if kind.name in ("node", "param", "str", "bool", "tuple"):
                label = Label(step.whole, f"`{plain}` is {kind}")
                help = f"weights go by keyword: {', '.join(facts.params)}" if facts.params else ""
                message = f"`{facts.name}` takes activations as inputs"
                self.report.error("T001", message, label, help=help)

    def _settings(self, step: SideStep, facts: OpFacts, clause: str) -> None:
        for name, expr in step.settings.items():
            if name not in facts.settings or (name in facts.params and clause == "match"):
                self._unknown_setting(step, facts, name, expr)
            elif name in facts.attrs:
                self._attribute(step, facts.attrs[name], expr, clause, facts.name)
            elif name in facts.params:
                self._weight(facts, name, expr)
        self._needed(step, facts, clause)

    def _unknown_setting(self, step: SideStep, facts: OpFacts, name: str, expr: t.Expr) -> None:
        if name in facts.params:
            help = f"bind the op with `as c` and write `c.{name} : [...]`"
            label = Label(expr.span, f"`{name}` is a weight")
            message = "a pattern cannot constrain a weight by keyword"
            self.report.error("T001", message, label, help=help)
            return
        label = Label(step.whole, f"known: {', '.join(facts.settings)}")
        message = f"`{facts.name}` has no attribute `{name}`"
        self.report.unknown("T003", message, label, name, facts.settings)

    def _attribute(
        self, step: SideStep, attr: t.OpAttr, expr: t.Expr, clause: str, owner: str
    ) -> None:
        if clause == "match" and isinstance(expr, t.Name):
            self.kinds.bound.setdefault(expr.text, declared_kind(attr.type))
            return
        param = t.Param(attr.name, attr.type, None, span=attr.span)
        kind = self.kinds.expr(expr, clause)
        if kind.name != "none":
            check_argument(self.report, param, expr, kind, clause, owner)

    def _weight(self, facts: OpFacts, name: str, expr: t.Expr) -> None:
        kind = self.kinds.expr(expr, "let")
        if kind.name == "none" and facts.params[name].optional:
            return
        if kind.name in NUMBERS or not accepts(TENSOR, kind, "let"):
            places = (
                Label(expr.span, f"this is {kind}"),
                Label(facts.params[name].span, "declared here"),
            )
            self.report.error("T001", f"`{facts.name}` takes an array as `{name}`", *places)

    def _needed(self, step: SideStep, facts: OpFacts, clause: str) -> None:
        if clause == "match" or step.clone:
            return
        for name, param in facts.params.items():
            if not param.optional and name not in step.settings:
                places = Label(step.whole), Label(param.span, "declared here")
                help = f"give `{name} = ...`, or clone a matched op: `y = c(x)`"
                message = f"`{facts.name}` is built without its `{name}`"
                self.report.error("T004", message, *places, help=help)

    def _results(self, step: SideStep, facts: OpFacts) -> None:
        made, named = len(facts.decl.results), len(step.words)
        if named and made != named and "many" not in facts.traits:
            message = f"`{facts.name}` has {made} result{'s' * (made != 1)}, not {named}"
            places = Label(step.words[0].span), Label(facts.decl.name.span, "declared here")
            self.report.error("T004", message, *places)


_CLAUSES: dict[type, Callable[..., None]] = {
    t.Where: Operations.where, t.Let: Operations.let, t.Perturb: Operations.perturb,
    t.Rewrite: Operations.rewrite, t.Train: Operations.train, t.Ensure: Operations.ensure,
}  # fmt: skip


def guess_op(name: str, known: SymbolTable) -> str:
    """What to write for an op that is not declared, "" if no declared one comes near.

    `quantize` is not a misspelt `dequantize`.
    """
    spelled, guess = known.of_torch(name), nearest(name, known.op_names)
    if spelled and spelled != guess:
        return f"torch's `{name}` is `{spelled}` here"
    misspelt = guess is not None and (spelled or abs(len(guess) - len(name)) <= 1)
    return f"did you mean `{guess}`?" if misspelt else ""


def check_operations(
    rule: t.Rule,
    both: Sides,
    scope: RuleNames,
    known: SymbolTable,
    report: Messages,
    attached: frozenset[str],
) -> Kinds:
    """Check the ops and the kinds of a rule; the kinds are returned for later passes."""
    kinds = Kinds(scope, both, known, report, attached)
    Operations(rule, both, known, report, kinds).run()
    return kinds
