"""The op vocabulary of one run: which torch spellings are which op."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

from torch import fx

from ...grammar.diagnostics import Span
from ...grammar.library.vocabulary import Declarations, library_sources
from ...grammar.tree import tree as t
from .. import runtime
from .attributes import AttrSpec
from .call import module_at
from .callables import (
    IN_PLACE_OPERATORS,
    PROPERTIES,
    in_place_variant,
    is_module,
    lookup,
    resolve,
)
from .declaration import op_spec
from .opspec import Env, InputSpec, OpSpec, ParamSpec
from .overrides import override
from .properties import PropertyReader
from .read import CallReader

_RUNTIME = {f"runtime.{name}": getattr(runtime, name) for name in runtime.__all__}
"""What declarations call `runtime.quantize`: as much a part of every vocabulary as torch."""

__all__ = ["AttrSpec", "Env", "InputSpec", "OpSpec", "ParamSpec", "Vocabulary", "op_spec"]


@dataclass
class _Spelled:
    """The (torch name, op name) pairs of one callable, and their readers once someone needs
    them.
    """

    names: list[tuple[str, str]] = field(default_factory=list)
    in_place: bool = False
    reader: type[CallReader] = CallReader
    readers: tuple[CallReader, ...] | None = None

    @cached_property
    def ops(self) -> tuple[str, ...]:
        return tuple(name for _, name in self.names)


class Vocabulary:
    """Ops by name, and readers by function, method or module class. Declarations are parsed when
    first needed.

    `own` maps torch names used in declarations to callables or module classes that the host
    program adds. Raises N003 for a name declared twice and T003 for a torch name that does not
    exist.
    """

    def __init__(self, declarations: Declarations, own: Mapping[str, Any] | None = None) -> None:
        self.declarations = declarations
        self.own = {**_RUNTIME, **(own or {})}
        self._specs: dict[str, OpSpec] = {}
        self._functions: dict[Any, _Spelled] = {}
        self._methods: dict[str, _Spelled] = {}
        self._properties: dict[str, _Spelled] = {}
        self._classes: dict[type, _Spelled] = {}
        self._bases: dict[type, type | str] = {}
        for dotted, names in declarations.spellings().items():
            self._add(dotted, names)

    @classmethod
    def library(cls) -> Vocabulary:
        """The ops that lissom ships."""
        return _library()

    @classmethod
    def from_files(
        cls, files: Iterable[t.File], own: Mapping[str, Any] | None = None
    ) -> Vocabulary:
        """The library and the ops of these files."""
        return cls(Declarations(library_sources(), files), own)

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None

    def __getitem__(self, name: str) -> OpSpec:
        found = self.get(name)
        if found is None:
            raise KeyError(name)
        return found

    def get(self, name: str) -> OpSpec | None:
        """The compiled declaration of an op, or None."""
        if name not in self._specs:
            decl = self.declarations.op(name)
            if decl is None:
                return None
            self._specs[name] = op_spec(decl, self.own)
        return self._specs[name]

    def names(self) -> tuple[str, ...]:
        return self.declarations.names()

    def computed_by(self, function: Any) -> OpSpec:
        """The op that a function of torch computes, the first of those declared. Raises KeyError
        where there is none.
        """
        return self[self._functions[function].ops[0]]

    # -- readers -----------------------------------------------------------------------------------

    def readers(self, node: fx.Node, root: fx.GraphModule) -> tuple[CallReader, ...] | str:
        """What can read a node, in order of declaration; or why nothing can."""
        found = self._spelled(node, root)
        if found is None:
            return f"no op is declared for {shown(node)}"
        return found if isinstance(found, str) else self._compiled(found)

    def candidates(self, node: fx.Node, root: fx.GraphModule) -> tuple[str, ...]:
        """The names of the ops that a node may turn out to be, without reading it."""
        found = self._spelled(node, root)
        return found.ops if isinstance(found, _Spelled) else ()

    def _spelled(self, node: fx.Node, root: fx.GraphModule) -> _Spelled | str | None:
        if node.target is getattr:
            return self._properties.get(str(node.args[1]))
        if node.op == "call_function":
            return self._functions.get(node.target)
        if node.op == "call_method":
            return self._methods.get(str(node.target))
        if node.op != "call_module":
            return f"a {node.op} is no op"
        base = self._base(type(module_at(root, str(node.target))))
        return base if isinstance(base, str) else self._classes[base]

    def _base(self, kind: type) -> type | str:
        if kind not in self._bases:
            self._bases[kind] = _readable_base(kind, self._classes)
        return self._bases[kind]

    def _compiled(self, found: _Spelled) -> tuple[CallReader, ...]:
        if found.readers is None:
            found.readers = tuple(
                found.reader(self[name], signature, found.in_place)
                for dotted, name in found.names
                for signature in self[name].signatures
                if signature.dotted == dotted
            )
        return found.readers

    def _add(self, dotted: str, names: tuple[str, ...]) -> None:
        found = lookup(dotted, self.own)
        if found is None:
            found = resolve(dotted, self.own, self._span(dotted, names[0]))
        pairs = [(dotted, name) for name in names]
        if is_module(found):
            self._classes.setdefault(found, _Spelled()).names += pairs
            return
        root, _, method = dotted.rpartition(".")
        if root == "Tensor" and method in PROPERTIES:
            self._properties.setdefault(method, _Spelled(reader=PropertyReader)).names += pairs
            return
        in_place = root == "operator" and method in IN_PLACE_OPERATORS
        self._function(found, pairs, in_place)
        variant = in_place_variant(dotted)
        if variant is not None:
            self._function(variant, pairs, in_place=True)
        if root == "Tensor":
            self._methods.setdefault(method, _Spelled()).names += pairs
            self._methods.setdefault(f"{method}_", _Spelled(in_place=True)).names += pairs

    def _span(self, dotted: str, name: str) -> Span:
        """Where an op names a torch callable; parses the op, so it is for errors only."""
        return next(s.span for s in self[name].signatures if s.dotted == dotted)

    def _function(self, function: Any, pairs: list[tuple[str, str]], in_place: bool) -> None:
        spelled = self._functions.setdefault(function, _Spelled(in_place=in_place))
        known = {name for _, name in spelled.names}
        spelled.names += [pair for pair in pairs if pair[1] not in known]


@cache
def _library() -> Vocabulary:
    return Vocabulary(Declarations(library_sources()))


def _readable_base(kind: type, known: Mapping[type, Any]) -> type | str:
    """The class whose reader may read `kind`: itself, or the one it adds nothing to that `forward`
    would use.
    """
    base = next((above for above in kind.__mro__ if above in known), None)
    if base is None:
        return f"no op is declared for the module class {kind.__name__}"
    changed = override(kind, base)
    return f"the class {kind.__name__} overrides {changed} of its base" if changed else base


def shown(node: fx.Node) -> str:
    """What a node calls, as people write it."""
    if node.op == "call_method":
        return f"the method {node.target}"
    if node.target is getattr:
        return f"the property {node.args[1]}"
    target: Any = node.target
    space = getattr(target, "__module__", None) or ""
    name = getattr(target, "__name__", str(target))
    return f"{space.removeprefix('_')}.{name}".removeprefix(".")
