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

from .capture_conditions import Condition
from .capture_inputs import PLAIN, Case, by_position
from .capture_sizes import named_values, parts_of
from .capture_values import Step, children, is_structure, path_text

_LENGTH = len
_WORDS = (str, torch.dtype, torch.device, complex, enum.Enum)


@dataclass(frozen=True)
class Demand:
    """One thing that must be true of a part of a call: `test(measure(part), operand)`.

    `said` is what a message tells of a part that fails, with a `%s` for `shown(part)`; None stands
    for the part itself, and a word for a method of it.
    """

    parameter: str
    steps: tuple[Step, ...]
    test: Callable[..., Any]
    operand: Any
    captured: Any
    said: str = "is %s"
    shown: Callable[..., Any] | str | None = None
    measure: Callable[..., Any] | str | None = None

    @property
    def input(self) -> str:
        return self.parameter + path_text(self.steps)

    @property
    def condition(self) -> Condition:
        why = "the graph holds the one way that the model went"
        said = f"`{self.input}` was captured {self.captured}"
        return Condition(self.input, None, self.operand, said, why)

    @property
    def text(self) -> str:
        """The message, for `%` with what is shown where `said` holds a `%s`."""
        name, captured = (str(t).replace("%", "%%") for t in (self.input, self.captured))
        return f"argument `{name}` {self.said}, and the graph was captured {captured}"


def demands(
    forward: Callable[..., Any],
    case: Case,
    optional: Container[str],
    ranked: Container[str],
    numbers: bool,
) -> Iterator[Demand]:
    """Everything that a call must have in common with the example, but tensors: of those in
    `ranked` the number of axes. `optional`: the inputs that a graph takes for None where a call
    does not give them. `numbers`: those are fixed too.
    """
    yield from _structure(forward, case, optional)
    for name, steps, leaf in parts_of(forward, case):
        if isinstance(leaf, torch.Tensor) and name + path_text(steps) in ranked:
            about = f"with {leaf.dim()} axes", "has %s axes", "dim", "dim"
            yield Demand(name, steps, operator.eq, leaf.dim(), *about)
        elif numbers and isinstance(leaf, (int, float)) and not isinstance(leaf, (bool, enum.Enum)):
            yield Demand(name, steps, operator.eq, leaf, f"with {leaf}")


def _structure(
    forward: Callable[..., Any], case: Case, optional: Container[str]
) -> Iterator[Demand]:
    parameters = inspect.signature(forward).parameters
    given = dict(named_values(forward, case))
    fixed = (n for n, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
    absent = {name: parameters[name].default for name in fixed if name not in given}
    named = [name for name in given if name not in parameters]
    if named:
        said = f"with {', '.join(f'`{name}`' for name in named)} by name"
        yield Demand(by_position(parameters, named), (), operator.is_, None, said, "is given")
    for name, value in given.items():
        if name in optional and value is not None:
            yield Demand(name, (), operator.is_not, None, "with it", "is missing")
        yield from _of(name, (), value)
    for name, default in absent.items():
        # What a graph's own code cannot spell is None there.
        yield from _of(name, (), default if isinstance(default, PLAIN) else None)


def _of(name: str, steps: tuple[Step, ...], value: Any) -> Iterator[Demand]:
    if value is None:
        yield Demand(name, steps, operator.is_, None, "without it", "is given")
    elif isinstance(value, bool):
        yield Demand(name, steps, operator.is_, value, f"with {value}")
    elif isinstance(value, _WORDS):
        yield Demand(name, steps, operator.eq, value, f"with {value!r}")
    elif is_structure(value):
        yield from _items(name, steps, value)
        for step, part in children(value):
            yield from _of(name, (*steps, step), part)


def _items(name: str, steps: tuple[Step, ...], value: Any) -> Iterator[Demand]:
    """The length of a list, the keys of a dict."""
    if isinstance(value, dict):
        keys = list(value)
        about = f"with {keys}", "has the keys %s", list
        yield from (Demand(name, steps, operator.contains, key, *about) for key in keys)
        yield Demand(name, steps, operator.eq, _LENGTH(keys), *about, _LENGTH)
    elif isinstance(value, (tuple, list)):
        count = _LENGTH(value)
        about = f"with {count}", "has %s items", _LENGTH
        yield Demand(name, steps, operator.eq, count, *about, _LENGTH)
