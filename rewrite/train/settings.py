"""The settings of one `recover`, read once, before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...grammar.diagnostics import Label, LissomError, Span, did_you_mean, fail
from ...grammar.library.learning import SCHEDULES, SETTINGS
from ...grammar.tree import tree as t

Number = Callable[[t.Expr], Any]
"""The value of an expression of the program: numbers, parameters, variables of loops."""

EPOCHS, BATCH = 10, 128


@dataclass(frozen=True, slots=True)
class Called:
    """`0.5 * kl(temperature = 4)`: a factor, a name, what stands in its brackets."""

    name: str
    args: tuple[Any, ...]
    keywords: Mapping[str, Any]
    span: Span
    factor: float = 1.0

    def __str__(self) -> str:
        given = [*map(str, self.args), *(f"{k} = {v}" for k, v in self.keywords.items())]
        factor = "" if self.factor == 1 else f"{self.factor:g} * "
        return f"{factor}{self.name}({', '.join(given)})"


@dataclass(frozen=True, slots=True)
class Settings:
    """What `recover NAME { ... }` says; docs/learning.md tells what each means. given: the names of
    the settings that the program has.
    """

    name: str
    span: Span
    data: str
    valid: str | None
    loss: tuple[Called, ...]
    optimizer: Called
    schedule: Called
    augment: tuple[Called, ...]
    teacher: t.Expr | None = None
    student: t.Expr | None = None
    until: t.Expr | None = None
    epochs: int = EPOCHS
    minutes: float | None = None
    patience: int | None = None
    watch: str | None = None
    batch: int = BATCH
    seed: int = 0
    disturb: float = 0.0
    clip: float | None = None
    constrained: bool = True
    frozen_norms: bool = False
    only: str | None = None
    keeps_last: bool = False
    given: frozenset[str] = frozenset()

    def terms(self, exits: bool) -> tuple[Called, ...]:
        """What the loss is the sum of. exits: whether the model has some, which then learn too
        where the program does not say of what.
        """
        more = (Called("exits", (), {}, self.span),) if exits and "loss" not in self.given else ()
        return (*self.loss, *more)

    def as_json(self) -> dict[str, Any]:
        """The settings as a certificate holds them."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        exprs = {name: getattr(self, name) for name in ("teacher", "student", "until")}
        calls = {"loss": self.loss, "augment": self.augment}
        return {
            **plain,
            **{name: None if e is None else e.span.flat for name, e in exprs.items()},
            **{name: " + ".join(map(str, found)) for name, found in calls.items()},
            "optimizer": str(self.optimizer),
            "schedule": str(self.schedule),
        }


_PLAIN = (
    "name", "data", "valid", "epochs", "minutes", "patience", "watch", "batch", "seed", "disturb",
    "clip", "constrained", "frozen_norms", "only", "keeps_last",
)  # fmt: skip


def read_settings(recover: t.Recover, number: Number, data: Mapping[str, str]) -> Settings:
    """The settings of a recover. data: split of each `data` statement. Raises F001, F003, F004."""
    reader = _Reader(recover, number)
    name, span = recover.name.text, recover.name.span
    default = "valid" if data.get("valid", "test") != "test" else None
    valid = reader.word("valid", default)
    trained = reader.word("data", "train")
    reader.require_data(data, trained, valid)
    call = Called("AdamW", (), {"lr": 0.001}, span)
    return Settings(
        name,
        span,
        trained or "",
        valid,
        reader.calls("loss") or (Called("task", (), {}, span),),
        reader.call("optimizer") or call,
        reader.call("schedule", SCHEDULES) or Called("constant", (), {}, span),
        reader.calls("augment"),
        recover.setting("teacher"),
        recover.setting("student"),
        recover.until,
        reader.count("epochs", EPOCHS, least=0),
        reader.positive("minutes"),
        reader.positive("patience"),
        reader.word("watch", None),
        reader.count("batch", BATCH),
        reader.count("seed", 0, least=0),
        reader.share("disturb"),
        reader.positive("clip"),
        reader.word("constraints", "kept") == "kept",
        reader.word("norms", "batch") == "frozen",
        reader.text("only"),
        reader.word("keep", "best") == "last",
        frozenset(s.targets[0].text for s in recover.settings if isinstance(s, t.Binding)),
    )


