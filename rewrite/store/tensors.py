"""Parameters and buffers as a table of checked JSON beside one safetensors file.

The table lists every place a tensor is registered at, in order. One object at several places is
written once, the other places say `same_as`. Different tensors over overlapping memory share one
flat piece of data and say which part of it they are (`stride`, `offset`), so writing through one is
still seen through the other. A tensor alone in its memory whose elements lie densely but in another
order (channels_last) keeps its strides the same way; one with gaps (a slice of something bigger) is
stored without the gaps, because what was cut away must not travel along.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ...grammar.diagnostics import Label, fail
from .overlap import overlapping, span
from .values import require_path

MAX_BYTES = 64 * 2**30
MAX_RANK = 64
# torch's dtype name -> (name in the safetensors header, bytes of an element)
DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor and the place it is registered at. `slot` is parameter, buffer, or unsaved
    (non-persistent) buffer.
    """

    path: str
    slot: str
    tensor: torch.Tensor


# -- module tree to table --------------------------------------------------------------------------


def placed_tensors(modules: Iterable[tuple[str, torch.nn.Module]]) -> Iterator[Placed]:
    """Every registered tensor of the modules (path, module), shared ones once for each place."""
    for path, module in modules:
        prefix = f"{path}." if path else ""
        for name, tensor in module._parameters.items():
            if tensor is not None:
                yield Placed(prefix + name, "parameter", tensor)
        for name, tensor in module._buffers.items():
            if tensor is not None:
                unsaved = name in module._non_persistent_buffers_set
                yield Placed(prefix + name, "unsaved buffer" if unsaved else "buffer", tensor)


def encode_tensors(places: Iterable[Placed]) -> tuple[list[Any], dict[str, torch.Tensor]]:
    """The table, and the data the safetensors file holds by name. Raises A017 for a tensor that is
    not stored.
    """
    places = list(places)
    first: dict[int, str] = {}
    for place in places:
        _require_storable(place)
        first.setdefault(id(place.tensor), place.path)
    owners = [place for place in places if first[id(place.tensor)] == place.path]
    data: dict[str, torch.Tensor] = {}
    layouts = {
        path: layout
        for group in overlapping([owner.tensor for owner in owners])
        for path, layout in _pack([owners[i] for i in group], data)
    }
    return [_entry(place, first[id(place.tensor)], layouts) for place in places], data


def _entry(place: Placed, owner: str, layouts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    if owner != place.path:
        return {"path": place.path, "slot": place.slot, "same_as": owner}
    tensor = place.tensor
    return {
        "path": place.path,
        "slot": place.slot,
        "dtype": _dtype_name(tensor.dtype),
        "shape": list(tensor.shape),
        "requires_grad": tensor.requires_grad,
        **layouts[place.path],
    }


def _require_storable(place: Placed) -> None:
    tensor = place.tensor
    require_path(place.path, "the path", place.path)
    wanted = torch.nn.Parameter if place.slot == "parameter" else torch.Tensor
    problem = ""
    if type(tensor) is not wanted:
        problem = f"is a {type(tensor).__qualname__} registered as a {place.slot}"
    elif tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        problem = f"is a {_form(tensor)} tensor"
    elif _dtype_name(tensor.dtype) not in DTYPES:
        problem = f"has the dtype {_dtype_name(tensor.dtype)}"
    elif tensor.is_conj() or tensor.is_neg():
        problem = "is a lazily conjugated or negated view"
    elif tensor.numel() * tensor.element_size() > MAX_BYTES or tensor.dim() > MAX_RANK:
        problem = f"claims {tensor.numel()} elements"
    if problem:
        raise fail(
            "A017",
            f"`{place.path}` {problem}, which cannot be stored",
            Label(None, where=place.path),
            note="stored are plain dense parameters and buffers of the dtypes " + ", ".join(DTYPES),
            help="convert it to a plain tensor, then save again",
        )


def _form(tensor: torch.Tensor) -> str:
    if tensor.is_meta:
        return "meta"
    return "quantized" if tensor.is_quantized else _dtype_name(tensor.layout)


def _dtype_name(dtype: torch.dtype | torch.layout) -> str:
    return str(dtype).removeprefix("torch.")


def _pack(group: list[Placed], data: dict[str, torch.Tensor]) -> list[tuple[str, dict[str, Any]]]:
    """Put the data of tensors that share memory into `data`; returns the layout of each by path."""
    name, tensor = group[0].path, group[0].tensor.detach()
    if len(group) == 1 and not _needs_strides(tensor):
        data[name] = _in_own_memory(tensor)
        return [(name, {"data": name})]
    _require_one_storage(group)
    first = min(int(place.tensor.storage_offset()) for place in group)
    last = max(_end(place.tensor) for place in group)
    data[name] = _in_own_memory(torch.as_strided(tensor, (last - first,), (1,), first))
    return [(place.path, _layout(place.tensor, name, first)) for place in group]


def _in_own_memory(tensor: torch.Tensor) -> torch.Tensor:
    """On the CPU, contiguous, and alone in its storage, copied only where it is not."""
    tensor = tensor.cpu().contiguous()
    alone = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if alone else tensor.clone()


def _require_one_storage(group: list[Placed]) -> None:
    kinds = {(place.tensor.dtype, place.tensor.untyped_storage().data_ptr()) for place in group}
    if len(kinds) > 1:
        raise fail(
            "A017",
            "tensors of different dtypes or storages share memory, which cannot be stored",
            *(Label(None, where=place.path) for place in group),
            help="clone one of them",
        )


def _end(tensor: torch.Tensor) -> int:
    return int(tensor.storage_offset()) + span(tensor.shape, tensor.stride())


def _layout(tensor: torch.Tensor, data: str, first: int) -> dict[str, Any]:
    return {
        "data": data,
        "stride": list(tensor.stride()),
        "offset": tensor.storage_offset() - first,
    }


def _needs_strides(tensor: torch.Tensor) -> bool:
    """Whether a tensor alone in its memory is not row-major but dense, or reads an element more
    than once.
    """
    shape, stride = tensor.shape, tensor.stride()
    if tensor.numel() == 0 or stride == torch.empty(shape, device="meta").stride():
        return False
    return span(shape, stride) <= tensor.numel()
