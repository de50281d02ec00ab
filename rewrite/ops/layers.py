"""Building torch.nn layers from the parameters and attributes of an op."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

Params = Mapping[str, torch.Tensor | None]
Build = Callable[[type[Any], Params, Mapping[str, Any]], nn.Module]


def build_layer(
    op_name: str,
    params: Params,
    attrs: Mapping[str, Any],
    like: nn.Module | None,
    rank: int | None,
) -> nn.Module | None:
    """The layer that computes the op with these very tensors; None where torch.nn has none, or not
    this variant.

    `like` gives the class where several compute the same (BatchNorm1d, 2d, 3d), the training flag
    and which parameters are trained; without it the `rank` of the input decides the class.
    """
    kind = _class_of(op_name, like, rank)
    if kind is None or (op_name in _SIZED_BY_TENSORS and not _any_tensor(params)):
        return None
    layer = _BUILD[op_name](kind, params, attrs)
    for name, tensor in params.items():
        _put(layer, name, tensor, like)
    _count_batches(layer, like)
    if isinstance(layer, nn.RNNBase):
        layer._init_flat_weights()  # it keeps a list of its weights besides
    layer.train(attrs.get("training", like is not None and like.training))
    return layer


def _any_tensor(params: Params) -> bool:
    return any(tensor is not None for tensor in params.values())


def _class_of(op_name: str, like: nn.Module | None, rank: int | None) -> type[nn.Module] | None:
    choices = _CLASSES.get(op_name, ())
    same = [kind for kind in choices if isinstance(like, kind)]
    if same or len(choices) < 2:
        return (same or list(choices) or [None])[0]
    by_rank = {2: 0, 3: 0, 4: 1, 5: 2}
    return choices[by_rank[rank]] if rank in by_rank else None


def _put(layer: nn.Module, name: str, tensor: torch.Tensor | None, like: nn.Module | None) -> None:
    """Put the tensor where the layer keeps `name`. Buffers stay buffers."""
    owner, _, own = _place(layer, name).rpartition(".")
    held = layer.get_submodule(owner)
    if own in held._buffers:
        held._buffers[own] = tensor
        return
    held._parameters[own] = None if tensor is None else _parameter(tensor, name, like)


def _count_batches(layer: nn.Module, like: nn.Module | None) -> None:
    """The batch counter of a normalisation is no parameter of the op: it goes on from `like`."""
    counter = layer._buffers.get("num_batches_tracked")
    if counter is not None:
        known = getattr(like, "num_batches_tracked", None)
        fresh = known.clone() if isinstance(known, torch.Tensor) else torch.tensor(0)
        layer._buffers["num_batches_tracked"] = fresh


def _place(layer: nn.Module, name: str) -> str:
    """Where `out_proj_weight` is kept: `out_proj.weight`, if the layer has no parameter of that
    very name.
    """
    if name in layer._parameters or name in layer._buffers:
        return name
    child = next((c for c, _ in layer.named_children() if name.startswith(f"{c}_")), None)
    return name if child is None else f"{child}.{name.removeprefix(f'{child}_')}"


def _parameter(tensor: torch.Tensor, name: str, like: nn.Module | None) -> nn.Parameter:
    trained = getattr(like, name, None)
    wanted = trained.requires_grad if isinstance(trained, torch.Tensor) else True
    return nn.Parameter(tensor.detach(), requires_grad=wanted and tensor.is_floating_point())


# -- one builder for each family; parameters are allocated on `meta` and then replaced
# ------------------


def _conv(kind: type[Any], params: Params, attrs: Mapping[str, Any]) -> nn.Module:
    weight = _weight(params)
    out_width, in_width, *kernel = weight.shape
    more = {name: attrs[name] for name in ("stride", "padding", "dilation", "groups")}
    bias = params["bias"] is not None
    return kind(in_width * attrs["groups"], out_width, kernel, bias=bias, device="meta", **more)


def _conv_transpose(kind: type[Any], params: Params, attrs: Mapping[str, Any]) -> nn.Module:
    weight = _weight(params)
    in_width, out_width, *kernel = weight.shape
    names = ("stride", "padding", "output_padding", "dilation", "groups")
    more = {name: attrs[name] for name in names}
    bias = params["bias"] is not None
    return kind(in_width, out_width * attrs["groups"], kernel, bias=bias, device="meta", **more)


def _linear(kind: type[Any], params: Params, attrs: Mapping[str, Any]) -> nn.Module:
    out_width, in_width = _weight(params).shape
    return kind(in_width, out_width, bias=params["bias"] is not None, device="meta")


def _embedding(kind: type[Any], params: Params, attrs: Mapping[str, Any]) -> nn.Module:
    rows, width = _weight(params).shape
    return kind(rows, width, padding_idx=attrs["padding_idx"], device="meta")


def _with_statistics(kind: type[Any], params: Params, attrs: Mapping[str, Any]) -> nn.Module:
    width = next(len(tensor) for tensor in params.values() if tensor is not None)
    return kind(
        width,
        eps=attrs["eps"],
        momentum=attrs["momentum"],
        affine=params["weight"] is not None,
        track_running_stats=params["running_mean"] is not None,
        device="meta",
    )


def _layer_norm(kind: type[Any], params: Params, attrs: Mapping[str, Any]) -> nn.Module:
    more = {} if kind is nn.RMSNorm else {"bias": params["bias"] is not None}
    affine = params["weight"] is not None
    shape, eps = attrs["normalized_shape"], attrs["eps"]
    return kind(list(shape), eps=eps, elementwise_affine=affine, device="meta", **more)


def _group_norm(kind: type[Any], params: Params, attrs: Mapping[str, Any]) -> nn.Module:
    width = next(len(tensor) for tensor in params.values() if tensor is not None)
    affine = params["weight"] is not None
    return kind(attrs["num_groups"], width, eps=attrs["eps"], affine=affine, device="meta")


def _prelu(kind: type[Any], params: Params, attrs: Mapping[str, Any]) -> nn.Module:
    return kind(len(_weight(params)), device="meta")


def _weight(params: Params) -> torch.Tensor:
    weight = params["weight"]
    assert weight is not None
    return weight


def _attention(kind: type[Any], params: Params, attrs: Mapping[str, Any]) -> nn.Module:
    return kind(
        attrs["embed_dim"],
        attrs["num_heads"],
        dropout=attrs["dropout"],
        bias=params["in_proj_bias"] is not None,
        batch_first=attrs["batch_first"],
        device="meta",
    )


def _recurrent(kind: type[Any], params: Params, attrs: Mapping[str, Any]) -> nn.Module:
    names = ("input_size", "hidden_size", "nonlinearity", "batch_first")
    both = "weight_ih_l0_reverse" in params
    more = {name: attrs[name] for name in names if name in attrs}
    return kind(device="meta", bidirectional=both, **more)


_SIZED_BY_TENSORS = {"batch_norm", "instance_norm", "group_norm"}
"""Layers whose width is that of their tensors; without any they are function calls."""

_CLASSES: dict[str, tuple[type[nn.Module], ...]] = {
    "conv1d": (nn.Conv1d,),
    "conv2d": (nn.Conv2d,),
    "conv3d": (nn.Conv3d,),
    "conv_transpose1d": (nn.ConvTranspose1d,),
    "conv_transpose2d": (nn.ConvTranspose2d,),
    "conv_transpose3d": (nn.ConvTranspose3d,),
    "linear": (nn.Linear,),
    "embedding": (nn.Embedding,),
    "batch_norm": (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    "instance_norm": (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    "layer_norm": (nn.LayerNorm,),
    "rms_norm": (nn.RMSNorm,),
    "group_norm": (nn.GroupNorm,),
    "prelu": (nn.PReLU,),
    "multihead_attention": (nn.MultiheadAttention,),
    "lstm": (nn.LSTM,),
    "lstm_bidirectional": (nn.LSTM,),
    "gru": (nn.GRU,),
    "rnn": (nn.RNN,),
}
_BUILD: dict[str, Build] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _conv_transpose),
    **dict.fromkeys(("batch_norm", "instance_norm"), _with_statistics),
    **dict.fromkeys(("layer_norm", "rms_norm"), _layer_norm),
    "linear": _linear,
    "embedding": _embedding,
    "group_norm": _group_norm,
    "prelu": _prelu,
    "multihead_attention": _attention,
    **dict.fromkeys(("lstm", "lstm_bidirectional", "gru", "rnn"), _recurrent),
}
