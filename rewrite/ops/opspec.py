"""An op declaration, compiled: its inputs, parameters and attributes, and what its dimensions say
about shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch

from ...grammar.checks.declared import BUFFERS
from ...grammar.checks.kind import DTYPES
from ...grammar.diagnostics import Label, fail
from ...grammar.tree import tree as t
from .attributes import AttrSpec, numbers
from .callables import is_module, lookup
from .dims import (
    Evaluate,
    Scope,
    Shape,
    ShapeSpec,
    broadcast,
    compiled,
    names_of,
    shape_spec,
    unify_dims,
)
from .layers import build_layer
from .meaning import CallWriter
from .shapes import each_shape, on_meta, one_float, shape_of, with_result
from .spec import TensorSpec, spec_of


class Specs(Protocol):
    """What `OpSpec.result_specs` needs of a call."""

    attrs: dict[str, Any]

    def input_specs(self) -> dict[str, Any]: ...

    def param_specs(self) -> dict[str, TensorSpec | None]: ...


@dataclass(frozen=True, slots=True)
class InputSpec:
    """A tensor the op reads. `kind` is the class of its type, f, i, b or t (any), or the type."""

    name: str
    kind: str
    optional: bool
    variadic: bool
    shape: ShapeSpec | None


@dataclass(frozen=True, slots=True)
class ParamSpec:
    """A weight or buffer of the op. `kind` as of an input."""

    name: str
    kind: str
    optional: bool
    shape: ShapeSpec | None


class Env(dict[str, int]):
    """Dimension name -> size, with the shapes and attributes it was solved from in `scope`."""

    def __init__(self, scope: Scope) -> None:
        super().__init__({k: v for k, v in scope.items() if k[0].isupper()})
        self.scope = scope


@dataclass(frozen=True, eq=False)
class OpSpec:
    """One `op` statement.

    `results` is 0 where their number depends on the attributes (trait `many`).
    """

    decl: t.Op
    name: str
    inputs: tuple[InputSpec, ...]
    params: tuple[ParamSpec, ...]
    attrs: dict[str, AttrSpec]
    traits: frozenset[str]
    results: int
    own: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def meaning(self) -> t.Signature:
        """The signature of the torch function that computes the op."""
        found = next((i for i in self.decl.items if isinstance(i, t.OpMeaning)), None)
        if found is None:
            help_ = "add `meaning torch.function(input = x, ...)`"
            place = Label(self.decl.name.span)
            raise fail("N001", f"the op `{self.name}` has no meaning", place, help=help_)
        return found.signature

    @cached_property
    def signatures(self) -> tuple[t.Signature, ...]:
        """The meaning and all spellings, in textual order."""
        kinds = (t.OpMeaning, t.OpSpelling)
        return tuple(item.signature for item in self.decl.items if isinstance(item, kinds))

    @cached_property
    def layers(self) -> tuple[type[Any], ...]:
        """The module classes that compute the op, in textual order."""
        found = (lookup(signature.dotted, self.own) for signature in self.signatures)
        return tuple(kind for kind in found if kind is not None and is_module(kind))

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """The defaults that do not depend on the call; what torch takes where a dimension is
        meant.
        """
        filled = self.fill({}, ())
        plain = (a for a in self.attrs.values() if a.dim is not None or not a.needs)
        return {attr.name: filled[attr.name] for attr in plain}

    @cached_property
    def writer(self) -> CallWriter:
        """How the meaning is called."""
        return CallWriter(self.meaning, self.role, self.defaults, self.own)

    def writer_of(self, kind: type[Any]) -> CallWriter | None:
        """How a layer of this class is called; None if no spelling names the class."""
        writers = (
            CallWriter(s, self.role, self.defaults, self.own)
            for s in self.signatures
            if is_module(lookup(s.dotted, self.own))
        )
        return next((writer for writer in writers if writer.function is kind), None)

    @cached_property
    def role(self) -> dict[str, str]:
        """Declared name -> `input`, `param` or `attr`."""
        roles = {spec.name: "input" for spec in self.inputs}
        roles |= {spec.name: "param" for spec in self.params}
        return roles | dict.fromkeys(self.attrs, "attr")

    @cached_property
    def mixes(self) -> tuple[str, ...] | None:
        """Dimensions, `...` and attributes with axis numbers (of the first input) along which a
        result depends on other positions; () for `mixes none`, None where the op does not say.
        """
        items = [i for i in self.decl.items if isinstance(i, t.OpMixes)]
        words = dict.fromkeys(word.text for item in items for word in item.names)
        return tuple(word for word in words if word != "none") if items else None

    @cached_property
    def sums(self) -> frozenset[str]:
        """The dimensions that the op says it only sums products over."""
        items = (i for i in self.decl.items if isinstance(i, t.OpSums))
        return frozenset(word.text for item in items for word in item.names)

    @property
    def keeps_statistics(self) -> bool:
        """Whether statistics that it keeps scale and shift each position by itself, as those of
        `batch_norm` do in eval mode.
        """
        return self.mixes == () and {p.name for p in self.params} >= BUFFERS

    @cached_property
    def _dims(self) -> tuple[tuple[str, Evaluate, frozenset[str]], ...]:
        items = (i for i in self.decl.items if isinstance(i, t.OpDim))
        return tuple((i.name.text, compiled(i.value), names_of(i.value)) for i in items)

    @cached_property
    def _costs(self) -> dict[str, tuple[Evaluate, frozenset[str]]]:
        items = (i for i in self.decl.items if isinstance(i, t.OpCost))
        return {i.name.text: (compiled(i.value), names_of(i.value)) for i in items}

    @cached_property
    def outputs(self) -> tuple[ShapeSpec | None, ...]:
        return tuple(shape_spec("result", kind) for kind in self.decl.results)

    @cached_property
    def _shaped(self) -> tuple[InputSpec | ParamSpec, ...]:
        return tuple(s for s in (*self.inputs, *self.params) if s.shape is not None)

    # -- attributes --------------------------------------------------------------------------------

    def fill(
        self,
        attrs: Mapping[str, Any],
        given: Iterable[str],
        shapes: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """`attrs` with every default filled in, in declared order.

        `given` names the inputs and parameters that are present. A default that is a dimension is
        solved from `shapes`; without them it is 1, which is what torch takes when a call leaves
        out `groups`.
        """
        present = set(given)
        scope: Scope = {s.name: s.name in present or None for s in (*self.inputs, *self.params)}
        scope |= attrs
        scope |= self.bind(shapes, attrs) if shapes else {}
        found: dict[str, Any] = {}
        for name, spec in self.attrs.items():
            if name not in scope:
                scope[name] = self._default(spec, scope)
            found[name] = scope[name]
        return found

    def _default(self, spec: AttrSpec, scope: Scope) -> Any:
        if spec.dim is not None:
            value: Any = scope.get(spec.dim, 1)
            return (value,) if spec.type == "ints" else value
        value = spec.default(scope) if spec.needs <= scope.keys() or not spec.is_size else 1
        value = getattr(torch, str(value)) if spec.type == "dtype" and value else value
        return (value,) * spec.width if spec.width and isinstance(value, int) else value

    # -- dimensions --------------------------------------------------------------------------------

    def bind(self, shapes: Mapping[str, Any], attrs: Mapping[str, Any]) -> Env:
        """The size of every dimension that the shapes of inputs and parameters determine.

        `shapes` maps names of inputs and parameters to shapes (None: absent). Raises S002 where
        they contradict the declaration or each other.
        """
        scope = self._attr_scope(attrs)
        pairs = []
        for spec in self._shaped:
            shape = shapes.get(spec.name)
            if shape is not None and spec.shape is not None and self._binds(spec):
                pairs.append((spec.shape, tuple(shape)))
        unify_dims(pairs, scope, broadcasting="broadcasts" in self.traits)
        scope |= {name: shape for name, shape in shapes.items() if shape is not None}
        for name, evaluate, needs in self._dims:
            if needs <= scope.keys():
                scope[name] = evaluate(scope)
        return Env(scope)

    def _binds(self, spec: InputSpec | ParamSpec) -> bool:
        """Operands of an elementwise op broadcast: their shapes need not agree.

        Variadic ones are tuples of shapes.
        """
        if isinstance(spec, InputSpec) and spec.variadic:
            return False
        return "elementwise" not in self.traits or len(self.inputs) == 1

    def names_type(self, attrs: Mapping[str, Any]) -> bool:
        """Whether a setting names a type of numbers: then not every precision will do."""
        return any(
            spec.type == "dtype" and attrs.get(name) is not None
            for name, spec in self.attrs.items()
        )

    def _attr_scope(self, attrs: Mapping[str, Any]) -> Scope:
        scope: Scope = {name: numbers(value) for name, value in attrs.items()}
        for spec in self.attrs.values():
            if spec.dim is not None and spec.name in scope:
                value = scope[spec.name]
                scope[spec.dim] = value[0] if isinstance(value, tuple) else value
        return scope

    def output_shapes(
        self, shapes: Mapping[str, Any], attrs: Mapping[str, Any]
    ) -> tuple[Shape, ...] | None:
        """The shapes of the results as declared; None where the declaration does not say them."""
        if "elementwise" in self.traits and len(self.inputs) > 1:
            found = broadcast(s for i in self.inputs for s in each_shape(shapes.get(i.name)))
            return found if found is None else (found,) * self.results
        if not self.results or any(output is None for output in self.outputs):
            return None
        scope = self.bind(shapes, attrs).scope
        if not all(output and output.names <= scope.keys() for output in self.outputs):
            return None
        found_shapes = tuple(output.evaluate(scope) for output in self.outputs if output)
        return found_shapes if all(isinstance(n, int) for s in found_shapes for n in s) else None

    def cost(self, name: str, env: Env) -> int:
        """A declared cost such as `macs`; 0 where the op declares none. Raises S002 if a dimension
        is missing.
        """
        if name not in self._costs:
            return 0
        evaluate, needs = self._costs[name]
        scope = with_result(env.scope, self.outputs[0]) if "result" in needs else env.scope
        missing = sorted(needs - scope.keys())
        if missing:
            message = f"{name} of `{self.name}` needs {', '.join(missing)}"
            raise fail("S002", message, Label(self.decl.name.span), help="give the missing shapes")
        return int(evaluate(scope))

    def macs(self, env: Env) -> int:
        """Multiply-accumulate operations, by the declared polynomial."""
        return self.cost("macs", env)

    # -- results -----------------------------------------------------------------------------------

    def result_specs(self, call: Specs) -> tuple[TensorSpec, ...]:
        """Shape and dtype of each result, from `meta["val"]` of the inputs.

        The declaration answers where it can; otherwise the meaning runs on meta tensors. Raises
        S002 if an input has no recorded value, or if the shapes do not fit the op.
        """
        return self.specs(call.input_specs(), call.param_specs(), call.attrs)

    def specs(
        self, inputs: Mapping[str, Any], params: Mapping[str, Any], attrs: Mapping[str, Any]
    ) -> tuple[TensorSpec, ...]:
        """As `result_specs`, from specs by declared name; numbers and None are themselves."""
        shapes = {name: shape_of(spec) for name, spec in (*inputs.items(), *params.items())}
        dtypes = self._dtypes(inputs, params, attrs)
        found = None if dtypes is None else self.output_shapes(shapes, attrs)
        if dtypes is not None and found is not None:
            return tuple(map(TensorSpec, found, dtypes))
        return self._run_on_meta(inputs, params, attrs)

    def _dtypes(
        self, inputs: Mapping[str, Any], params: Mapping[str, Any], attrs: Mapping[str, Any]
    ) -> tuple[torch.dtype, ...] | None:
        """Result dtypes: as declared, or the one floating dtype of operands without any."""
        kinds = [kind.name or "t" for kind in self.decl.results]
        if self.results and all(kind in DTYPES for kind in kinds):
            return tuple(getattr(torch, kind) for kind in kinds)
        if attrs.get("dtype") is not None or not self.results:
            return None
        both, given = (*self.inputs, *self.params), {**inputs, **params}
        dtype = one_float(given.get(spec.name) for spec in both if spec.kind in "ft")
        if dtype is None:
            return None
        by_kind = {"f": dtype, "t": dtype, "b": torch.bool, "i": torch.int64}
        return tuple(by_kind[kind] for kind in kinds)

    def run(
        self, inputs: Mapping[str, Any], params: Mapping[str, Any], attrs: Mapping[str, Any]
    ) -> Any:
        """Compute the op by its meaning, on tensors by declared name."""
        settings = {name: numbers(value) for name, value in attrs.items()}
        args, kwargs = self.writer.arguments({**inputs, **params, **settings})
        if not self.writer.is_module:
            return self.writer.function(*args, **kwargs)
        layer = build_layer(self.layers, params, settings, None, None)
        if layer is None:
            raise fail("N001", f"`{self.name}` cannot be built", Label(self.meaning.span))
        return layer(*args, **kwargs)

    def _run_on_meta(
        self, inputs: Mapping[str, Any], params: Mapping[str, Any], attrs: Mapping[str, Any]
    ) -> tuple[TensorSpec, ...]:
        with torch.no_grad():
            found: Any = spec_of(self.run(on_meta(inputs), on_meta(params), attrs))
        return tuple(found) if isinstance(found, (tuple, list)) else (found,)
