"""Reading a node through a signature."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from ...grammar.checks.declared import COMPUTED
from ...grammar.tree import tree as t
from .attributes import Unreadable, has_node, numeric_padding, read_attr
from .call import OpCall, module_at, tensor_at
from .dims import compiled
from .meaning import forward_names
from .opspec import OpSpec
from .spec import TensorSpec

_ABSENT: Any = object()


def _from_batch(module: Any) -> bool:
    """What F.batch_norm and F.instance_norm get told: normalise with the statistics of this
    batch.
    """
    return module.training or module.running_mean is None


_NUMPY = {"axis": "dim", "keepdims": "keepdim"}
"""Keywords that torch takes for its own, as numpy spells them."""

_COMPUTED: dict[str, Callable[[Any], Any]] = {"uses_batch_statistics": _from_batch}
"""Arguments that torch's own `forward` computes from the module."""


def _kept_axes(x: Any, sizes: Any) -> int:
    """`x.view(x.size(0), -1)` is flatten from axis 1 on. Raises `Unreadable` for other sizes."""
    known = x.meta.get("val") if isinstance(x, fx.Node) else None
    lead = sizes[:-1] if isinstance(sizes, (tuple, list)) and sizes and sizes[-1] == -1 else ()
    fits = isinstance(known, TensorSpec) and 0 < len(lead) < len(known.shape)
    if not fits or not all(_is_size(size, x, axis) for axis, size in enumerate(lead)):
        raise Unreadable("its sizes are not the first ones of its input, then -1")
    return len(lead)


def _is_size(value: Any, x: fx.Node, axis: int) -> bool:
    """`x.size(axis)`, `x.size()[axis]` or `x.shape[axis]`."""
    if not isinstance(value, fx.Node):
        return False
    if value.target is operator.getitem and value.args[1] == axis:
        source: Any = value.args[0]
        whole = source.target == "size" and source.args == (x,)
        return whole or (source.target is getattr and source.args == (x, "shape"))
    return value.target == "size" and value.args == (x, axis)


CONVERTED: dict[str, Callable[[Any, Any], Any]] = {"kept_axes": _kept_axes}
"""Arguments whose value is read together with the first input."""


class CallReader:
    """One signature of one op. `in_place`: reads the spelling whose result overwrites its input."""

    def __init__(self, op: OpSpec, signature: t.Signature, in_place: bool) -> None:
        self.op, self.signature, self.in_place = op, signature, in_place
        # An argument without meaning for the op is kept under its own name, so that `with` can ask
        # for its value.
        self.ours = tuple(_key(slot) for slot in signature.slots)
        self.by_name = {
            slot.theirs.text: key for slot, key in zip(signature.slots, self.ours, strict=True)
        }
        by_theirs = {slot.theirs.text: slot.ours.text for slot in signature.slots}
        self.converted = [(o, CONVERTED[t_]) for t_, o in by_theirs.items() if t_ in CONVERTED]
        spread = [i for i, slot in enumerate(signature.slots) if slot.variadic]
        self.spread = spread[0] if spread else None
        fixed = {k.name.text: compiled(k.value)({}) for k in signature.fixed}
        self.fixed = {k: read_attr(op.attrs[k], v) for k, v in fixed.items() if k in op.attrs}
        self.required = {k: v for k, v in fixed.items() if k not in op.attrs}

    def read(self, node: fx.Node, root: fx.GraphModule) -> OpCall:
        """The node as a call. Raises `Unreadable`."""
        values: dict[str, Any] = {}
        self._bind(node, values)
        for ours, convert in self.converted:
            values[ours] = convert(values.get(self.op.inputs[0].name), values.get(ours))
        module = None
        if node.op == "call_module":
            module = module_at(root, str(node.target))
            self._read_module(module, values)
        self._check_required(values)
        inputs = tuple(self._input(spec, values.get(spec.name)) for spec in self.op.inputs)
        if not any(map(_may_be_tensor, inputs)):
            raise Unreadable("it computes with numbers, not tensors")
        params = {p.name: self._param(p, values, node, module) for p in self.op.params}
        in_place = self.in_place or values.get("inplace") is True
        call = OpCall(self.op, node, inputs, params, {}, root, in_place)
        call.attrs = self._attrs(values, call)
        return call

    def given_as(self, node: fx.Node, value: fx.Node) -> set[str]:
        """The declared names under which a call reads a value."""
        places = [*zip(self.ours, node.args, strict=False)]
        places += [(self.by_name.get(name, name), arg) for name, arg in node.kwargs.items()]
        return {name for name, arg in places if arg is value}

    # -- arguments ---------------------------------------------------------------------------------

    def _bind(self, node: fx.Node, values: dict[str, Any]) -> None:
        args = node.args
        if self.spread is not None:
            args = _gather(args, self.spread)
        if len(args) > len(self.ours):
            raise Unreadable(f"it has {len(args)} arguments, the op knows {len(self.ours)} of them")
        values.update(zip(self.ours, args, strict=False))
        for name, value in node.kwargs.items():
            name = name if name in self.by_name else _NUMPY.get(name, name)
            key = self.by_name.get(name)
            if key is None and value is None:
                continue
            if key is None and name not in self.required:
                raise Unreadable(f"its argument `{name}` is not part of the op")
            values[key or name] = value

    def _read_module(self, module: nn.Module, values: dict[str, Any]) -> None:
        """Slots that `forward` does not take are read from the module."""
        passed = forward_names(type(module))
        for name, key in self.by_name.items():
            if name in passed:
                continue
            if key in values:
                raise Unreadable(f"its call passes more than {', '.join(passed[:1])}")
            values[key] = _of_module(module, name)
        for name in self.required:
            values[name] = _of_module(module, name)

    def _check_required(self, values: dict[str, Any]) -> None:
        for name, wanted in self.required.items():
            found = values.get(name, wanted)
            if found != wanted:
                raise Unreadable(f"{name} is {found!r}, the op has {wanted!r}")

    def _input(self, spec: Any, value: Any) -> Any:
        if spec.variadic:
            return _several(spec.name, value)
        if value is None:
            if spec.optional:
                return None
            raise Unreadable(f"its input `{spec.name}` is missing")
        if isinstance(value, fx.Node):
            _check_rank(spec, value)
            return value
        if isinstance(value, (bool, int, float)):
            return value
        raise Unreadable(f"its input `{spec.name}` is {value!r}, which is no tensor")

    def _param(
        self, spec: Any, values: Mapping[str, Any], node: fx.Node, module: Any
    ) -> str | None:
        value = values.get(spec.name)
        if value is None:
            if spec.optional:
                return None
            raise Unreadable(f"its `{spec.name}` is missing")
        if module is not None:
            return f"{node.target}.{value}" if isinstance(value, str) else _not_held(spec.name)
        if isinstance(value, fx.Node) and value.op == "get_attr":
            return str(value.target)
        raise Unreadable(
            f"its `{spec.name}` is computed by `{value}`, not a parameter of the model"
        )

    def _attrs(self, values: Mapping[str, Any], call: OpCall) -> dict[str, Any]:
        found = dict(self.op.defaults)
        padding = None
        for name, spec in self.op.attrs.items():
            value = values.get(name)
            if value is None:
                continue
            if name == "padding" and isinstance(value, str):
                padding = value
                continue
            found[name] = value = read_attr(spec, value)
            if has_node(value):
                self._check_sizes(name, value)
        found |= self.fixed
        if padding is not None:
            kernel = tensor_at(call.root, str(call.params["weight"])).shape[2:]
            found["padding"] = numeric_padding(padding, tuple(kernel), found)
        if len(found) < len(self.op.attrs):
            given = [
                spec.name
                for spec, value in zip(self.op.inputs, call.inputs, strict=True)
                if value is not None
            ]
            return self.op.fill(found, given + [name for name, path in call.params.items() if path])
        return found

    def _check_sizes(self, name: str, value: Any) -> None:
        """Data movement may take sizes from the graph, if they are known to be whole numbers."""
        if self.op.traits.isdisjoint(COMPUTED):
            raise Unreadable(f"its {name} is computed in the graph")
        for node in _nodes(value):
            if type(node.meta.get("val")) is not int:
                raise Unreadable(f"its {name} is computed by `{node}`, not known to be a number")