@dataclass(frozen=True)
class _Reader:
    recover: t.Recover
    number: Number

    def word(self, name: str, default: str | None) -> str | None:
        found = self.recover.setting(name)
        if found is None:
            return default
        words = SETTINGS[name].words
        if not isinstance(found, t.Name) or (words and found.text not in words):
            raise self._wrong(found, f"`{name}` is {' or '.join(words) or 'one word'}")
        return found.text

    def text(self, name: str) -> str | None:
        found = self.recover.setting(name)
        if found is None or isinstance(found, t.String):
            return None if found is None else found.value
        raise self._wrong(found, f'`{name}` is a text: "layers.*"')

    def require_data(self, data: Mapping[str, str], *names: str | None) -> None:
        for name in (name for name in names if name is not None):
            if data.get(name) == "test":
                message = "training reads the test split, and then the test says nothing"
                raise fail("F003", message, Label(self.recover.span))
            if name not in data:
                hint = f"declared: {', '.join(data) or 'none'}"
                message = f"`{self.recover.name}` has no data `{name}`"
                raise fail("F001", message, Label(self.recover.name.span), help=hint)

    def count(self, name: str, default: int, least: int = 1) -> int:
        found = self.recover.setting(name)
        value = default if found is None else self.number(found)
        if type(value) is not int or value < least:
            raise self._wrong(found, f"`{name}` is a whole number, {least} or more")
        return value

    def positive(self, name: str) -> Any:
        found = self.recover.setting(name)
        value = None if found is None else self.number(found)
        if value is not None and not (isinstance(value, (int, float)) and value > 0):
            raise self._wrong(found, f"`{name}` is a number greater than 0")
        return value

    def share(self, name: str) -> float:
        found = self.recover.setting(name)
        value = 0.0 if found is None else self.number(found)
        if not (isinstance(value, (int, float)) and 0 <= value <= 1):
            raise self._wrong(found, f"`{name}` is a share, 0% to 100%")
        return float(value)

    def call(self, name: str, known: Mapping[str, str] | None = None) -> Called | None:
        found = self.recover.setting(name)
        if found is None:
            return None
        (call, *more) = self._sum(found, 1.0)
        if more or call.factor != 1:
            raise self._wrong(found, f"`{name}` is one name: `{call.name}(...)`")
        return self._known(call, name, known or {})

    def calls(self, name: str) -> tuple[Called, ...]:
        found = self.recover.setting(name)
        if found is None:
            return ()
        words = dict.fromkeys(SETTINGS[name].words, "")
        return tuple(self._known(call, name, words) for call in self._sum(found, 1.0))

    def _known(self, call: Called, name: str, known: Mapping[str, str]) -> Called:
        if known and call.name not in known:
            place = Label(call.span, f"known: {', '.join(known)}")
            hint = next(iter(did_you_mean(call.name, known)), "")
            raise fail("F004", f"`{call.name}` is no `{name}`", place, help=hint)
        return call

    def _sum(self, expr: t.Expr, factor: float) -> Iterator[Called]:
        """`a() + 0.5 * b(x) - c()`, a list of calls, or one name."""
        if isinstance(expr, (t.List, t.Tuple)):
            for item in expr.items:
                yield from self._sum(item, factor)
        elif isinstance(expr, t.Binary) and expr.op in ("+", "-"):
            yield from self._sum(expr.left, factor)
            yield from self._sum(expr.right, factor if expr.op == "+" else -factor)
        elif isinstance(expr, t.Binary) and expr.op == "*":
            left, right = expr.left, expr.right
            flipped = isinstance(left, t.Call) and not isinstance(right, t.Call)
            scale, rest = (right, left) if flipped else (left, right)
            yield from self._sum(rest, factor * float(self._factor(scale)))
        else:
            yield replace(self._called(expr), factor=factor)

    def _factor(self, expr: t.Expr) -> float:
        value = self.number(expr)
        if not isinstance(value, (int, float)):
            raise self._wrong(expr, "a factor is a number")
        return float(value)

    def _called(self, expr: t.Expr) -> Called:
        if isinstance(expr, t.Name):
            return Called(expr.text, (), {}, expr.span)
        if not isinstance(expr, t.Call) or not isinstance(expr.function, t.Name):
            raise self._wrong(expr, "this is `name(setting = 1)`, and sums of such")
        args = tuple(self._plain(arg) for arg in expr.args)
        keywords = {k.name.text: self._plain(k.value) for k in expr.keywords}
        return Called(expr.function.text, args, keywords, expr.span)

    def _plain(self, expr: t.Expr) -> Any:
        """A number, a text, a list; words such as `true` stand for themselves."""
        if isinstance(expr, (t.List, t.Tuple)):
            return tuple(map(self._plain, expr.items))
        try:
            return self.number(expr)
        except LissomError:
            if isinstance(expr, t.Name):
                return expr.text
            raise

    def _wrong(self, place: t.Node | None, message: str) -> LissomError:
        return fail("F004", message, Label((place or self.recover.name).span))
