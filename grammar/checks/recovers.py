"""The settings of `recover`: known, given once, of the right kind; never the test split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..diagnostics import Label
from ..library.learning import CALL, DATA, NUMBER, SETTINGS, SUM, WORD
from ..tree import tree as t
from .report import Messages

NUMBERS = frozenset(name for name, setting in SETTINGS.items() if setting.holds == NUMBER)
TEST = "test"
"""The split that nothing may be chosen or learned by."""


def split_of(item: t.Data) -> str:
    """The split that a `data` statement samples; "" where it is none."""
    call = item.value
    first = call.args[0] if isinstance(call, t.Call) and call.args else None
    return first.value if isinstance(first, t.String) else ""


def is_stream(item: t.Data) -> bool:
    """`data train = stream("train")`: batches that are not held in memory."""
    call = item.value
    return isinstance(call, t.Call) and call.function.span.text == "stream"


def check_recover(recover: t.Recover, splits: Mapping[str, str], report: Messages) -> None:
    """Reports F003 where it would read the test split, F004 for a setting that means nothing."""
    given: dict[str, t.Binding] = {}
    for binding in (s for s in recover.settings if isinstance(s, t.Binding)):
        name = binding.targets[0]
        if name.text not in SETTINGS:
            label = Label(name.span, f"known: {', '.join(SETTINGS)}")
            report.unknown("F004", f"`recover` has no setting `{name}`", label, name.text, SETTINGS)
        elif name.text in given:
            places = Label(name.span, "again"), Label(given[name.text].span, "given here")
            report.error("F004", f"`{name}` is given twice", *places)
        else:
            given[name.text] = binding
            _check_value(binding, name.text, splits, report)
    _check_default_data(recover, given, splits, report)


def _check_value(
    binding: t.Binding, name: str, splits: Mapping[str, str], report: Messages
) -> None:
    setting, value = SETTINGS[name], binding.value
    if setting.holds == DATA:
        _check_data(value, splits, report)
    elif setting.holds == WORD and setting.words:
        _one_of(value.text if isinstance(value, t.Name) else "", value, name, report)
    elif setting.holds == SUM or (setting.holds == CALL and setting.words):
        words = [value] if isinstance(value, t.Name) else called(value)
        for word in words:
            _one_of(word.text, word, name, report)


def called(expr: t.Expr) -> Iterator[t.Name]:
    """The functions of a sum, by name: `kl(temperature = 4) + 0.5 * task()`."""
    if isinstance(expr, t.Call) and isinstance(expr.function, t.Name):
        yield expr.function
    elif isinstance(expr, t.Binary):
        yield from called(expr.left)
        yield from called(expr.right)
    elif isinstance(expr, (t.Tuple, t.List)):
        for item in expr.items:
            yield from called(item)


def _one_of(word: str, place: t.Node, name: str, report: Messages) -> None:
    known = SETTINGS[name].words
    if word not in known:
        label = Label(place.span, f"known: {', '.join(known)}")
        report.unknown("F004", f"`{place.span.text}` is no `{name}`", label, word, known)


def _check_data(value: t.Expr, splits: Mapping[str, str], report: Messages) -> None:
    name = value.text if isinstance(value, t.Name) else ""
    if name not in splits:
        label = Label(value.span, f"declared: {', '.join(splits) or 'none'}")
        report.unknown("N001", f"`{value.span.text}` is no data", label, name, splits)
    elif splits[name] == TEST:
        report.error("F003", *_test(value))


def _test(place: t.Node) -> tuple[str, Label]:
    message = "training reads the test split, and then the test says nothing"
    return message, Label(place.span, "this is a sample of `test`")


def _check_default_data(
    recover: t.Recover,
    given: Mapping[str, t.Binding],
    splits: Mapping[str, str],
    report: Messages,
) -> None:
    """`train` and `valid` are what is taken where nothing is said."""
    for setting, default in (("data", "train"), ("valid", "valid")):
        if setting not in given and splits.get(default) == TEST:
            report.error("F003", *_test(recover.name))
    if "data" not in given and "train" not in splits:
        help = 'add `data train = sample("train", all)`, or name other data: `data = NAME`'
        label = Label(recover.name.span, "on which data?")
        report.error("F001", f"`{recover.name}` has nothing to train on", label, help=help)
