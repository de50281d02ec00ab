"""Which names a rule binds and uses: unbound, unused, shadowed, out of order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..diagnostics import Label, Span, nearest
from ..text.references import PREFIX, hole_expression, message_holes, references
from ..tree import tree as t
from ..tree.clauses import RESOLUTION, bindings, builds, names_in
from ..tree.clauses import guard_holes as open_guards
from .declared import SymbolTable
from .dtypes import DTYPES, unquoted
from .report import Messages
from .sides import Sides

DOMAINS = ("channels", "heads", "features", "tokens", RESOLUTION)
POLICIES = ("skip", "clone", "all_sites")
WORDS = frozenset(
    ("eval", "train", "before", "after", "model", "outputs", "original", "reloaded", "all")
)
"""Bare words that stand for themselves."""


IN_TRAIN = frozenset(("initial", "in_training"))
"""Functions that mean something only while a weight is trained."""

Binder = Callable[[t.Word, str], None]


@dataclass(slots=True)
class RuleNames:
    """What a rule binds: name to the word that binds it and to its role."""

    words: dict[str, t.Word] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def bind(self, word: t.Word, role: str) -> None:
        self.words[word.text] = word
        self.roles[word.text] = role

    def role(self, name: str) -> str:
        return self.roles.get(name, "")


@dataclass(slots=True)
class Names:
    """One walk over a rule. `later` holds the names that a following `let` or build binds."""

    rule: t.Rule
    sides: Sides
    known: SymbolTable
    report: Messages
    scope: RuleNames = field(default_factory=RuleNames)
    later: dict[str, t.Word] = field(default_factory=dict)

    def run(self) -> RuleNames:
        for param in self.rule.params:
            self._bind(param.name, "param")
        self._bind_matches()
        self._collect_later()
        for clause in self.rule.clauses:
            _CLAUSES.get(type(clause), _nothing)(self, clause)
        if not open_guards(self.rule):  # what is missing may use them
            self._warn_unused()
        return self.scope

    # -- patterns

    def _bind_matches(self) -> None:
        for clause in self.rule.all(t.MatchDim, t.MatchParam, t.MatchValue):
            self._bind_special(clause)
        for match in self.rule.all(t.Match):
            self._bind_patterns(match.patterns, self._bind)
        for unless in self.rule.all(t.Unless):
            outer = dict(self.scope.words)
            self._bind_patterns(unless.patterns, self._meet)
            for name in set(self.scope.words) - set(outer):
                self.scope.roles[name] = "unless"

    def _bind_special(self, clause: t.MatchDim | t.MatchParam | t.MatchValue) -> None:
        if isinstance(clause, t.MatchDim):
            self._bind(clause.dim, "class")
            if clause.domain.text not in DOMAINS:
                message = f"`{clause.domain}` is no kind of dimension"
                label = Label(clause.domain.span, f"known: {', '.join(DOMAINS)}")
                self.report.unknown("N001", message, label, clause.domain.text, DOMAINS)
        elif isinstance(clause, t.MatchParam):
            self._bind(clause.name, "weight")
        else:
            self._bind(clause.name, "value")
            self._bind_dims(clause.type)

    def _bind_patterns(self, patterns: tuple[t.Pattern, ...], bind: Binder) -> None:
        """In `unless` a result may be a value of the match: it says what must not have made it."""
        ops = [p for p in patterns if isinstance(p, t.OpPattern)]
        for pattern in ops:
            for target in pattern.targets:
                bind(target, "value")
            if pattern.handle is not None:
                self._bind(pattern.handle, "node")
        for pattern in ops:
            self._bind_operands(pattern)
        for shape in (p for p in patterns if isinstance(p, t.ShapePattern)):
            self._use_word(shape.path.parts[0], "match")
            self._bind_dims(shape.type)
        for pattern in ops:
            self._bind_attrs(pattern)
        for site in (p for p in patterns if isinstance(p, t.SitePattern)):
            self._use_word(site.name, "match")

    def _bind_operands(self, pattern: t.OpPattern) -> None:
        for operand in pattern.operands:
            if isinstance(operand, t.Rest):
                self._meet(operand.name, "values")
            elif isinstance(operand, t.Name):
                self._meet(t.Word(operand.text, span=operand.span), "value")
            else:
                self.use(operand, "match")

    def _bind_attrs(self, pattern: t.OpPattern) -> None:
        for keyword in pattern.attrs:
            if isinstance(keyword.value, t.Name):
                self._meet(t.Word(keyword.value.text, span=keyword.value.span), "attr")
            else:
                self.use(keyword.value, "match")

    def _bind_dims(self, type_: t.Type) -> None:
        for dim in type_.dims or ():
            for name in names_in(dim):
                self._bind_dim(name)

    def _bind_dim(self, name: t.Name) -> None:
        if name.is_dimension:
            self._meet(t.Word(name.text, span=name.span), "dim")
        else:
            self.use(name, "match")

    def _meet(self, word: t.Word, role: str) -> None:
        """Bind a name at its first place in a pattern; later places refer to it."""
        if word.text == "_" or word.text in WORDS:
            return
        if word.text in self.scope.words:
            self.scope.used.add(word.text)
        else:
            self.scope.bind(word, role)

    # -- clauses

    def _collect_later(self) -> None:
        for binding in bindings(self.rule):
            self.later |= {w.text: w for w in binding.targets}
        for build in builds(self.rule):
            words = (*build.targets, *((build.handle,) if build.handle else ()))
            self.later |= {w.text: w for w in words if w.text not in self.scope.words}

    def where(self, clause: t.Where) -> None:
        for guard in clause.guards:
            if isinstance(guard, t.Guard):
                self.use(guard.condition, "where")
                self._use_reason(guard)

    def let(self, clause: t.Let) -> None:
        for binding in clause.bindings:
            self.use(binding.value, "let")
            for word in binding.targets:
                self.later.pop(word.text, None)
                self._bind(word, "let" if len(binding.targets) == 1 else "part")

    def perturb(self, clause: t.Perturb) -> None:
        for move in clause.moves:
            if isinstance(move, t.Assign):
                self._use_word(move.path.parts[0], "perturb")
                self.use(move.value, "perturb")
            else:
                self.use(move.call, "perturb")

    def rewrite(self, clause: t.Rewrite) -> None:
        for step in clause.steps:
            _STEPS[type(step)](self, step)

    def build(self, build: t.Build) -> None:
        self.use(build.value, "rewrite")
        if build.origin is not None:
            self._use_word(build.origin, "rewrite")
        for word in build.targets:
            self.later.pop(word.text, None)
            if word.text in self.sides.produced or word.text in self.sides.ranged:
                self.scope.used.add(word.text)
            else:
                self._bind(word, "value")
        if build.handle is not None:
            self.later.pop(build.handle.text, None)
            self._bind(build.handle, "built")

    def assign(self, assign: t.Assign) -> None:
        self._use_word(assign.path.parts[0], "rewrite")
        self.use(assign.value, ":=")

    def store(self, store: t.Store) -> None:
        self._use_word(store.name, "rewrite")
        self.use(store.value, "rewrite")

    def attach(self, attach: t.Attach) -> None:
        self.use(attach.observer, "attach")
        self._use_word(attach.on, "rewrite")
        self._use_word(attach.path.parts[0], "rewrite")

    def exit(self, exit_: t.Exit) -> None:
        self._use_word(exit_.name, "rewrite")
        self.use(exit_.condition, "exit")

    def train(self, clause: t.Train) -> None:
        for word in clause.names:
            self._use_word(word, "train")
        for constraint in clause.constraints:
            self._use_word(constraint.path.parts[0], "train")
            self.use(constraint.value, "train")
            if constraint.start is not None:
                self.use(constraint.start, "train")

    def ensure(self, clause: t.Ensure) -> None:
        for claim in (item for item in clause.items if isinstance(item, t.Claim)):
            self.use(claim.condition, "ensure")
            if claim.within is not None:
                self.use(claim.within, "ensure")

    def on_shared(self, clause: t.OnShared) -> None:
        word = clause.policy
        if word.text not in POLICIES:
            label = Label(word.span, f"known: {', '.join(POLICIES)}")
            message = f"`{word}` is no policy for shared weights"
            self.report.unknown("N001", message, label, word.text, POLICIES)

    def recursive(self, clause: t.Recursive) -> None:
        self.use(clause.measure, "ensure")

    # -- uses

    def use(self, expr: t.Node, clause: str) -> None:
        """Check every name of an expression."""
        for name, span, called in references(expr):
            self._use(name, span, called, clause)

    def _use_word(self, word: t.Word, clause: str) -> None:
        self._use(word.text, word.span, False, clause)

    def _use(self, name: str, span: Span, called: bool, clause: str) -> None:
        if name in self.scope.words:
            self.scope.used.add(name)
        elif called:
            self._use_function(name, span, clause)
        elif name in self.later:
            self._too_early(name, span)
        elif name not in WORDS and name != "_":
            self._unbound(name, span)

    def _use_function(self, name: str, span: Span, clause: str) -> None:
        extern = self.known.extern(name)
        if name in IN_TRAIN and clause != "train":
            message = f"`{name}` says something of weights in training, and is for `train` alone"
            self.report.error("T001", message, Label(span, f"called in `{clause}`"))
        elif extern is None:
            self._unknown_function(name, span, clause)
        elif clause in ("where", "let") and not extern.pure:
            places = Label(span, f"called in `{clause}`"), Label(extern.name.span, "declared here")
            help = "declare it `pure`, or move the call to `rewrite`, `perturb` or `ensure`"
            self.report.error("G001", f"`{name}` is not declared `pure`", *places, help=help)

    def _unknown_function(self, name: str, span: Span, clause: str) -> None:
        is_op = self.known.is_op(name)
        if is_op and clause == "perturb" and self.sides.exchanged:
            return  # what is given to the readers of a value is computed when the model runs
        if clause in ("rewrite", "exit") and (is_op or not nearest(name, self.known.extern_names)):
            return
        if is_op:
            help = f"`{clause}` computes with weights and sizes; call ops in `rewrite`"
            place = Label(span, "an op runs inside the model")
            message = f"the op `{name}` cannot be called in `{clause}`"
            self.report.error("T001", message, place, help=help)
            return
        if clause in ("rewrite", "exit"):
            return
        label = Label(span, "no extern function has this name")
        message = f"the function `{name}` is not declared"
        self.report.unknown("N001", message, label, name, self.known.extern_names)

    def _use_reason(self, guard: t.Guard) -> None:
        for text, span in message_holes(guard):
            expr = hole_expression(text)
            if expr is None:
                help = "write one expression between the braces, as in {O // 2}"
                label = Label(span, "not an expression")
                message = "the guard's message has a part that cannot be read"
                self.report.error("T007", message, label, help=help)
                continue
            for name, at, called in references(expr):
                start = span.start + 1 + at.start - len(PREFIX)
                self._use(name, Span(span.source, start, start + len(name)), called, "where")

    # -- findings

    def _bind(self, word: t.Word, role: str) -> None:
        first = self.scope.words.get(word.text)
        if first is None or word.text == "_":
            self.scope.bind(word, role)
            return
        places = Label(word.span, "bound again"), Label(first.span, "bound here")
        message = f"`{word}` is bound twice"
        self.report.error("N003", message, *places, help="give one of them another name")

    def _unbound(self, name: str, span: Span) -> None:
        if name in DTYPES:
            unquoted(name, span, self.report)
            return
        known = set(self.scope.words) | set(self.later)
        case = "a size" if name[0].isupper() else "a value, weight or node"
        label = Label(span, f"{case} that no pattern, parameter or `let` binds")
        self.report.unknown("N001", f"`{name}` is not bound", label, name, known)

    def _too_early(self, name: str, span: Span) -> None:
        places = Label(span, "used here"), Label(self.later[name].span, "bound only here")
        help = "clauses run in the order they are written: move the `let` or the build up"
        self.report.error("N006", f"`{name}` is used before it is bound", *places, help=help)

    def _warn_unused(self) -> None:
        for name, word in self.scope.words.items():
            role = _NOUNS.get(self.scope.roles[name])
            if role and name not in self.scope.used and not name.startswith("_"):
                label = Label(word.span, f"this {role} is never used")
                help = "delete it, or use it" if role != "attribute" else "delete the keyword"
                self.report.warn("N002", f"`{name}` is bound but unused", label, help=help)


_NOUNS = {"param": "parameter", "attr": "attribute", "node": "node", "let": "binding"}
_CLAUSES: dict[type, Callable[..., None]] = {
    t.Where: Names.where, t.Let: Names.let, t.Perturb: Names.perturb, t.Rewrite: Names.rewrite,
    t.Train: Names.train, t.Ensure: Names.ensure, t.Recursive: Names.recursive,
    t.OnShared: Names.on_shared,
}  # fmt: skip
_STEPS: dict[type, Callable[..., None]] = {
    t.Build: Names.build, t.Assign: Names.assign, t.Store: Names.store, t.Attach: Names.attach,
    t.Exit: Names.exit,
}  # fmt: skip


def _nothing(names: Names, clause: t.Clause) -> None:
    """Clauses without names."""
