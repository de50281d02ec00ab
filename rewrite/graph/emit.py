"""Writing a new op into the graph: as a torch.nn layer where it has weights, as its meaning
otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from ...grammar.checks.declared import BUFFERS
from ...grammar.diagnostics import Label, fail
from ..ops.layers import build_layer
from ..ops.meaning import CallWriter
from ..ops.opspec import OpSpec
from ..ops.spec import TensorSpec

Params = Mapping[str, torch.Tensor | None]


@dataclass(slots=True)
class Emitted:
    """An op that can be run on tensors before it is inserted.

    `layer` is None if it is a function call.
    """

    op: OpSpec
    inputs: tuple[Any, ...]
    params: dict[str, torch.Tensor | None]
    attrs: dict[str, Any]
    layer: nn.Module | None

    def run(self, *inputs: Any) -> Any:
        """Compute the op; `inputs` are tensors or numbers in the declared order (a tuple where
        variadic).
        """
        given = dict(zip((spec.name for spec in self.op.inputs), inputs, strict=True))
        if self.layer is None:
            return self.op.run(given, self.params, self.attrs)
        args, kwargs = self._writer().arguments({**given, **self.attrs})
        return self.layer(*args, **kwargs)

    def insert(
        self, root: fx.GraphModule, before: fx.Node, path: str, again: bool = False
    ) -> fx.Node:
        """Write the call in front of `before`. Its layer or parameters are kept at `path`; `again`:
        the same layer is there already.

        Raises R007 if something is at `path` already: torch.fx would silently go on using the old
        module.
        """
        has_state = self.layer is not None or any(p is not None for p in self.params.values())
        if has_state and not again:
            _check_free(root, path)
        operands = dict(zip((spec.name for spec in self.op.inputs), self.inputs, strict=True))
        with root.graph.inserting_before(before):
            if self.layer is None:
                return self._insert_function(root, path if has_state else "", operands)
            if not again:
                _add_module(root, path, self.layer)
            return root.graph.call_module(
                path, *self._writer().arguments({**operands, **self.attrs})
            )

    def _writer(self) -> CallWriter:
        found = None if self.layer is None else self.op.writer_of(type(self.layer))
        return found or self.op.writer

    def _insert_function(
        self, root: fx.GraphModule, path: str, operands: dict[str, Any]
    ) -> fx.Node:
        if path:
            _add_module(root, path, _holder(self.params))
        held = {
            name: None if tensor is None else root.graph.get_attr(f"{path}.{name}")
            for name, tensor in self.params.items()
        }
        writer = self.op.writer
        args, kwargs = writer.arguments({**operands, **held, **self.attrs})
        if writer.is_method:
            return root.graph.call_method(writer.name, args, kwargs)
        return root.graph.call_function(writer.function, args, kwargs)


def emit(
    op: OpSpec,
    inputs: tuple[Any, ...],
    params: Params,
    attrs: Mapping[str, Any],
    like: nn.Module | None = None,
) -> Emitted:
    """How a new call of `op` is written.

    `inputs` as in `Call.inputs`; `params` by declared name, absent ones may be left out; `attrs`
    that are left out take their defaults, those named after a dimension from the shapes. `like` is
    the module the new one stands in for. Raises S002 if shapes contradict the declaration, T003
    for a name that the op does not declare.
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
    if not op.params:
        return None
    return build_layer(op.layers, params, attrs, like, _rank(inputs))


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


def constant(root: fx.GraphModule, before: fx.Node, path: str, value: torch.Tensor) -> fx.Node:
    """Numbers that the model keeps, in a buffer of a module at `path`, read in front of
    `before`.
    """
    holder = nn.Module()
    holder.register_buffer("value", value)
    _check_free(root, path)
    _add_module(root, path, holder)
    with root.graph.inserting_before(before):
        return root.graph.get_attr(f"{path}.value")


# -- the module tree -------------------------------------------------------------------------------


def _holder(params: Params) -> nn.Module:
    holder = nn.Module()
    for name, tensor in params.items():
        if tensor is None:
            continue
        if name in BUFFERS:
            holder.register_buffer(name, tensor.detach())
            continue
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
    raise fail("R007", f"`{path}` exists already", place, help="use a path that is free")


def _add_module(root: nn.Module, path: str, module: nn.Module) -> None:
    *owners, name = path.split(".")
    for part in owners:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.add_module(name, module)
