"""What a file can name: its own op and extern declarations first, then those of the library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from ..diagnostics import Diagnostic, LissomError, Span
from ..tree import tree as t

TRAITS = frozenset((
    "addend", "additive", "alias", "broadcasts", "commutative", "elementwise", "equation", "gated",
    "idempotent", "linear_in_weight", "linear_in_x", "many", "mask", "movement", "nonnegative",
    "normalises", "pads", "per_channel", "pooling", "random", "reduction", "resize", "scaled",
    "selection", "statistics", "unrounded",
))  # fmt: skip
COMPUTED = frozenset(("movement", "resize"))
"""Traits of the ops whose settings may be computed in the graph."""

ATTR_TYPES = frozenset((
    "int", "int2", "int3", "ints", "float", "frac", "bool", "str", "dtype", "any",
))  # fmt: skip

BUFFERS = frozenset(("running_mean", "running_var"))
"""Weights of ops that no optimiser changes: layers keep them as buffers, and they are no parameters
to count.
"""


def is_weight(param: str) -> bool:
    """Whether a declared parameter is a weight: neither a bias nor a running statistic."""
    return param not in BUFFERS and "bias" not in param


class DeclaredNames(Protocol):
    """The part of `vocabulary.Declarations` that the checker reads."""

    def op(self, name: str) -> t.Op | None: ...
    def extern(self, name: str) -> t.Extern | None: ...
    def names(self) -> tuple[str, ...]: ...
    def extern_names(self) -> tuple[str, ...]: ...
    def spellings(self) -> dict[str, tuple[str, ...]]: ...


@dataclass(frozen=True)
class OpFacts:
    """The parts of one `op` declaration by name."""

    decl: t.Op

    @property
    def name(self) -> str:
        return self.decl.name.text

    @cached_property
    def params(self) -> dict[str, t.OpParam]:
        return {i.name.text: i for i in self.decl.items if isinstance(i, t.OpParam)}

    @property
    def weights(self) -> list[str]:
        return [name for name in self.params if is_weight(name)]

    @cached_property
    def attrs(self) -> dict[str, t.OpAttr]:
        return {i.name.text: i for i in self.decl.items if isinstance(i, t.OpAttr)}

    @cached_property
    def dims(self) -> dict[str, t.Expr]:
        return {i.name.text: i.value for i in self.decl.items if isinstance(i, t.OpDim)}

    @cached_property
    def costs(self) -> dict[str, t.Expr]:
        return {i.name.text: i.value for i in self.decl.items if isinstance(i, t.OpCost)}

    @cached_property
    def traits(self) -> frozenset[str]:
        items = [i for i in self.decl.items if isinstance(i, t.OpTrait)]
        return frozenset(word.text for item in items for word in item.names)

    @property
    def inputs(self) -> tuple[t.Param, ...]:
        return self.decl.inputs

    @property
    def fewest(self) -> int:
        return sum(not (p.optional or p.variadic) for p in self.inputs)

    @property
    def most(self) -> int | None:
        """The largest number of inputs, None if there is no limit."""
        return None if any(p.variadic for p in self.inputs) else len(self.inputs)

    @cached_property
    def settings(self) -> tuple[str, ...]:
        """What a keyword may name: inputs, parameters and attributes."""
        return (*(p.name.text for p in self.inputs), *self.params, *self.attrs)

    def spelled(self, dotted: str) -> str:
        """The op as a torch name writes it: `softmax(dim = -3)`."""
        items = [i for i in self.decl.items if isinstance(i, (t.OpMeaning, t.OpSpelling))]
        fixed = next((i.signature.fixed for i in items if i.signature.dotted == dotted), ())
        given = [f"{k.name} = {k.value.span.text}" for k in fixed if k.name.text in self.attrs]
        inputs = [param.name.text for param in self.inputs]
        return f"{self.name}({', '.join(inputs + given)})" if given else self.name


def _plain(name: str) -> str:
    """Torch writes `BatchNorm2d`, `batch_norm` and `relu_`."""
    return name.replace("_", "").lower()


class SymbolTable:
    """Looks a name up in the file, then in the library."""

    def __init__(self, file: t.File, library: DeclaredNames) -> None:
        self._library = library
        self._ops = {op.name.text: op for op in file.all(t.Op)}
        self.own_externs = tuple(e.name.text for e in file.all(t.Extern))
        self._externs: dict[str, t.Extern | None] = {e.name.text: e for e in file.all(t.Extern)}
        self.broken: list[Diagnostic] = []
        self._facts: dict[str, OpFacts | None] = {}

    def op(self, name: str) -> OpFacts | None:
        if name not in self._facts:
            found = self._ops.get(name) or self._read(self._library.op, name)
            self._facts[name] = OpFacts(found) if isinstance(found, t.Op) else None
        return self._facts[name]

    def extern(self, name: str) -> t.Extern | None:
        if name not in self._externs:
            found = self._read(self._library.extern, name)
            self._externs[name] = found if isinstance(found, t.Extern) else None
        return self._externs[name]

    def _read(self, look_up: Callable[[str], object], name: str) -> object:
        """A declaration of the library; what is wrong with its text is kept in `broken`."""
        try:
            return look_up(name)
        except LissomError as error:
            self.broken += error.diagnostics
            return None

    def is_op(self, name: str) -> bool:
        return self.op(name) is not None

    @cached_property
    def op_names(self) -> tuple[str, ...]:
        return (*self._ops, *self._library.names())

    @cached_property
    def extern_names(self) -> tuple[str, ...]:
        return (*self.own_externs, *self._library.extern_names())

    def of_torch(self, name: str) -> str:
        """`hardtanh(x, min_val = 0.0, max_val = 6.0)` for `relu6`: the op that torch calls so, with
        the attributes that this spelling fixes; "" if there is none.
        """
        for dotted, ops in self._library.spellings().items():
            if _plain(dotted.rpartition(".")[2]) == _plain(name) and (op := self.op(ops[0])):
                return op.spelled(dotted)
        return ""

    def facts(self, names: tuple[str, ...]) -> Iterator[OpFacts]:
        """The declared ops among these names."""
        for name in names:
            found = self.op(name)
            if found is not None:
                yield found


def tail(node: t.Attribute) -> Span:
    """The place of `weight` in `c.weight`."""
    return Span(node.span.source, node.span.end - len(node.name), node.span.end)
