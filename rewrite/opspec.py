"""An op declaration, compiled: its inputs, parameters and attributes, and what its dimensions say about shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from ..grammar import tree as t
from ..grammar.diagnostics import Label, LissomError, fail
from .dims import REST, Evaluate, Scope, Shape, ShapeSpec, broadcast, compiled, names_of, shape_spec
from .dims import unify
from .spec import TensorSpec

if TYPE_CHECKING:
    from .call import Call


@dataclass(frozen=True, slots=True)
class InputSpec:
    """A tensor the op reads. `kind` is the dtype class: f, i, b or t (any)."""

    name: str
    kind: str
    optional: bool
    variadic: bool
    shape: ShapeSpec | None


@dataclass(frozen=True, slots=True)
class ParamSpec:
    """A weight or buffer of the op."""

    name: str
    optional: bool
    shape: ShapeSpec | None


@dataclass(frozen=True, slots=True)
class AttrSpec:
    """A setting. `dim` is the dimension that is the same number, if the declared default is one."""

    name: str
    type: str
    default: Evaluate
    needs: frozenset[str]
    dim: str | None

    @property
    def width(self) -> int | None:
        """How many numbers an `int2` or `int3` has."""
        return int(self.type[3]) if self.type in ("int2", "int3") else None


class Env(dict[str, int]):
    """Dimension name -> size, with the shapes and attributes it was solved from in `scope`."""

    def __init__(self, scope: Scope) -> None:
        super().__init__({k: v for k, v in scope.items() if k[0].isupper()})
        self.scope = scope


@dataclass(frozen=True, eq=False)
class OpSpec:
    """One `op` statement. `results` is 0 where their number depends on the attributes (trait `many`)."""

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
    def role(self) -> dict[str, str]:
        """Declared name -> `input`, `param` or `attr`."""
        roles = {spec.name: "input" for spec in self.inputs}
        roles |= {spec.name: "param" for spec in self.params}
        return roles | dict.fromkeys(self.attrs, "attr")

    @cached_property
    def _dims(self) -> tuple[tuple[str, Evaluate, frozenset[str]], ...]:
        items = (i for i in self.decl.items if isinstance(i, t.OpDim))
        return tuple((i.name.text, compiled(i.value), names_of(i.value)) for i in items)

    @cached_property
    def _costs(self) -> dict[str, tuple[Evaluate, frozenset[str]]]:
        items = (i for i in self.decl.items if isinstance(i, t.OpCost))
        return {i.name.text: (compiled(i.value), names_of(i.value)) for i in items}

    @cached_property
    def _outputs(self) -> tuple[ShapeSpec | None, ...]:
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

        `given` names the inputs and parameters that are present. A default that is a dimension is solved from `shapes`;
        without them it is 1, which is what torch takes when a call leaves out `groups`.
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
        value = spec.default(scope)
        return (value,) * spec.width if spec.width and isinstance(value, int) else value

    # -- dimensions --------------------------------------------------------------------------------

    def bind(self, shapes: Mapping[str, Any], attrs: Mapping[str, Any]) -> Env:
        """The size of every dimension that the shapes of inputs and parameters determine.

        `shapes` maps names of inputs and parameters to shapes (None: absent). Raises S002 where they contradict the
        declaration or each other.
        """
        scope = self._attr_scope(attrs)
        pairs = []
        for spec in self._shaped:
            shape = shapes.get(spec.name)
            if shape is not None and spec.shape is not None and self._binds(spec):
                pairs.append((spec.shape, tuple(shape)))
        unify(pairs, scope)
        scope |= {name: shape for name, shape in shapes.items() if shape is not None}
        for name, evaluate, needs in self._dims:
            if needs <= scope.keys():
                scope[name] = evaluate(scope)
        return Env(scope)

    def _binds(self, spec: InputSpec | ParamSpec) -> bool:
        """Operands of an elementwise op broadcast: their shapes need not agree. Variadic ones are tuples of shapes."""
        if isinstance(spec, InputSpec) and spec.variadic:
            return False
        return "elementwise" not in self.traits or len(self.inputs) == 1

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
            found = broadcast(s for i in self.inputs for s in _flat(shapes.get(i.name)))
            return found if found is None else (found,) * self.results
        if not self.results or any(output is None for output in self._outputs):
            return None
        scope = self.bind(shapes, attrs).scope
        if not all(output and output.names <= scope.keys() for output in self._outputs):
            return None
        found_shapes = tuple(output.evaluate(scope) for output in self._outputs if output)
        return found_shapes if all(isinstance(n, int) for s in found_shapes for n in s) else None

    def cost(self, name: str, env: Env) -> int:
        """A declared cost such as `macs`; 0 where the op declares none. Raises S002 if a dimension is missing."""
        if name not in self._costs:
            return 0
        evaluate, needs = self._costs[name]
        missing = sorted(needs - env.scope.keys())
        if missing:
            message = f"{name} of `{self.name}` needs {', '.join(missing)}"
            raise fail("S002", message, Label(self.decl.name.span), help="give the missing shapes")
        return int(evaluate(env.scope))

    def macs(self, env: Env) -> int:
        """Multiply-accumulate operations, by the declared polynomial."""
        return self.cost("macs", env)

    # -- results -----------------------------------------------------------------------------------

    def result_specs(self, call: Call) -> tuple[TensorSpec, ...]:
        """Shape and dtype of each result, from `meta["val"]` of the inputs.

        The declaration answers where it can; otherwise the meaning runs on meta tensors. Raises S002 if an input has no
        recorded value, or if the shapes do not fit the op.
        """
        return self.specs(call.input_specs(), call.param_specs(), call.attrs)

    def specs(
        self, inputs: Mapping[str, Any], params: Mapping[str, Any], attrs: Mapping[str, Any]
    ) -> tuple[TensorSpec, ...]:
        """As `result_specs`, from specs by declared name (numbers and None stand for themselves)."""
        shapes = {name: _shape_of(spec) for name, spec in (*inputs.items(), *params.items())}
        dtypes = self._dtypes(inputs)
        if dtypes is not None:
            found = self.output_shapes(shapes, attrs)
            if found is not None:
                return tuple(map(TensorSpec, found, dtypes))
        return self._run_on_meta(inputs, params, attrs)

    def _dtypes(self, inputs: Mapping[str, Any]) -> tuple[torch.dtype, ...] | None:
        """Result dtypes where they follow from one shared floating dtype; None where torch has to be asked."""
        found = {s.dtype for v in inputs.values() for s in _leaves(v) if isinstance(s, TensorSpec)}
        plain = all(
            isinstance(s, (TensorSpec, bool, int, float))
            for v in inputs.values()
            for s in _leaves(v)
        )
        kinds = {kind.name for kind in self.decl.results}
        if len(found) != 1 or not plain or not kinds <= {"f", "t"}:
            return None
        dtype = next(iter(found))
        return (dtype,) * len(self.decl.results) if dtype.is_floating_point else None

    def _run_on_meta(
        self, inputs: Mapping[str, Any], params: Mapping[str, Any], attrs: Mapping[str, Any]
    ) -> tuple[TensorSpec, ...]:
        from .spell import run_meaning
        from .spec import spec_of

        with torch.no_grad():
            result = run_meaning(self, _meta(inputs), _meta(params), attrs)
        found = spec_of(result)
        return tuple(found) if isinstance(found, (tuple, list)) else (found,)  # type: ignore[return-value]


# -- reading a declaration -------------------------------------------------------------------------


def op_spec(decl: t.Op, own: Mapping[str, Any] | None = None) -> OpSpec:
    """Compile a declaration. `own` are torch names that the host program adds (see `callables.resolve`)."""
    inputs = tuple(
        InputSpec(
            p.name.text, p.type.name or "t", p.optional, p.variadic, shape_spec(p.name.text, p.type)
        )
        for p in decl.inputs
    )
    params = tuple(
        ParamSpec(p.name.text, p.optional, shape_spec(p.name.text, p.type))
        for p in decl.items
        if isinstance(p, t.OpParam)
    )
    attrs = {a.name.text: _attr(a) for a in decl.items if isinstance(a, t.OpAttr)}
    named = (i for i in decl.items if isinstance(i, t.OpTrait))
    traits = frozenset(word.text for item in named for word in item.names)
    results = 0 if "many" in traits else len(decl.results)
    return OpSpec(decl, decl.name.text, inputs, params, attrs, traits, results, own or {})


def _attr(attr: t.OpAttr) -> AttrSpec:
    default = attr.default
    dim = default.text if isinstance(default, t.Name) and default.is_dimension else None
    needs = names_of(default)
    return AttrSpec(attr.name.text, attr.type.name or "any", compiled(default), needs, dim)


# -- values ----------------------------------------------------------------------------------------


def numbers(value: Any) -> Any:
    """An attribute value with nodes that compute sizes replaced by the numbers they had in the example."""
    if isinstance(value, fx.Node):
        return value.meta.get("val")
    if isinstance(value, tuple):
        return tuple(numbers(item) for item in value)
    if isinstance(value, slice):
        return slice(numbers(value.start), numbers(value.stop), numbers(value.step))
    return value


def _leaves(value: Any) -> list[Any]:
    if value is None:
        return []
    return (
        [leaf for item in value for leaf in _leaves(item)] if isinstance(value, tuple) else [value]
    )


def _flat(shape: Any) -> list[Shape]:
    """The shapes in what `shapes` holds for an input: none, one, or a tuple of them."""
    if shape is None:
        return []
    if shape and all(isinstance(item, tuple) for item in shape):
        return list(shape)
    return [shape]


def _shape_of(spec: Any) -> Any:
    if isinstance(spec, TensorSpec):
        return spec.shape
    if isinstance(spec, tuple):
        return tuple(_shape_of(item) for item in spec)
    return None if spec is None else ()


def _meta(specs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _on_meta(spec) for name, spec in specs.items()}


def _on_meta(spec: Any) -> Any:
    if isinstance(spec, tuple):
        return tuple(_on_meta(item) for item in spec)
    if isinstance(spec, TensorSpec):
        return torch.empty(spec.shape, dtype=spec.dtype, device="meta")
    return spec
