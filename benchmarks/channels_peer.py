"""One model through Torch-Pruning, set up as its own examples set it up.

The layers that write the outputs are ignored, attention is told its heads, and what a model keeps
of its widths outside its layers is updated after the cut, as the examples for torchvision, timm and
transformers do.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from capture_models import Build
from channels_cut import parameters, same_form
from channels_models import Row
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def installed() -> bool:
    return importlib.util.find_spec("torch_pruning") is not None


def measured(build: Build) -> Callable[[Row], None]:
    """Fills a row with what Torch-Pruning does to one model."""

    def measure(row: Row) -> None:
        model, inputs = build()
        _plain_attention(model)
        row |= {"before": parameters(model), "stage": "heads"}
        with torch.no_grad():
            original = model(*inputs)
        ignored = writers(model, inputs)
        row["stage"] = "prune"
        importlib.import_module("torch_pruning")  # before the clock starts
        begun = time.process_time()
        prune(model, inputs, ignored)
        row["seconds"] = time.process_time() - begun
        row |= {"after": parameters(model), "stage": "run"}
        with torch.no_grad():
            row["kept"] = same_form(original, model(*inputs))
        row["stage"] = "done"

    return measure


def works(row: Row) -> bool:
    """It ran, kept the form of the output, and is smaller."""
    return "error" not in row and row["kept"] and row["after"] < row["before"]


def prune(model: nn.Module, inputs: tuple[Any, ...], ignored: list[nn.Module]) -> None:
    """Half of the channels of each layer by their L1 norms."""
    import torch_pruning as tp

    heads, options = attention(model)
    pruner = tp.pruner.MetaPruner(
        model,
        inputs[0] if len(inputs) == 1 else list(inputs),
        importance=tp.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.5,
        ignored_layers=ignored,
        num_heads=heads,
        **options,
    )
    pruner.step()
    _update(model, pruner.num_heads)


# -- which layers write the outputs ----------------------------------------------------------------


def writers(model: nn.Module, inputs: tuple[Any, ...]) -> list[nn.Module]:
    """The convolutions and linear layers whose results reach an output through no other one."""
    layers = {
        id(module.weight): module
        for module in model.modules()
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))
    }
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    found: dict[nn.Module, None] = {}
    leaves = tree_leaves(model(*inputs))
    queue = [v.grad_fn for v in leaves if isinstance(v, Tensor) and v.grad_fn is not None]
    seen = set(queue)
    while queue:
        function = queue.pop()
        layer = next((layers[w] for w in _weights(function) if w in layers), None)
        if layer is not None:
            found[layer] = None
            continue
        more = {f for f, _ in function.next_functions if f is not None} - seen
        seen |= more
        queue += more
    return list(found)


def _weights(function: Any) -> Iterator[int]:
    """The parameters that a function reads, as they are or transposed."""
    for read, _ in function.next_functions:
        if read is not None and type(read).__name__ in ("TBackward0", "TransposeBackward0"):
            read = read.next_functions[0][0]
        if hasattr(read, "variable"):
            yield id(read.variable)


# -- attention -------------------------------------------------------------------------------------


def attention(model: nn.Module) -> tuple[dict[nn.Module, int], dict[str, Any]]:
    """The heads of each projection, and how attention is cut: by whole heads where positions are
    rotated in pairs of widths; to widths that the heads divide where torch's own layer is used.
    """
    heads: dict[nn.Module, int] = {}
    for module in model.modules():
        heads |= _heads(module)
    if heads and any("Rotary" in type(module).__name__ for module in model.modules()):
        halves = [m.gate_up_proj for m in model.modules() if hasattr(m, "gate_up_proj")]
        options = {"prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": 0.5}
        return heads, options | {"round_to": 4, "out_channel_groups": dict.fromkeys(halves, 2)}
    own = [m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)]
    return heads, {"round_to": max(own)} if own else {}


def _heads(module: nn.Module) -> dict[nn.Module, int]:
    number = getattr(module, "num_heads", None) or getattr(module, "num_attention_heads", None)
    if isinstance(getattr(module, "q_proj", None), nn.Linear):
        return _llm_heads(module, number)
    if not isinstance(number, int):
        return {}
    names = ("qkv", "qkv_proj", "query", "key", "value")
    found = (getattr(module, name, None) for name in names)
    return {layer: number for layer in found if isinstance(layer, nn.Linear)}


def _llm_heads(module: Any, number: int | None) -> dict[nn.Module, int]:
    config = getattr(module, "config", None)
    number = number or getattr(config, "num_attention_heads", None)
    if not isinstance(number, int):
        return {}
    few = getattr(config, "num_key_value_heads", None) or number
    return {module.q_proj: number, module.k_proj: few, module.v_proj: few}


def _plain_attention(model: nn.Module) -> None:
    """The examples for timm turn fused attention off, which cannot be traced."""
    for module in model.modules():
        if isinstance(getattr(module, "fused_attn", None), bool):
            module.fused_attn = False


def _update(model: nn.Module, heads: dict[nn.Module, int]) -> None:
    """What the models keep of their widths beside their layers."""
    for module in model.modules():
        for name in ("qkv", "qkv_proj", "query", "q_proj"):
            layer = getattr(module, name, None)
            if isinstance(layer, nn.Linear) and layer in heads:
                _resize(module, layer, heads[layer], 3 if "qkv" in name else 1)
    # torchvision's ViT reshapes to a width of its own.
    if hasattr(model, "hidden_dim") and hasattr(model, "conv_proj"):
        model.hidden_dim = model.conv_proj.out_channels


def _resize(module: Any, layer: nn.Linear, heads: int, parts: int) -> None:
    whole = layer.out_features // parts
    sizes = {
        "num_heads": heads,
        "num_attention_heads": heads,
        "head_dim": whole // heads,
        "attention_head_size": whole // heads,
        "attn_dim": whole,
        "all_head_size": whole,
        "embed_dim": whole,
    }
    for name, size in sizes.items():
        if isinstance(getattr(module, name, None), int):
            setattr(module, name, size)