def _key(slot: t.Slot) -> str:
    return slot.theirs.text if slot.ours.text == "_" else slot.ours.text


def _gather(args: tuple[Any, ...], at: int) -> tuple[Any, ...]:
    """`x.view(2, -1)` and `x.view((2, -1))` alike: all from position `at` on as one tuple."""
    rest = args[at:]
    if len(rest) == 1 and isinstance(rest[0], (tuple, list)):
        rest = tuple(rest[0])
    return (*args[:at], rest) if rest or len(args) > at else args


def _several(name: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list)):
        raise Unreadable(f"its inputs `{name}` are one value, `{value}`, whose parts are not known")
    return tuple(value)


def _check_rank(spec: Any, value: fx.Node) -> None:
    known = value.meta.get("val")
    if spec.shape is not None and isinstance(known, TensorSpec):
        rank = len(known.shape)
        if not spec.shape.fits(rank):
            raise Unreadable(
                f"its input `{spec.name}` has {rank} axes, the op declares {spec.shape.least}"
            )


def _may_be_tensor(value: Any) -> bool:
    """Nodes of unknown value count as tensors."""
    if isinstance(value, tuple):
        return any(map(_may_be_tensor, value))
    return isinstance(value, fx.Node) and isinstance(value.meta.get("val", _UNKNOWN), TensorSpec)


_UNKNOWN = TensorSpec((), torch.float32)


def _nodes(value: Any) -> list[fx.Node]:
    if isinstance(value, tuple):
        return [node for item in value for node in _nodes(item)]
    if isinstance(value, slice):
        return _nodes((value.start, value.stop, value.step))
    return [value] if isinstance(value, fx.Node) else []


# -- modules ---------------------------------------------------------------------------------------


def _of_module(module: nn.Module, name: str) -> Any:
    """A setting, or for a parameter or buffer its path below the module. Raises `Unreadable`."""
    if name in _COMPUTED:
        return _COMPUTED[name](module)
    for held in (module._parameters, module._buffers):
        if name in held:
            return None if held[name] is None else name
    found = getattr(module, name, _ABSENT)
    if found is _ABSENT:
        return _of_child(module, name)
    return found


def _of_child(module: nn.Module, name: str) -> str | None:
    """`out_proj_weight` stands for the parameter `out_proj.weight`."""
    for child_name, child in module.named_children():
        own = name.removeprefix(f"{child_name}_")
        if own != name and own in child._parameters:
            return None if child._parameters[own] is None else f"{child_name}.{own}"
    raise Unreadable(f"the module has no `{name}`")


def _not_held(name: str) -> str:
    raise Unreadable(f"its `{name}` is neither a parameter nor a buffer of the module")
