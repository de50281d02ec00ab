"""Records a forward pass on real tensors as a torch.fx graph at the level of modules.

The model runs as usual, on example inputs, under a `TorchFunctionMode`. Tensors are known by
identity, sizes are traced numbers, so every branch, `len`, `isinstance` or loop resolves as in
eager execution. What a call *did* is observed, not looked up: an argument whose version counter
moved was written to, and its node says so in `meta["mutates"]`.
"""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from ..graph.modules import has_hooks, is_leaf
from ..graph.scalars import TEXT, traced, untraced
from ..graph.source_lines import is_asked_by_model, line_above
from ..graph.ties import storages
from ..graph.values import Origin, children, is_structure, remake, tensors, without_traces
from ..graph.writes import node_name
from ..ops.reported import (
    INTERNAL,
    NUMBERS,
    ReportedCall,
    canonical_call,
    getter_name,
    is_getter,
    is_setter,
)
from ..ops.spec import spec_of
from ..torch_internals import is_wrapped, silent, version_of
from .lowering import Lowering, Untraceable, formula
from .patches import recording
from .questions import is_own, question
from .recorded import CaptureGuard, Specialised

_LENGTH = len
"""Python's own: during a trace another one stands in its place."""

_SPLITS = ("unbind", "split", "chunk", "tensor_split", "hsplit", "vsplit", "dsplit")
"""Calls whose number of results may follow from a size."""


