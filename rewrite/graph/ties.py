"""Who shares memory with whom: parameters that are tied, and values that an in-place op would
change for others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn

from ..ops.call import OpCall, module_at, tensor_at
from ..ops.spec import TensorSpec
from ..store.overlap import addresses, overlapping
from ..torch_internals import unwrapped
from .values import tensors

_LONGEST_CHAIN = 64


def storage_key(tensor: torch.Tensor) -> tuple[str, int]:
    """The same for tensors that share memory: the address, or the storage object where there is
    none (meta, empty).
    """
    storage = tensor.untyped_storage()
    address = storage.data_ptr()
    return ("address", address) if address else ("storage", storage._cdata)


def storages(*values: Any) -> set[tuple[str, int]]:
    """The memory that the tensors of nested values lie in."""
    return {storage_key(unwrapped(tensor)) for tensor in tensors(*values) if tensor.numel()}


def copies_of_views(model: nn.Module) -> dict[int, torch.Tensor]:
    """By id, copies of those parameters and buffers of which some memory belongs to another one.

    `copy.deepcopy` gives each parameter memory of its own: then nobody can see that two are tied.
    Parts of one memory that do not overlap (weights read from one file) are not tied.
    """
    held = {id(t): t for t in (*model.parameters(), *model.buffers()) if _is_plain(t)}
    copies: dict[int, torch.Tensor] = {}
    tensors = list(held.values())
    for group in overlapping(tensors):
        if len(group) > 1 and all(map(_is_aligned, (tensors[i] for i in group))):
            copies |= _together([tensors[i] for i in group])
    return copies


def _is_aligned(tensor: torch.Tensor) -> bool:
    return tensor.data_ptr() % tensor.element_size() == 0


def _together(group: Sequence[torch.Tensor]) -> dict[int, torch.Tensor]:
    """Copies that lie in one memory as the tensors do, whichever storages these are parts of."""
    spans = [addresses(tensor)[1:] for tensor in group]
    start = min(first for first, _ in spans)
    start -= start % _ALIGNED
    memory = torch.zeros(max(end for _, end in spans) - start, dtype=torch.uint8)
    copies: dict[int, torch.Tensor] = {}
    for tensor, (first, end) in zip(group, spans, strict=True):
        storage = tensor.untyped_storage()
        held = torch.empty(0, dtype=torch.uint8)
        held.set_(storage, first - storage.data_ptr(), (end - first,), (1,))
        memory[first - start : end - start] = held
        view = torch.empty(0, dtype=tensor.dtype)
        offset = (first - start) // tensor.element_size()
        view.set_(memory.untyped_storage(), offset, tensor.shape, tensor.stride())
        parameter = isinstance(tensor, nn.Parameter)
        copies[id(tensor)] = nn.Parameter(view, tensor.requires_grad) if parameter else view
    return copies


_ALIGNED = 16
"""Bytes of the largest element: a copy lies as its original does with regard to them."""


def _is_plain(tensor: torch.Tensor) -> bool:
    known = type(tensor) in (torch.Tensor, nn.Parameter) and tensor.layout is torch.strided
    return known and tensor.device.type == "cpu" and tensor.is_leaf and tensor.numel() > 0


class Owners:
    """Storage -> the (node, path) pairs that read it.

    One walk over the graph, then kept by `add` and `forget`.
    """

    def __init__(self, root: fx.GraphModule) -> None:
        self._root = root
        self._readers: dict[Any, dict[tuple[fx.Node, str], None]] = {}
        self._of_node: dict[fx.Node, list[Any]] = {}
        for node in root.graph.nodes:
            self.add(node)

    def add(self, node: fx.Node) -> None:
        if node.op not in ("call_module", "get_attr") or node in self._of_node:
            return
        keys = []
        for path, tensor in _held(self._root, node):
            key = storage_key(tensor)
            self._readers.setdefault(key, {})[node, path] = None
            keys.append((key, path))
        self._of_node[node] = keys

    def forget(self, node: fx.Node) -> None:
        for key, path in self._of_node.pop(node, ()):
            self._readers[key].pop((node, path), None)

    def of(self, path: str) -> tuple[tuple[fx.Node, str], ...]:
        return tuple(self._readers.get(storage_key(tensor_at(self._root, path)), ()))


def _held(root: nn.Module, node: fx.Node) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer that a node reads, under each path it is reached by."""
    target = str(node.target)
    if node.op == "get_attr":
        found = root
        for part in target.split("."):
            found = getattr(found, part)
        if isinstance(found, torch.Tensor):
            yield target, found
        return
    module = module_at(root, target)
    for held in (module.named_parameters, module.named_buffers):
        for name, tensor in held(remove_duplicate=False):
            yield f"{target}.{name}", tensor


def overwrites_others(call: OpCall, may_share: Callable[[fx.Node], Sequence[fx.Node]]) -> str:
    """Why an in-place op is more than a function of its inputs; "" if it is not.

    It is a function only if nothing else can see the memory it writes: each value from the written
    one up to the one that allocated the memory has a single reader. And the result must have the
    dtype that the op would give: `x.eq_(y)` and float32 += float64 keep that of `x`.
    `may_share(node)` lists the inputs whose memory a result may be.
    """
    written = call.inputs[0]
    if _keeps_dtype(call):
        return "it keeps the dtype of what it overwrites"
    for _ in range(_LONGEST_CHAIN):
        if not isinstance(written, fx.Node):
            return "it overwrites what is no single value"
        if written.op in ("placeholder", "get_attr"):
            return f"it overwrites `{written.name}`, which the model does not own"
        if len(written.users) != 1:
            return f"it overwrites `{written.name}`, which others read too"
        inputs = may_share(written)
        if not inputs:
            return ""
        if len(inputs) != 1:
            return _several(written, inputs)
        written = inputs[0]
    return "it overwrites the end of a chain of views that is too long to follow"


def _keeps_dtype(call: OpCall) -> bool:
    """Whether the written tensor's dtype differs from the result that the op declares."""
    if any(kind.name not in ("f", "t") for kind in call.op.decl.results):
        return True
    pairs = zip(call.op.inputs, call.inputs, strict=True)
    specs = [v.meta.get("val") for s, v in pairs if isinstance(v, fx.Node) and s.kind in "ft"]
    return len({spec.dtype for spec in specs if isinstance(spec, TensorSpec)}) > 1


def _several(view: fx.Node, inputs: Sequence[fx.Node]) -> str:
    """A view of several values: harmless only if all of them are made for it alone."""
    others = [n for n in inputs if n.op in ("placeholder", "get_attr") or len(n.users) != 1]
    if others:
        return f"it overwrites `{view.name}`, which may share memory with `{others[0].name}`"
    return ""
