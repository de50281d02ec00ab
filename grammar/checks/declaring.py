"""`op`, `extern fn` and `test` statements: bound dimensions; known types, traits, axes, slots."""

from __future__ import annotations

from collections.abc import Iterable

from ..diagnostics import Label
from ..text.references import references
from ..tree import tree as t
from .declared import ATTR_TYPES, TRAITS, OpFacts
from .kind import DTYPES, EXTERN_TYPES, TENSORS
from .report import Messages

FUNCTIONS = frozenset(("numel", "size", "min", "max", "len", "rank"))
AXIS_NUMBERS = frozenset(("int", "int2", "int3", "ints", "any"))
"""Types of the settings that can say along which axes an op works."""


def check_declarations(file: t.File, report: Messages) -> None:
    for op in file.all(t.Op):
        _op(OpFacts(op), report)
    for extern in file.all(t.Extern):
        _unique(extern.params, report)
        for type_ in (*(p.type for p in extern.params), *extern.results):
            _type(type_, EXTERN_TYPES, report)
    _twice(file, report)


def _twice(file: t.File, report: Messages) -> None:
    """Two statements of one kind with one name."""
    seen: dict[tuple[str, str], t.Word] = {}
    for statement in file.statements:
        if isinstance(statement, t.Use):
            continue
        key = type(statement).__name__.lower(), statement.name.text
        first = seen.setdefault(key, statement.name)
        if first is not statement.name:
            places = (
                Label(statement.name.span, "declared again"),
                Label(first.span, "declared here"),
            )
            report.error("N003", f"the {key[0]} `{key[1]}` is declared twice", *places)


def _unique(params: Iterable[t.Param | t.OpParam | t.OpAttr | t.OpDim], report: Messages) -> None:
    seen: dict[str, t.Word] = {}
    for param in params:
        first = seen.setdefault(param.name.text, param.name)
        if first is not param.name:
            places = Label(param.name.span, "declared again"), Label(first.span, "declared here")
            report.error("N003", f"`{param.name}` is declared twice", *places)


def _type(type_: t.Type, known: Iterable[str], report: Messages) -> None:
    names = set(known) | TENSORS
    if type_.name is not None and type_.name not in names:
        label = Label(type_.span, f"known: {', '.join(sorted(names))}")
        message = f"`{type_.name}` is not a type"
        report.unknown("T003", message, label, type_.name, names)


def _op(facts: OpFacts, report: Messages) -> None:
    op = facts.decl
    items = [i for i in op.items if isinstance(i, (t.OpParam, t.OpAttr, t.OpDim))]
    _unique((*op.inputs, *items), report)
    tensors = (*op.inputs, *(item for item in items if isinstance(item, t.OpParam)))
    for type_ in (*(one.type for one in tensors), *op.results):
        _type(type_, ("int", "float", "bool", "any", "str", *DTYPES), report)
    for attr in facts.attrs.values():
        _type(attr.type, ATTR_TYPES, report)
    _traits(facts, report)
    _mixes(facts, report)
    _sums(facts, report)
    _dimensions(facts, report)
    _slots(facts, report)


def _traits(facts: OpFacts, report: Messages) -> None:
    words = (word for i in facts.decl.items if isinstance(i, t.OpTrait) for word in i.names)
    for word in words:
        if word.text not in TRAITS:
            label = Label(word.span, f"known: {', '.join(sorted(TRAITS))}")
            report.unknown("T003", f"`{word}` is not a trait", label, word.text, TRAITS)
        about, line = ABOUT.get(word.text, ("", ""))
        if about and not _has(facts, about):
            message = f"`{facts.name}` has the trait `{word}` and lacks {about}"
            label = Label(word.span, f"it is about {about}")
            report.error("T004", message, label, help=f"declare `{line}`")


ABOUT = {
    "addend": ("an input without axes", "z: f"),
    "equation": ("the setting `equation`", "attr equation: str = none"),
    "gated": ("the setting `dim`", "attr dim: int = -1"),
    "mask": ("an input without axes", "mask?: t"),
    "pads": ("the setting `pad`", "attr pad: ints = none"),
    "per_channel": ("a weight", "param weight: [C]"),
    "scaled": ("the setting `scale`", "attr scale: any = none"),
    "selection": ("an input of positions", "index: i"),
}
"""What some traits are about, and how it is declared."""