class CallRecorder(TorchFunctionMode):
    """One trace of `root`. `opaque` are module paths to keep as one node whatever their class.

    `node.meta` holds `val` (TensorSpec or plain value), `site` (owning module), `source`
    (`file.py:line`), `mutates` (positions in `node.all_input_nodes` of what it wrote to), `aliases`
    (of what its value shares memory with) and, on modules with hooks, `effect`. `asked` are the
    tensors and axes (None: the rank) that Python was told the size of, with the first source line;
    `told` what else it was told of tensors, `modes` of how torch runs.
    """

    def __init__(self, root: nn.Module, opaque: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self.root, self.opaque = root, opaque
        self.graph = fx.Graph()
        self.lowering = Lowering(root, self.add_node)
        self.guards: dict[tuple[object, str, bool], CaptureGuard] = {}
        self.varying: set[fx.Node] = set()
        self.asked: dict[tuple[fx.Node, int | None], str] = {}
        self.told: dict[tuple[fx.Node, str], str] = {}
        self.modes: dict[str, str] = {}
        self.stack: list[str] = [""]
        self.open = False
        self.last_source = ""
        self.failed: tuple[Exception | None, str] = (None, "")
        self._entry: Any = None
        self._paths = {module: path for path, module in root.named_modules()}

    # -- nodes ---------------------------------------------------------------------------------

    def add_node(self, kind: str, target: Any, args: Any, kwargs: Any, value: Any) -> fx.Node:
        """Append a node whose value on the example is `value`; `args` hold nodes already."""
        node = self.graph.create_node(kind, target, args, kwargs)
        node.meta["val"] = spec_of(value)
        node.meta["site"] = self.stack[-1]
        node.meta["source"] = self.last_source = self.source_line()
        node.meta["mutates"] = ()
        if kind == "call_module" and has_hooks(self.root.get_submodule(target)):
            node.meta["effect"] = True
        if kind == "placeholder" or any(n in self.varying for n in node.all_input_nodes):
            self.varying.add(node)
        return node

    def compute(self, function: Callable[..., Any], operands: tuple[Any, ...]) -> fx.Node:
        """A node for arithmetic on traced numbers."""
        args = tuple(self.lowering.lower(operand) for operand in operands)
        value = function(*(untraced(operand) for operand in operands))
        return self.add_node("call_function", function, args, {}, value)

    def guard(self, why: str, node: fx.Node, value: object) -> None:
        """Note that the trace took `value` for what `node` computes, once for each question."""
        key = (node.target, repr(node.args), why == TEXT)
        if node not in self.varying or key in self.guards:
            return
        text = f"{why}: {formula(node)} is {reprlib.repr(value)}"
        source, site = node.meta["source"], self.stack[-1]
        self.guards[key] = CaptureGuard(node, Specialised(text, node.name, source, value, site))

    def source_line(self) -> str:
        """`file.py:line` of the innermost frame that belongs to the model, "" if there is none."""
        return line_above(sys._getframe(2), self._entry) if self._entry is not None else ""

    # -- calls ---------------------------------------------------------------------------------

    def record(self, call: ReportedCall, run: Callable[[], Any]) -> Any:
        """Run a call and write it down. Returns its result with every tensor known to the trace."""
        inputs = tensors(call.args, call.kwargs)
        before = [version_of(tensor) for tensor in inputs]
        result = run()
        written = [t for t, old in zip(inputs, before, strict=True) if version_of(t) != old]
        if not written and not self._worth_a_node(call, inputs, result):
            self._tell(call, inputs)
            return result
        lowered = self._lower(call, inputs)
        if lowered is None:
            return result
        node = self.add_node(call.kind, call.target, *lowered, result)
        node.meta["mutates"] = self._positions(node, written)
        shared = storages(result)
        node.meta["aliases"] = self._positions(node, [t for t in inputs if storages(t) & shared])
        if node in self.varying and node_name(node) in _SPLITS:
            parts = self.add_node("call_function", _LENGTH, (node,), {}, _LENGTH(result))
            self.guard("split into parts", parts, parts.meta["val"])
        return self._adopt(result, Origin(node), set(map(id, inputs)), set(map(id, written)))

    def _tell(self, call: ReportedCall, inputs: list[torch.Tensor]) -> None:
        """Note what the model's code is told of tensors by a call that the graph does not hold."""
        name = question(call)
        if not name or (is_own(name) and not is_asked_by_model(sys._getframe())):
            return
        origins = (self.lowering.origins.get(tensor) for tensor in inputs)
        for origin in origins:
            if origin is not None and origin.node in self.varying:
                node = self.lowering.resolve(origin)
                self.told.setdefault((node, name), self.source_line())

    def tell_mode(self, name: str) -> None:
        """Note that the model's code asks how torch runs."""
        if self.open and is_asked_by_model(sys._getframe()):
            self.modes.setdefault(name, self.source_line())

    def _positions(self, node: fx.Node, arguments: list[torch.Tensor]) -> tuple[int, ...]:
        nodes = (self.lowering.tensor_node(tensor) for tensor in arguments)
        return tuple(_position(node.all_input_nodes, each) for each in nodes)

    def _worth_a_node(self, call: ReportedCall, inputs: list[torch.Tensor], result: Any) -> bool:
        if call.kind == "call_module" or tensors(result):
            return True
        return call.target in NUMBERS and any(self._varies(tensor) for tensor in inputs)

    def _varies(self, tensor: torch.Tensor) -> bool:
        origin = self.lowering.origins.get(tensor)
        if origin is None:
            return is_wrapped(tensor)
        return origin.node in self.varying

    def _lower(self, call: ReportedCall, inputs: list[torch.Tensor]) -> tuple[Any, Any] | None:
        """Arguments as nodes; None for a constant made of things a graph cannot hold (it stays a
        constant).
        """
        try:
            return self.lowering.lower(call.args), self.lowering.lower(call.kwargs)
        except Untraceable:
            if call.kind == "call_module" or any(self._varies(tensor) for tensor in inputs):
                raise
            return None

    def _adopt(self, value: Any, origin: Origin, inputs: set[int], written: set[int]) -> Any:
        """Remember where each tensor and number of a result came from."""
        if isinstance(value, torch.Tensor):
            return self._adopt_tensor(value, origin, inputs, written)
        if isinstance(value, (int, float)):
            varying = origin.node in self.varying
            return traced(value, self, lambda: self.lowering.resolve(origin)) if varying else value
        if not is_structure(value):
            return value
        old = list(children(value))
        new = [
            self._adopt(item, Origin(origin.node, (*origin.steps, step)), inputs, written)
            for step, item in old
        ]
        same = all(a is b for (_, a), b in zip(old, new, strict=True))
        return value if same else remake(value, new)

    def _adopt_tensor(
        self, tensor: torch.Tensor, origin: Origin, inputs: set[int], written: set[int]
    ) -> torch.Tensor:
        # A call may hand back the very object it was given (`contiguous`, `to`, Identity). If it
        # wrote to it, every later use must follow the writing node, so the object moves on to that
        # node. If it did not, the object must go on meaning its old node, and the result becomes a
        # second view of the same memory.
        known = id(tensor) in inputs or self.lowering.is_known(tensor)
        if known and id(tensor) not in written:
            tensor = tensor.detach()
        self.lowering.origins[tensor] = origin
        return tensor

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        with silent():
            if not self.open or func in INTERNAL:
                return func(*args, **kwargs)
            return self._function(func, args, kwargs)

    def _function(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        run_args, run_kwargs = without_traces(args), without_traces(kwargs)
        if is_setter(func):
            return self._set(func, args)
        call = canonical_call(func, args, kwargs)
        if call.forced:
            return self._forced(call, func(*run_args, **run_kwargs))
        getter = getter_name(func) if is_getter(func) else ""
        if (getter == "ndim" or call.target == "dim") and self.lowering.origins.get(args[0]):
            self._ask(args[0], None)
        if getter == "shape" or call.target == "size":
            return self._sizes(args[0], func(*run_args, **run_kwargs), args[1:], kwargs)
        return self.record(call, lambda: func(*run_args, **run_kwargs))

    def _set(self, func: Any, args: tuple[Any, ...]) -> None:
        if getter_name(func) not in ("requires_grad", "grad"):
            raise Untraceable(f"assigns to the attribute `{getter_name(func)}` of a tensor")
        func(*args)

    def _sizes(self, tensor: torch.Tensor, sizes: Any, axes: Any, kwargs: dict[str, Any]) -> Any:
        if not self._varies(tensor):
            return sizes
        self._ask(tensor, None)
        if isinstance(sizes, int):
            axis = untraced(axes[0] if axes else kwargs["dim"])
            return self._size(tensor, axis % tensor.dim(), sizes)
        return torch.Size(self._size(tensor, axis, size) for axis, size in enumerate(sizes))

    def _size(self, tensor: torch.Tensor, axis: int, size: int) -> Any:
        owner = self._ask(tensor, axis)

        def make() -> fx.Node:
            return self.add_node("call_method", "size", (owner, axis), {}, size)

        return traced(size, self, lambda: self.lowering.once((owner, "size", axis), make))

    def _ask(self, tensor: torch.Tensor, axis: int | None) -> fx.Node:
        """Note that the model's code is about to know a size, or the rank, of a tensor."""
        node = self.lowering.tensor_node(tensor)
        if node in self.varying and (node, axis) not in self.asked:
            self.asked[node, axis] = self.source_line()
        return node

    def _forced(self, call: ReportedCall, value: Any) -> Any:
        """A tensor turned into a definite Python value: a branch on data, `len`, `tolist`."""
        if any(self._varies(tensor) for tensor in tensors(call.args)):
            args = self.lowering.lower(call.args)
            node = self.add_node(call.kind, call.target, args, {}, value)
            self.guard("branch on data" if isinstance(value, bool) else "read out", node, value)
        return value

    # -- modules -------------------------------------------------------------------------------

    def module_call(self, module: nn.Module, eager: Any, args: Any, kwargs: Any) -> Any:
        path = self._paths.get(module)
        if path is None:
            return eager(module, *args, **kwargs)
        if not self._stays_whole(module, path):
            with self._inside(path):
                return eager(module, *args, **kwargs)
        with self._inside(path):
            call = ReportedCall("call_module", path, args, kwargs)
            with silent():
                return self.record(call, lambda: self._run_leaf(module, eager, args, kwargs))

    def _stays_whole(self, module: nn.Module, path: str) -> bool:
        return path in self.opaque or has_hooks(module) or is_leaf(module)

    def _run_leaf(self, module: nn.Module, eager: Any, args: Any, kwargs: Any) -> Any:
        self.open = False
        try:
            return eager(module, *without_traces(args), **without_traces(kwargs))
        finally:
            self.open = True

    @contextmanager
    def _inside(self, path: str) -> Iterator[None]:
        """Name `path` as the owner of what is recorded, and of the first error that leaves it."""
        self.stack.append(path)
        try:
            yield
        except Exception as error:
            self.failed = (error, path) if self.failed[0] is not error else self.failed
            raise
        finally:
            self.stack.pop()

    # -- the whole -----------------------------------------------------------------------------

    def placeholder(self, name: str, default: tuple[Any, ...], value: Any) -> Any:
        """An argument of forward. Returns the value to call the model with."""
        node = self.add_node("placeholder", name, default, {}, value)
        return self._adopt(value, Origin(node), set(), set())

    def trace(self, *args: Any, **kwargs: Any) -> fx.Graph:
        """Record a forward of `root` on values that `placeholder` gave out."""
        self._entry = sys._getframe(0)
        with torch.no_grad(), recording(self), self:
            self.open = True
            try:
                result = self.root.forward(*args, **kwargs)
                with silent():
                    node = self.graph.output(self.lowering.emit(result))
            finally:
                self.open = False
        node.meta.update(val=spec_of(result), site="", source="", mutates=())
        return self.graph


def _position(inputs: list[fx.Node], wanted: fx.Node) -> int:
    """Where a tensor is among the inputs of a node: by itself, or in a container built for it."""
    return next(index for index, node in enumerate(inputs) if _holds(node, wanted))


def _holds(node: fx.Node, wanted: fx.Node) -> bool:
    built = isinstance(node.target, type)
    return node is wanted or (built and any(_holds(n, wanted) for n in node.all_input_nodes))
