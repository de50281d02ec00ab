"""Hashes of models: of every parameter, and of the whole."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...grammar.documents import sha256
from ..store.containers import container_line
from ..torch_internals import qualified_name, version_of


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 over dtype, shape and bytes."""
    held = tensor.detach().contiguous().cpu()
    head = f"{held.dtype}{tuple(held.shape)}".encode()
    raw = held.reshape(-1).view(torch.uint8) if held.numel() else torch.empty(0, dtype=torch.uint8)
    return sha256(head + raw.numpy().tobytes())


def parameter_digests(module: nn.Module) -> dict[str, str]:
    """Dotted path -> digest of every parameter and buffer; tied ones are hashed once."""
    known: dict[int, str] = {}
    found = {}
    for path, tensor in (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ):
        if id(tensor) not in known:
            known[id(tensor)] = tensor_digest(tensor)
        found[path] = known[id(tensor)]
    return found


def weights_at(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Dotted path -> identity and version counter of every parameter and buffer.

    torch raises the counter at every write, so comparing two of these says whether a weight was
    replaced or written to, at no cost that grows with its size.
    """
    held = (*module.named_parameters(), *module.named_buffers())
    return {path: (id(tensor), version_of(tensor)) for path, tensor in held}


def model_digest(module: fx.GraphModule) -> str:
    """One hash over the graph's nodes and all weights: equal for equal bytes."""
    summary = hashlib.sha256("\n".join(map(_line, module.graph.nodes)).encode())
    for path, digest in sorted(parameter_digests(module).items()):
        summary.update(f"{path} {digest}\n".encode())
    return summary.hexdigest()


def _line(node: fx.Node) -> str:
    """A node as text; keyword arguments are sorted, for no file keeps their order."""
    called = node.target if isinstance(node.target, str) else _called(node.target)
    return f"{node.name} {node.op} {called} {node.args} {sorted(node.kwargs.items())}"


def _called(target: Any) -> str:
    """A class of containers by its fields: the one that is made on reading has another module."""
    return container_line(target) or qualified_name(target)
