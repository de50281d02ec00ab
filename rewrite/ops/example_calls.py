"""Example calls of an op in every spelling that its declaration names. None of them is run: the
arguments are of the right kind, and their sizes mean nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...grammar.tree import tree as t
from .callables import PROPERTIES, in_place_variant
from .dims import ShapeSpec, compiled
from .meaning import CallWriter
from .opspec import OpSpec
from .read import CONVERTED

_FILLED = {"int": 1, "ints": (1,), "int2": (1, 1), "int3": (1, 1, 1), "float": 1.0, "bool": False}
_FILLED |= {"dtype": torch.float32, "any": 1}
"""What stands for a setting without a default, by its type."""

_FLAGS = frozenset({"unbiased"})
"""Arguments of torch that are flags where the op has a number."""

_DTYPES = {"f": torch.float32, "t": torch.float32, "i": torch.int64, "b": torch.bool}


@dataclass(frozen=True, slots=True)
class ExampleCall:
    """A call of a function, a method or a layer. declared: the declaration names the arguments, so
    that they must fit; what follows from a name (`relu_`, a number first) may take others.
    converted: the arguments of real calls are computed from sizes.
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    params: dict[str, Tensor]
    declared: bool = True
    converted: bool = False


def examples(op: OpSpec, signature: t.Signature, filled: bool = False) -> Iterator[ExampleCall]:
    """A call of the spelling and of what follows from it. `filled`: settings without a default have
    a value, too.
    """
    params = {spec.name: _tensor(spec.shape, "f") for spec in op.params}
    inputs: dict[str, Any] = {spec.name: _tensor(spec.shape, spec.kind) for spec in op.inputs}
    inputs |= {s.name: (inputs[s.name],) * 2 for s in op.inputs if s.variadic}
    settings = op.fill({}, (*inputs, *params))
    if filled:
        settings |= {k: _FILLED.get(op.attrs[k].type) for k, v in settings.items() if v is None}
    none = {s.ours.text: () for s in signature.slots if s.variadic}
    given = {name: value for name, value in settings.items() if value is not None}
    values = {**settings, **none, **inputs, **params, **given}
    yield from _Maker(op, signature, values, params).examples()


@dataclass(frozen=True, slots=True)
class _Maker:
    """The examples of one signature, from values by declared name."""

    op: OpSpec
    signature: t.Signature
    values: dict[str, Any]
    params: dict[str, Tensor]

    def examples(self) -> Iterator[ExampleCall]:
        writer = CallWriter(self.signature, self.op.role, {}, self.op.own)
        name, converted = self.signature.dotted, self._is_converted()
        args, kwargs = ((self._first, (2, -1)), {}) if converted else self._arguments(writer)
        for function, suffix in self._functions(writer):
            yield ExampleCall(
                name + suffix, function, args, kwargs, self.params, not suffix, converted
            )
        if _is_reflected(self.signature, writer.function):
            swapped = (2.0, *args[1:])
            yield ExampleCall(
                f"{name} of a number", writer.function, swapped, {}, self.params, False
            )

    def _is_converted(self) -> bool:
        return any(slot.theirs.text in CONVERTED for slot in self.signature.slots)

    @property
    def _first(self) -> Any:
        return self.values[self.op.inputs[0].name]

    def _arguments(self, writer: CallWriter) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the writer gives, without the settings that the spelling fixes."""
        args, kwargs = writer.arguments(self.values)
        fixed = {k.name.text for k in self.signature.fixed} & self.op.attrs.keys()
        kept = {key: value for key, value in kwargs.items() if key not in fixed}
        return args, {key: bool(v) if key in _FLAGS else v for key, v in kept.items()}

    def _functions(self, writer: CallWriter) -> Iterator[tuple[Callable[..., Any], str]]:
        """The function itself, and what is its like in place."""
        root, name = self.signature.dotted.rpartition(".")[0], writer.name
        if writer.is_module:
            yield self._layer(writer.function), ""
        elif root == "Tensor" and name in PROPERTIES:
            yield lambda x: getattr(x, name), ""
        elif root == "Tensor":
            yield _method(name), ""
            if hasattr(Tensor, f"{name}_"):
                yield _method(f"{name}_"), "_"
        else:
            yield writer.function, ""
            variant = in_place_variant(self.signature.dotted)
            if variant is not None:
                yield variant, "_"

    def _layer(self, kind: type[Any]) -> nn.Module:
        """A layer of the class, as small as can be. Raises TypeError where none can be made."""
        given = inspect.signature(kind).parameters
        required = [p for p in given.values() if p.default is p.empty and p.kind is _NAMED]
        count = 2 if issubclass(kind, nn.RNNBase) else len(required)
        fixed = {k.name.text: compiled(k.value)({}) for k in self.signature.fixed}
        taken = {k: v for k, v in fixed.items() if k in given or issubclass(kind, nn.RNNBase)}
        return kind(*(_UNUSUAL.get(kind) or (2,) * count), **taken)


_NAMED = inspect.Parameter.POSITIONAL_OR_KEYWORD
_UNUSUAL: dict[type[nn.Module], tuple[Any, ...]] = {nn.Unflatten: (1, (1, 1))}


def _is_reflected(signature: t.Signature, function: Any) -> bool:
    """Whether a number may stand in front of the operator and mean the same."""
    root, name = signature.dotted.rpartition(".")[0], getattr(function, "__name__", "")
    return root == "operator" and hasattr(Tensor, f"__r{name}__")


def _method(name: str) -> Callable[..., Any]:
    return lambda x, *args, **kwargs: getattr(x, name)(*args, **kwargs)


def _tensor(shape: ShapeSpec | None, kind: str) -> Tensor:
    rank = 2 if shape is None else shape.least + 2 * shape.rest
    return torch.ones((2,) * rank, dtype=_DTYPES[kind])
