"""Building layers, of torch.nn and of `runtime/`, from the parameters and attributes of an op."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..runtime import (
    Int8Conv1d,
    Int8Conv2d,
    Int8Conv3d,
    Int8Embedding,
    Int8Linear,
    Int8LinearRows,
    Int8LSTM,
)  # fmt: skip

Params = Mapping[str, torch.Tensor | None]
Build = Callable[[type[Any], Params, Mapping[str, Any]], nn.Module | None]


def build_layer(
    kinds: Sequence[type[nn.Module]],
    params: Params,
    attrs: Mapping[str, Any],
    like: nn.Module | None,
    rank: int | None,
) -> nn.Module | None:
    """A layer of one of the classes `kinds` that computes an op with these very tensors; None where
    it is not known how to make one, or not this variant.

    `like` gives the class where several compute the same (BatchNorm1d, 2d, 3d), the training flag
    and which parameters are trained; without it the `rank` of the input decides the class.
    """
    kind = _class_of([kind for kind in kinds if kind in _BUILD], like, rank)
    layer = None if kind is None else _BUILD[kind](kind, params, attrs)
    if layer is None:
        return None
    for name, tensor in params.items():
        _put(layer, name, tensor, like)
    _count_batches(layer, like)
    if isinstance(layer, nn.RNNBase):
        layer._init_flat_weights()  # it keeps a list of its weights besides
    layer.train(attrs.get("training", like is not None and like.training))
    return layer


def _class_of(
    choices: list[type[nn.Module]], like: nn.Module | None, rank: int | None
) -> type[nn.Module] | None:
    same = [kind for kind in choices if isinstance(like, kind)]
    if same or len(choices) < 2:
        return next(iter(same or choices), None)
    by_rank = {2: 0, 3: 0, 4: 1, 5: 2}
    return choices[by_rank[rank]] if rank in by_rank else None


def _put(layer: nn.Module, name: str, tensor: torch.Tensor | None, like: nn.Module | None) -> None:
    """Put the tensor where the layer keeps `name`. Buffers stay buffers."""
    owner, _, own = _place(layer, name).rpartition(".")
    held = layer.get_submodule(owner)
    if own in held._buffers:
        held._buffers[own] = tensor
        return
    fresh = held._parameters.get(own)
    trained = fresh is None or fresh.requires_grad
    held._parameters[own] = None if tensor is None else _parameter(tensor, name, like, trained)


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


def _parameter(
    tensor: torch.Tensor, name: str, like: nn.Module | None, wanted: bool
) -> nn.Parameter:
    trained = getattr(like, name, None)
    if isinstance(trained, torch.Tensor):
        wanted = wanted and trained.requires_grad
    return nn.Parameter(tensor.detach(), requires_grad=wanted and tensor.is_floating_point())


# -- one builder for each family; parameters are allocated on `meta` and then replaced
# ------------------


def _conv(kind: type[Any], params: Params, attrs: Mapping[str, Any]) -> nn.Module:
    weight = _weight(params)
    out_width, in_width, *kernel = weight.shape
    more = {name: attrs[name] for name in ("stride", "padding", "dilation", "groups")}
    bias = params.get("bias") is not None
    return kind(in_width * attrs["groups"], out_width, kernel, bias=bias, device="meta", **more)


def _conv_transpose(kind: type[Any], params: Params, attrs: Mapping[str, Any]) -> nn.Module:
    weight = _weight(params)
    in_width, out_width, *kernel = weight.shape
    names = ("stride", "padding", "output_padding", "dilation", "groups")
    more = {name: attrs[name] for name in names}
    bias = params.get("bias") is not None
    return kind(in_width, out_width * attrs["groups"], kernel, bias=bias, device="meta", **more)


def _linear(kind: type[Any], params: Params, attrs: Mapping[str, Any]) -> nn.Module:
    out_width, in_width = _weight(params).shape
    return kind(in_width, out_width, bias=params["bias"] is not None, device="meta")


def _embedding(kind: type[Any], params: Params, attrs: Mapping[str, Any]) -> nn.Module:
    rows, width = _weight(params).shape
    return kind(rows, width, padding_idx=attrs["padding_idx"], device="meta")


def _width(params: Params) -> int | None:
    """That of the tensors; None without any, where it is a function call and no layer."""
    return next((len(tensor) for tensor in params.values() if tensor is not None), None)


def _with_statistics(kind: type[Any], params: Params, attrs: Mapping[str, Any]) -> nn.Module | None:
    width = _width(params)
    return (
        None
        if width is None
        else kind(
            width,
            eps=attrs["eps"],
            momentum=attrs["momentum"],
            affine=params["weight"] is not None,
            track_running_stats=params["running_mean"] is not None,
            device="meta",
        )
    )


def _layer_norm(kind: type[Any], params: Params, attrs: Mapping[str, Any]) -> nn.Module:
    more = {} if kind is nn.RMSNorm else {"bias": params["bias"] is not None}
    affine = params["weight"] is not None
    shape, eps = attrs["normalized_shape"], attrs["eps"]
    return kind(list(shape), eps=eps, elementwise_affine=affine, device="meta", **more)


def _group_norm(kind: type[Any], params: Params, attrs: Mapping[str, Any]) -> nn.Module | None:
    width, affine = _width(params), params["weight"] is not None
    return (
        None
        if width is None
        else kind(attrs["num_groups"], width, eps=attrs["eps"], affine=affine, device="meta")
    )


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


def _int8_conv(kind: type[Any], params: Params, attrs: Mapping[str, Any]) -> nn.Module:
    out_width, in_width, *kernel = _weight(params).shape
    bias = params["bias"] is not None
    return kind(in_width * attrs["groups"], out_width, kernel, bias=bias, device="meta", **attrs)


def _int8_linear(kind: type[Any], params: Params, attrs: Mapping[str, Any]) -> nn.Module:
    out_width, in_width = _weight(params).shape
    return kind(in_width, out_width, bias=params["bias"] is not None, device="meta", **attrs)


def _int8_embedding(kind: type[Any], params: Params, attrs: Mapping[str, Any]) -> nn.Module:
    return kind(*_weight(params).shape, device="meta")


def _int8_lstm(kind: type[Any], params: Params, attrs: Mapping[str, Any]) -> nn.Module:
    inputs, states = params["input_weight"], params["state_weight"]
    assert inputs is not None
    assert states is not None
    return kind(inputs.shape[1], states.shape[1], device="meta", **attrs)


_BUILD: dict[type[nn.Module], Build] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _conv),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _conv_transpose),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _with_statistics),
    nn.SyncBatchNorm: _with_statistics,
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _with_statistics),
    **dict.fromkeys((nn.LayerNorm, nn.RMSNorm), _layer_norm),
    nn.Linear: _linear,
    nn.Embedding: _embedding,
    nn.GroupNorm: _group_norm,
    nn.PReLU: _prelu,
    nn.MultiheadAttention: _attention,
    **dict.fromkeys((nn.LSTM, nn.GRU, nn.RNN), _recurrent),
    **dict.fromkeys((Int8Conv1d, Int8Conv2d, Int8Conv3d), _int8_conv),
    **dict.fromkeys((Int8Linear, Int8LinearRows), _int8_linear),
    Int8Embedding: _int8_embedding,
    Int8LSTM: _int8_lstm,
}
"""How a layer of each class is made; which op a class computes, its declaration says. Of an own
class nobody knows it: the op's meaning is called.
"""
