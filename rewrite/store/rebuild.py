"""The table of tensors and the safetensors file, checked as if a stranger had written them, back to
tensors.
"""

from __future__ import annotations

import struct
from typing import Any

import safetensors
import safetensors.torch
import torch

from ...grammar.diagnostics import Label, LissomError, fail
from .overlap import span
from .tensors import DTYPES, MAX_BYTES, MAX_RANK, Placed
from .values import fields, malformed, parse_header, require_path

_SLOTS = ("parameter", "buffer", "unsaved buffer")


def read_data(content: bytes, table: list[Any]) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file by name, each in memory of its own.

    The header is compared with the table before any tensor is made. Raises A027 where they
    disagree.
    """
    declared = _read_header(content)
    wanted = _declared_by(table)
    if declared != wanted:
        odd = sorted(
            name
            for name in declared.keys() | wanted.keys()
            if declared.get(name) != wanted.get(name)
        )
        raise _disagree(f"the weights and the graph disagree about `{odd[0]}`")
    try:
        loaded = safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, RuntimeError) as error:
        raise _disagree(f"weights.safetensors cannot be read ({error})") from error
    return {name: tensor.clone() for name, tensor in loaded.items()}


def _read_header(content: bytes) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (dtype, shape) as the safetensors header declares them."""
    size = struct.unpack("<Q", content[:8])[0] if len(content) >= 8 else -1
    if not 0 < size <= len(content) - 8:
        raise _disagree("weights.safetensors has no header")
    header = parse_header(content[8 : 8 + size], "weights.safetensors")
    declared = {}
    for name, entry in header.items():
        dtype, shape, _ = fields(
            entry, "weights.safetensors", dtype=str, shape=list, data_offsets=list
        )
        declared[name] = (dtype, tuple(shape))
    return declared


def _declared_by(table: list[Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (dtype, shape) the table needs; flat data is as long as its furthest view."""
    declared: dict[str, tuple[str, tuple[int, ...]]] = {}
    whole = {entry["data"] for entry in table if "same_as" not in entry and "stride" not in entry}
    for entry in table:
        if "same_as" in entry:
            continue
        name, dtype, shape = entry["data"], DTYPES[entry["dtype"]], _shape_of_data(entry)
        known = declared.get(name, (dtype, shape))
        if known[0] != dtype or (name in declared and name in whole):
            raise malformed(f"uses the data `{name}` in two ways", "graph.json")
        declared[name] = (dtype, max(known[1], shape))
    return declared


def _shape_of_data(entry: dict[str, Any]) -> tuple[int, ...]:
    if "stride" not in entry:
        return tuple(entry["shape"])
    return (entry["offset"] + span(entry["shape"], entry["stride"]),)


def check_table(table: Any) -> list[Any]:
    """The table with every field type-checked and every size capped. Raises A025."""
    if type(table) is not list:
        raise malformed("needs a list of tensors", "graph.json")
    paths: set[str] = set()
    total = 0
    for entry in table:
        total += _check_entry(entry)
        paths.add(entry["path"])
    if len(paths) != len(table) or total > MAX_BYTES:
        raise malformed("lists a tensor twice, or more bytes than a reader accepts", "graph.json")
    return table


def _check_entry(entry: Any) -> int:
    """Checks one row; returns the bytes its tensor has."""
    if type(entry) is dict and "same_as" in entry:
        fields(entry, "graph.json", path=str, slot=str, same_as=str)
        _check_place(entry)
        return 0
    strided = {"stride": list, "offset": int} if type(entry) is dict and "stride" in entry else {}
    common = {
        "path": str,
        "slot": str,
        "dtype": str,
        "shape": list,
        "requires_grad": bool,
        "data": str,
    }
    fields(entry, "graph.json", **common, **strided)
    _check_place(entry)
    shape, stride = entry["shape"], entry.get("stride", entry["shape"])
    numbers = [*shape, *stride, entry.get("offset", 0)]
    if any(type(n) is not int or not 0 <= n <= MAX_BYTES for n in numbers) or len(shape) != len(
        stride
    ):
        raise malformed(f"gives `{entry['path']}` sizes that no tensor has", "graph.json")
    if len(shape) > MAX_RANK or entry["dtype"] not in DTYPES:
        raise malformed(f"gives `{entry['path']}` a rank or dtype that is not stored", "graph.json")
    return _count(shape) * getattr(torch, entry["dtype"]).itemsize


def _check_place(entry: dict[str, Any]) -> None:
    require_path(entry["path"], "the path", "graph.json")
    if entry["slot"] not in _SLOTS:
        raise malformed(f"registers `{entry['path']}` as {entry['slot']!r}", "graph.json")


def _count(shape: list[int]) -> int:
    # Python's own integers, because the product of declared extents may not fit in 64 bits.
    product = 1
    for extent in shape:
        product *= extent
    return product


def decode_tensors(table: list[Any], data: dict[str, torch.Tensor]) -> list[Placed]:
    """The tensors in the order of the table, shared ones as the very same object. Raises A025."""
    made: dict[str, Placed] = {}
    for entry in table:
        tensor = _alias(entry, made) if "same_as" in entry else _view(entry, data)
        made[entry["path"]] = Placed(entry["path"], entry["slot"], tensor)
    return list(made.values())


def _alias(entry: dict[str, Any], made: dict[str, Placed]) -> torch.Tensor:
    owner = made.get(entry["same_as"])
    if owner is None or (owner.slot == "parameter") != (entry["slot"] == "parameter"):
        raise malformed(
            f"ties `{entry['path']}` to `{entry['same_as']}`, which it cannot be", "graph.json"
        )
    return owner.tensor


def _view(entry: dict[str, Any], data: dict[str, torch.Tensor]) -> torch.Tensor:
    tensor = data[entry["data"]]
    if "stride" in entry:
        tensor = tensor.as_strided(entry["shape"], entry["stride"], entry["offset"])
    if entry["requires_grad"] and not tensor.is_floating_point():
        raise malformed(f"asks for gradients of `{entry['path']}`, which has none", "graph.json")
    if entry["slot"] == "parameter":
        return torch.nn.Parameter(tensor, entry["requires_grad"])
    return tensor.detach().requires_grad_(entry["requires_grad"])


def _disagree(message: str) -> LissomError:
    return fail(
        "A027",
        message,
        Label(None, where="weights.safetensors"),
        help="save the artifact again; its files are not from one and the same save",
    )
