"""Types of numbers in the text of a rule. They have one spelling, a word in quotes: in a pattern
(`cast(x, dtype = "float64")`), in a guard (`dtype(x) == "float32"`) and in what a rule builds. A
clause `x : f[...]` speaks of classes of types.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..diagnostics import Label, Span, did_you_mean
from ..tree import tree as t
from .declared import SymbolTable
from .kind import DTYPES, TENSORS
from .report import Messages
from .sides import Sides, SideStep

CLASSES = "f (floating), i (whole), b (truth) and t (any)"


def unquoted(word: str, span: Span, report: Messages) -> None:
    """T003 for a type of numbers that is written as a name."""
    label, help = Label(span, "a name here"), f'write `"{word}"`'
    report.error("T003", "a type of numbers is written in quotes", label, help=help)


def check_dtypes(rule: t.Rule, both: Sides, known: SymbolTable, report: Messages) -> None:
    """T003 for a word that stands where a type or a class of types is asked for, and is none."""
    for shape in (node for node in t.walk(rule) if isinstance(node, t.ShapePattern)):
        _class(shape, report)
    for value in (*_settings(both, known), *_compared(rule)):
        _dtype(value, report)


def _class(shape: t.ShapePattern, report: Messages) -> None:
    name = shape.type.name
    if name is None or name in TENSORS:
        return
    if name in DTYPES:
        kind = "f" if "float" in name else "b" if name == "bool" else "i"
        help = (
            f'write `{shape.path} : {kind}[...]` and `where {{ dtype({shape.path}) == "{name}" }}`'
        )
    else:
        help = f'a type such as float32 goes into a guard: `dtype({shape.path}) == "float32"`'
    label = Label(shape.type.span, f"the classes are {CLASSES}")
    report.error("T003", f"`{name}` is no class of types", label, help=help)


def _settings(both: Sides, known: SymbolTable) -> Iterator[t.Expr]:
    """What patterns and new ops give for settings that are types."""
    for step in (*both.left, *both.right):
        names = {} if step.is_wildcard else _typed(step, known)
        yield from (expr for name, expr in step.settings.items() if name in names)


def _typed(step: SideStep, known: SymbolTable) -> set[str]:
    attrs = [attr for facts in known.facts(step.ops) for attr in facts.attrs.values()]
    return {attr.name.text for attr in attrs if attr.type.name == "dtype"}


def _compared(rule: t.Rule) -> Iterator[t.Expr]:
    """What `dtype(x)` is compared with."""
    for node in t.walk(rule):
        if isinstance(node, t.Binary) and node.op in ("==", "!="):
            if _asks(node.left):
                yield node.right
            if _asks(node.right):
                yield node.left


def _asks(expr: t.Expr) -> bool:
    function = expr.function if isinstance(expr, t.Call) else None
    return isinstance(function, t.Name) and function.text == "dtype"


def _dtype(value: t.Expr, report: Messages) -> None:
    if isinstance(value, t.Name) and value.text in DTYPES:
        unquoted(value.text, value.span, report)
    elif isinstance(value, t.String) and value.value not in DTYPES:
        guess = next(iter(did_you_mean(value.value, DTYPES)), f"known: {', '.join(DTYPES)}")
        message = f"`{value.value}` is not a type of numbers"
        report.error("T003", message, Label(value.span, "not known"), help=guess)
