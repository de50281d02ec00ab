"""What kind of thing an expression is: a weight, an activation, a node, a number, a condition."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..diagnostics import Label, Span
from ..text.references import FREE
from ..tree import tree as t
from ..tree.fold import Fold
from .arguments import check_extern
from .declared import SymbolTable, tail
from .kind import ACTIVE, ANY, BOOL, INT, NONE, NUMBER, NUMBERS, TENSOR, Kind, declared_kind
from .names import WORDS, RuleNames
from .report import Messages
from .sides import Sides


@dataclass(slots=True)
class Kinds(Fold[Kind]):
    """The kinds of a rule's expressions. `attached` are the names that observers record under."""

    scope: RuleNames
    sides: Sides
    known: SymbolTable
    report: Messages
    attached: frozenset[str] = frozenset()
    bound: dict[str, Kind] = field(default_factory=dict)
    clause: str = ""

    def expr(self, expr: t.Expr, clause: str) -> Kind:
        self.clause = clause
        return self.of(expr)

    def condition(self, expr: t.Expr, clause: str) -> None:
        """Report a guard or claim that is no condition; a weight alone asks whether it is there."""
        kind = self.expr(expr, clause)
        if kind.name not in ("bool", "any", "param", "word"):
            help = "compare it with something, as in `x > 0`"
            label = Label(expr.span, f"this is {kind}")
            self.report.error("T001", f"a condition is expected in `{clause}`", label, help=help)

    # -- leaves

    def name(self, expr: t.Name) -> Kind:
        if expr.text in self.bound:
            return self.bound[expr.text]
        role = self.scope.role(expr.text)
        if role:
            return _ROLES.get(role, ANY)
        return Kind("word") if expr.text in WORDS else ANY

    def literal(self, expr: t.Number | t.Frac | t.String | t.Constant) -> Kind:
        return _LITERALS[type(expr.value)]

    def items(self, expr: t.Tuple | t.List) -> Kind:
        found = tuple(self.of(item) for item in expr.items)
        return Kind("tuple", found) if isinstance(expr, t.Tuple) else Kind("list")

    # -- paths

    def attribute(self, expr: t.Attribute) -> Kind:
        base = self.of(expr.value)
        if base.name == "node" and isinstance(expr.value, t.Name):
            return self.node_part(expr.value.text, expr.name, tail(expr))
        if base.name in ("int2", "int3", "ints") and expr.name.isdigit():
            return INT
        if base.name in ("param", "tensor") and expr.name in ("codes", "book"):
            return TENSOR
        if base.name == "any" or (base.name == "value" and expr.name in self.attached):
            return ANY
        label = Label(tail(expr), f"`{expr.value.span.text}` is {base}")
        help = "a weight has `codes` and `book` after clustering" if base.name == "param" else ""
        help = help or (
            "bind the op with `as c` and write `c.weight`; what an observer saw has the name "
            f"under which it is attached: `attach histogram() on x as x.{expr.name}`"
            if base.name == "value"
            else ""
        )
        self.report.error("T001", f"{base} has no part `{expr.name}`", label, help=help)
        return ANY

    def node_part(self, node: str, name: str, span: Span) -> Kind:
        """The kind of `c.weight` or `c.stride`; every alternative of the op must have it."""
        step = self.sides.handles.get(node)
        if step is None or step.is_wildcard or name in self.attached:
            return ANY
        kinds = []
        for facts in self.known.facts(step.ops):
            if name in facts.params:
                kinds.append(Kind("param"))
            elif name in facts.attrs:
                kinds.append(declared_kind(facts.attrs[name].type))
            else:
                label = Label(span, f"`{node}` is a {facts.name}")
                message = f"`{facts.name}` has no parameter or attribute `{name}`"
                self.report.unknown("T003", message, label, name, facts.settings)
                return ANY
        return kinds[0] if kinds else ANY

    def subscript(self, expr: t.Subscript) -> Kind:
        base = self.of(expr.value)
        for item in expr.items:
            parts = (item.start, item.stop) if isinstance(item, t.Slice) else (item,)
            for part in filter(None, parts):
                self.of(part)
        if base.name in ("node", "str", "bool", *NUMBERS):
            self._mismatch(expr.value.span, base, "only a weight or an array has elements")
        return self._active(expr.value, base) if base.name == "value" else TENSOR

    # -- operators

    def unary(self, expr: t.Unary) -> Kind:
        kind = self.of(expr.operand)
        if expr.op == "not":
            return BOOL
        return self._operand(expr.operand, kind)

    def binary(self, expr: t.Binary) -> Kind:
        left, right = self.of(expr.left), self.of(expr.right)
        if expr.op in ("==", "!=", "in"):
            return self._same(expr, left, right)
        if expr.op in ("and", "or"):
            return _choice(left, right) if expr.op == "or" else _both(right)
        left, right = self._operand(expr.left, left), self._operand(expr.right, right)
        if expr.op in ("<", "<=", ">", ">="):
            return self._ordered(expr, left, right)
        return _combined(expr.op, left, right)

    def _same(self, expr: t.Binary, left: Kind, right: Kind) -> Kind:
        families = {_family(left), _family(right)} - {""}
        if len(families) > 1:
            message = f"{left} is never equal to {right}"
            places = Label(expr.left.span, str(left)), Label(expr.right.span, str(right))
            self.report.error("T001", message, *places)
        return BOOL

    def _ordered(self, expr: t.Binary, left: Kind, right: Kind) -> Kind:
        for part, kind in ((expr.left, left), (expr.right, right)):
            if kind.name in ("param", "tensor") and self.clause != "exit":
                self._mismatch(part.span, kind, "compare a number, such as `max(abs(w))`")
        return BOOL

    def _operand(self, expr: t.Expr, kind: Kind) -> Kind:
        if kind.name in ("node", "str", "bool", "word", "none"):
            self._mismatch(expr.span, kind, "a number or an array is expected")
            return ANY
        return self._active(expr, kind)

    def _active(self, expr: t.Expr, kind: Kind) -> Kind:
        if isinstance(expr, t.Name) and expr.text in self.sides.constants:
            return ANY
        if kind.name in ("value", "values") and self.clause not in ACTIVE:
            help = "guards and `let` see weights and sizes; use `c.weight` or a dimension"
            message = f"`{expr.span.text}` is an activation, its numbers are not known yet"
            self.report.error("T001", message, Label(expr.span, "an activation"), help=help)
            return ANY
        return kind

    def _mismatch(self, span: Span, kind: Kind, help: str) -> None:
        self.report.error("T001", f"{kind} cannot stand here", Label(span, str(kind)), help=help)

    # -- calls

    def quantifier(self, expr: t.Quantifier) -> Kind:
        self.of(expr.domain)
        hidden = self.bound.get(expr.variable.text)
        self.bound[expr.variable.text] = Kind("param")
        self.of(expr.body)
        del self.bound[expr.variable.text]
        if hidden is not None:
            self.bound[expr.variable.text] = hidden
        return BOOL

    def call(self, expr: t.Call) -> Kind:
        name = expr.function.text if isinstance(expr.function, t.Name) else ""
        if not name or self.scope.role(name):
            kind = self.of(expr.function)
            if kind.name not in ("any", "node"):
                self._mismatch(expr.function.span, kind, "only functions and nodes can be called")
            return Kind("value") if kind.name == "node" else ANY
        extern = self.known.extern(name)
        args = [] if name in FREE else [self._given(arg) for arg in expr.args]
        keywords = {k.name.text: self.of(k.value) for k in expr.keywords}
        runs = ("rewrite", "exit", "perturb") if self.sides.exchanged else ("rewrite", "exit")
        active = self.clause in runs
        if active and (extern is None or any(a.name == "value" for a in args)):
            return Kind("value")
        if extern is None:
            return ANY
        check_extern(self.report, self.clause, expr, extern, args, keywords)
        results = tuple(declared_kind(r) for r in extern.results)
        if any(a.name == "value" for a in args) and len(results) == 1 and results[0] == TENSOR:
            return Kind("value")
        return results[0] if len(results) == 1 else Kind("tuple", results)

    def _given(self, arg: t.Expr) -> Kind:
        """The kind of an argument; a value that a guard calls constant holds numbers."""
        kind = self.of(arg)
        constant = isinstance(arg, t.Name) and arg.text in self.sides.constants
        return ANY if constant else kind


