"""What a graph takes for granted of the structure of a call: which inputs are there, how long lists
are, which keys a dict has, what flags and words say.
"""

from __future__ import annotations

import enum
import inspect
import operator
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..graph.runs import copied
from ..graph.values import PathStep, children, is_structure, path_text
from .conditions import Condition
from .forms import Known
from .inputs import PLAIN, Case, by_position
from .questions import DEVICE, OFFSET, ORDER, PINNED, TYPE
from .sizes import call_parts, named_values

_LENGTH = len
_WORDS = (str, torch.dtype, torch.device, complex, enum.Enum)


Reading = Callable[..., Any] | str | tuple[Any, ...] | None


@dataclass(frozen=True)
class StructureDemand:
    """One thing that must be true of a part of a call: `test(measure(part), operand)`.

    `said` is what a message tells of a part that fails, with a `%s` for `shown(part)`; None stands
    for the part itself, and a word for a method of it.
    """

    parameter: str
    steps: tuple[PathStep, ...]
    test: Callable[..., Any]
    operand: Any
    captured: Any
    said: str = "is %s"
    shown: Reading = None
    measure: Reading = None
    asked: str = ""

    @property
    def input(self) -> str:
        return self.parameter + path_text(self.steps)

    @property
    def condition(self) -> Condition:
        why = "the graph holds the one way that the model went"
        said = f"`{self.input}` was captured {self.captured}"
        return Condition(self.input, None, self.operand, said, why, self.asked)

    @property
    def text(self) -> str:
        """The message, for `%` with what is shown where `said` holds a `%s`."""
        name, captured = (str(t).replace("%", "%%") for t in (self.input, self.captured))
        where = f" (asked at {self.asked})" if self.asked else ""
        return f"argument `{name}` {self.said}, and the graph was captured {captured}{where}"


def demands(
    forward: Callable[..., Any],
    case: Case,
    optional: Container[str],
    known: Known,
) -> Iterator[StructureDemand]:
    """Everything that a call must have in common with the example; of tensors what is `known`.
    `optional`: the inputs that a graph takes for None where a call does not give them.
    """
    yield from _structure(forward, case, optional)
    for name, steps, leaf in call_parts(forward, case):
        if isinstance(leaf, torch.Tensor):
            yield from _tensor(name, steps, leaf, known)
        elif (
            known.numbers
            and isinstance(leaf, (int, float))
            and not isinstance(leaf, (bool, enum.Enum))
        ):
            yield StructureDemand(name, steps, operator.eq, leaf, f"with {leaf}")


def _tensor(
    name: str, steps: tuple[PathStep, ...], leaf: torch.Tensor, known: Known
) -> Iterator[StructureDemand]:
    path = name + path_text(steps)
    if path in known.ranked:
        about = f"with {leaf.dim()} axes", "has %s axes", "dim", "dim"
        yield StructureDemand(name, steps, operator.eq, leaf.dim(), *about)
    for kind, (read, value, *about) in _forms(copied(leaf)):
        if (kind, path) in known.forms:
            asked = known.forms[kind, path]
            yield StructureDemand(
                name, steps, operator.eq, value, *about, measure=read, asked=asked
            )


def _forms(x: torch.Tensor) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """For each kind of question how a call is asked it, the answer, and both in words. `x` lies as
    the capture had it.
    """
    kind, device = (getattr, ("dtype",), {}), (getattr, ("device",), {})
    yield TYPE, (kind, x.dtype, f"with {x.dtype}", "is %s", kind)
    orders = {2: torch.channels_last, 3: torch.channels_last_3d}
    last = orders.get(x.dim() - 2, torch.contiguous_format)
    if x.is_contiguous() or not x.is_contiguous(memory_format=last):
        words = ("contiguous", "not contiguous")
        captured, said = words if x.is_contiguous() else words[::-1]
        yield ORDER, ("is_contiguous", x.is_contiguous(), captured, f"is {said}")
    else:
        read = ("is_contiguous", (), {"memory_format": last})
        yield ORDER, (read, True, f"in {last}", f"is not in {last}")
    yield (
        OFFSET,
        (
            "storage_offset",
            x.storage_offset(),
            "at the start of a memory",
            "lies inside of a larger one",
        ),
    )
    cpu = x.device.type == "cpu"
    yield DEVICE, ((getattr, ("is_cpu",), {}), cpu, f"on {x.device}", "is on %s", device)
    yield PINNED, ("is_pinned", x.is_pinned(), "as it was", "is pinned otherwise")


def _structure(
    forward: Callable[..., Any], case: Case, optional: Container[str]
) -> Iterator[StructureDemand]:
    parameters = inspect.signature(forward).parameters
    given = dict(named_values(forward, case))
    fixed = (n for n, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
    absent = {name: parameters[name].default for name in fixed if name not in given}
    named = [name for name in given if name not in parameters]
    if named:
        said = f"with {', '.join(f'`{name}`' for name in named)} by name"
        yield StructureDemand(
            by_position(parameters, named), (), operator.is_, None, said, "is given"
        )
    for name, value in given.items():
        if name in optional and value is not None and not is_structure(value):
            yield StructureDemand(name, (), operator.is_not, None, "with it", "is missing")
        yield from _of(name, (), value)
    for name, default in absent.items():
        # What a graph's own code cannot spell is None there.
        yield from _of(name, (), default if isinstance(default, PLAIN) else None)


def _of(name: str, steps: tuple[PathStep, ...], value: Any) -> Iterator[StructureDemand]:
    if value is None:
        yield StructureDemand(name, steps, operator.is_, None, "without it", "is given")
    elif isinstance(value, bool):
        yield StructureDemand(name, steps, operator.is_, value, f"with {value}")
    elif isinstance(value, _WORDS):
        yield StructureDemand(name, steps, operator.eq, value, f"with {value!r}")
    elif is_structure(value):
        yield StructureDemand(name, steps, operator.is_not, None, "with it", "is missing")
        yield from _items(name, steps, value)
        for step, part in children(value):
            yield from _of(name, (*steps, step), part)


def _items(name: str, steps: tuple[PathStep, ...], value: Any) -> Iterator[StructureDemand]:
    """The length of a list, the keys of a dict."""
    if isinstance(value, dict):
        keys = list(value)
        about = f"with {keys}", "has the keys %s", list
        yield from (StructureDemand(name, steps, operator.contains, key, *about) for key in keys)
        yield StructureDemand(name, steps, operator.eq, _LENGTH(keys), *about, _LENGTH)
    elif isinstance(value, (tuple, list)):
        count = _LENGTH(value)
        about = f"with {count}", "has %s items", _LENGTH
        yield StructureDemand(name, steps, operator.eq, count, *about, _LENGTH)