def _has(facts: OpFacts, about: str) -> bool:
    if about == "an input without axes":
        return any(param.type.dims is None for param in facts.inputs)
    if about == "an input of positions":
        return len(facts.inputs) == 2
    return bool(facts.params) if about == "a weight" else about.split("`")[1] in facts.attrs


def _mixes(facts: OpFacts, report: Messages) -> None:
    numbers = {n for n, a in facts.attrs.items() if a.type.name in AXIS_NUMBERS}
    known = _axes(p.type for p in facts.inputs) | numbers
    words = [w for i in facts.decl.items if isinstance(i, t.OpMixes) for w in i.names]
    for word in words:
        if word.text == "none" and len(words) > 1:
            label = Label(word.span, "the op mixes something, or nothing")
            report.error("T004", "`none` stands alone in `mixes`", label, help="leave out `none`")
        elif word.text not in known | {"none"}:
            message = (
                f"`{word}` is neither a dimension that `{facts.name}` reads nor an axis number"
            )
            _unknown_axis(message, word, known, report)


def _sums(facts: OpFacts, report: Messages) -> None:
    kept = _axes(facts.decl.results)
    known = _axes(p.type for p in facts.inputs) - kept
    for word in (w for i in facts.decl.items if isinstance(i, t.OpSums) for w in i.names):
        if word.text in kept:
            label = Label(word.span, "a sum leaves no axis behind")
            help_ = f"`mixes {word}` where results depend on all of it"
            report.error("T001", f"a result has the dimension `{word}`", label, help=help_)
        elif word.text not in known:
            message = f"`{word}` is no dimension that `{facts.name}` could sum over"
            _unknown_axis(message, word, known, report)


def _axes(types: Iterable[t.Type]) -> set[str]:
    """The dimensions in the axes of these types; `...` where there are any number of them."""
    nodes = [node for type_ in types for node in t.walk(type_)]
    rest = {"..."} if any(isinstance(node, t.DimRest) for node in nodes) else set()
    return rest | {node.text for node in nodes if isinstance(node, t.Name) and node.is_dimension}


def _unknown_axis(message: str, word: t.Word, known: set[str], report: Messages) -> None:
    label = Label(word.span, f"known: {', '.join(sorted(known)) or 'nothing'}")
    report.unknown("T003", message, label, word.text, known)


def _dimensions(facts: OpFacts, report: Messages) -> None:
    """A size of a result or cost must come from an input, a weight, an attribute or a `dim`."""
    sources = [p.type for p in facts.inputs] + [p.type for p in facts.params.values()]
    defaults = [a.default for a in facts.attrs.values()]
    bound = {n for node in (*sources, *defaults) for n, _, called in references(node) if not called}
    bound |= set(facts.settings)
    for name, expr in facts.dims.items():
        _bound(expr, bound, facts, report)
        bound.add(name)
    for result in facts.decl.results:
        _bound(result, bound, facts, report)
    for cost in facts.costs.values():
        _bound(cost, bound | {"result"}, facts, report)


def _bound(node: t.Node, bound: set[str], facts: OpFacts, report: Messages) -> None:
    for name, span, called in references(node):
        if called and name not in FUNCTIONS:
            label = Label(span, f"known: {', '.join(sorted(FUNCTIONS))}")
            message = f"`{name}` is no function of sizes"
            report.unknown("N001", message, label, name, FUNCTIONS)
        elif not called and name not in bound:
            label = Label(span, "not a size of an input, a weight or a `dim`")
            message = f"`{name}` is not bound in the op `{facts.name}`"
            report.unknown("N001", message, label, name, bound)


def _slots(facts: OpFacts, report: Messages) -> None:
    known = {*facts.settings, "_"}
    calls = [i.signature for i in facts.decl.items if isinstance(i, (t.OpMeaning, t.OpSpelling))]
    for slot in (slot for call in calls for slot in call.slots):
        if slot.ours.text not in known:
            label = Label(slot.ours.span, f"known: {', '.join(facts.settings)}")
            message = f"`{slot.ours}` is no input, weight or attribute of `{facts.name}`"
            report.unknown("N001", message, label, slot.ours.text, facts.settings)


def check_tests(file: t.File, rules: Iterable[str], report: Messages) -> None:
    """The rules that tests name must exist."""
    cases = (case for test in file.all(t.Test) for case in test.cases)
    for case in cases:
        if isinstance(case, (t.Fires, t.Silent)) and case.rule.text not in rules:
            label = Label(case.rule.span, "no rule has this name")
            message = f"the rule `{case.rule}` does not exist"
            report.unknown("N001", message, label, case.rule.text, rules)