def _family(kind: Kind) -> str:
    if kind.name in NUMBERS:
        return "number"
    return kind.name if kind.name in ("str", "node", "bool") else ""


def _choice(left: Kind, right: Kind) -> Kind:
    """`a or b` is a condition, or the first of two things that is there."""
    if left.name in ("param", "tensor"):
        return left
    if left == right or {left.name, right.name} <= NUMBERS:
        return left if left == right else NUMBER
    return BOOL if BOOL in (left, right) and ANY not in (left, right) else ANY


def _both(right: Kind) -> Kind:
    """`a and b` is a condition; of what a condition is not, it is b where a is there."""
    return right if right.name in ("param", "tensor") else BOOL


def _combined(op: str, left: Kind, right: Kind) -> Kind:
    names = {left.name, right.name}
    if "any" in names or op == "@":
        return ANY if "any" in names else TENSOR
    for wide in ("value", "tensor", "param", "int2"):
        if wide in names:
            return TENSOR if wide == "param" else Kind(wide)
    return INT if names <= {"int", "dim"} and op != "/" else NUMBER


_ROLES = {
    "value": Kind("value"), "values": Kind("values"), "node": Kind("node"), "built": Kind("node"),
    "weight": Kind("param"), "dim": INT, "class": Kind("dim"),
}  # fmt: skip
_LITERALS = {
    type(None): NONE, bool: BOOL, int: INT, float: Kind("float"), t.Share: Kind("frac"),
    str: Kind("str"),
}  # fmt: skip
