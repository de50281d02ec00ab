"""Writing a new op into the graph: as a torch.nn layer where it has weights, as its meaning otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from ..grammar.diagnostics import Label, fail
from .layers import build_layer
from .opspec import OpSpec
from .spec import TensorSpec
from .spell import meaning_of, run_meaning

Params = Mapping[str, torch.Tensor | None]


@dataclass(slots=True)
class Emitted:
    """An op that can be run on tensors before it is inserted. `layer` is None if it is a function call."""

    op: OpSpec
    inputs: tuple[Any, ...]
    params: dict[str, torch.Tensor | None]
    attrs: dict[str, Any]
    layer: nn.Module | None

    def run(self, *inputs: Any) -> Any:
        """Compute the op; `inputs` are tensors or numbers in the declared order (a tuple where variadic)."""
        if self.layer is not None:
            return self.layer(*inputs)
        names = (spec.name for spec in self.op.inputs)
        return run_meaning(self.op, dict(zip(names, inputs, strict=True)), self.params, self.attrs)

    def insert(self, root: fx.GraphModule, before: fx.Node, path: str) -> fx.Node:
        """Write the call in front of `before`. Its layer or parameters are kept at `path`.

        Raises E301 if something is at `path` already: torch.fx would silently go on using the old module.
        """
        has_state = self.layer is not None or any(p is not None for p in self.params.values())
        if has_state:
            _check_free(root, path)
        with root.graph.inserting_before(before):
            if self.layer is not None:
                _add_module(root, path, self.layer)
                node = root.graph.call_module(path, self._operands())
            else:
                node = self._insert_function(root, path, has_state)
        return node

    def _operands(self) -> tuple[Any, ...]:
        operands = list(self.inputs)
        while operands and operands[-1] is None:
            operands.pop()
        return tuple(operands)

    def _insert_function(self, root: fx.GraphModule, path: str, has_state: bool) -> fx.Node:
        if has_state:
            _add_module(root, path, _holder(self.params))
        held = {
            name: None if tensor is None else root.graph.get_attr(f"{path}.{name}")
            for name, tensor in self.params.items()
        }
        names = (spec.name for spec in self.op.inputs)
        meaning = meaning_of(self.op)
        values = {**dict(zip(names, self.inputs, strict=True)), **held, **self.attrs}
        args, kwargs = meaning.arguments(values)
        if meaning.method:
            return root.graph.call_method(meaning.name, args, kwargs)
        return root.graph.call_function(meaning.function, args, kwargs)


def emit(
    op: OpSpec,
    inputs: tuple[Any, ...],
    params: Params,
    attrs: Mapping[str, Any],
    like: nn.Module | None = None,
) -> Emitted:
    """How a new call of `op` is written.

    `inputs` as in `Call.inputs`; `params` by declared name, absent ones may be left out; `attrs` that are left out take
    their defaults, those named after a dimension from the shapes. `like` is the module the new one stands in for.
    Raises S002 if shapes contradict the declaration, T003 for a name that the op does not declare.
    """
    _check_names(op, {**params, **attrs})
    tensors = {spec.name: params.get(spec.name) for spec in op.params}
    _check_params(op, tensors)
    shapes = {name: None if p is None else tuple(p.shape) for name, p in tensors.items()}
    shapes |= {s.name: _shape(v) for s, v in zip(op.inputs, inputs, strict=True)}
    given = [name for name, shape in shapes.items() if shape is not None]
    filled = op.fill(attrs, given, {k: v for k, v in shapes.items() if v is not None})
    layer = _layer(op, tensors, filled, like, inputs)
    return Emitted(op, inputs, tensors, filled, layer)


def _layer(
    op: OpSpec,
    params: Mapping[str, torch.Tensor | None],
    attrs: Mapping[str, Any],
    like: nn.Module | None,
    inputs: tuple[Any, ...],
) -> nn.Module | None:
    if op.own or not op.params:
        return None
    return build_layer(op.name, params, attrs, like, _rank(inputs))


def _check_names(op: OpSpec, given: Mapping[str, Any]) -> None:
    unknown = [name for name in given if op.role.get(name) not in ("param", "attr")]
    if unknown:
        place = Label(op.decl.name.span, "declared here")
        help_ = f"it has {', '.join([*(p.name for p in op.params), *op.attrs]) or 'none'}"
        message = f"`{op.name}` has no parameter or attribute `{unknown[0]}`"
        raise fail("T003", message, place, help=help_)


def _check_params(op: OpSpec, params: Params) -> None:
    for spec in op.params:
        if params[spec.name] is None and not spec.optional:
            place = Label(op.decl.name.span, "declared here")
            raise fail("S002", f"`{op.name}` needs a `{spec.name}`", place, help="give it a value")


def _rank(inputs: tuple[Any, ...]) -> int | None:
    shape = _shape(inputs[0]) if inputs else None
    return None if shape is None else len(shape)


def _shape(value: Any) -> Any:
    if isinstance(value, tuple):
        found = tuple(_shape(item) for item in value)
        return None if None in found else found
    if isinstance(value, fx.Node):
        spec = value.meta.get("val")
        return spec.shape if isinstance(spec, TensorSpec) else None
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


# -- the module tree -------------------------------------------------------------------------------


def _holder(params: Params) -> nn.Module:
    holder = nn.Module()
    for name, tensor in params.items():
        if tensor is not None:
            trained = tensor.is_floating_point()
            holder.register_parameter(name, nn.Parameter(tensor.detach(), requires_grad=trained))
    return holder


def _check_free(root: nn.Module, path: str) -> None:
    owner: Any = root
    for part in path.split("."):
        if not isinstance(owner, nn.Module) or not hasattr(owner, part):
            return
        owner = getattr(owner, part)
    place = Label(None, where=path)
    raise fail("E301", f"`{path}` exists already", place, help="use a path that is free")


def _add_module(root: nn.Module, path: str, module: nn.Module) -> None:
    *owners, name = path.split(".")
    for part in owners:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.add_module(name, module)
