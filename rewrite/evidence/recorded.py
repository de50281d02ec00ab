"""Example inputs in a certificate: their structure and memory format as JSON, their tensors beside
it.

A tensor is `{"tensor": number}`, with `stride` where it is not row-major; a plain value is
`{"value": value}`; a list, tuple or dict is `{"list": [..]}`, `{"tuple": [..]}`, `{"dict": [[key,
value], ..]}`; a dataclass, a named tuple or a kind of dict is `{"made": [line, [[field, value],
..]]}`, with the line that `containers.py` has for its class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..graph.values import children
from ..measure.samples import Example, bytes_in
from ..store.containers import container_line, container_of
from ..store.overlap import span
from ..store.values import malformed

_LOOSEST = 64
"""Elements of memory for one element of a tensor, at most: a reader makes room for the gaps."""


MOST_BYTES = 16 << 20
"""Further examples are recorded while all of them together hold fewer bytes of tensors."""


def recorded(examples: Sequence[Example]) -> list[Example]:
    """The examples that an artifact keeps: the first, and those of other sizes that are small."""
    first, *others = examples
    kept, size = [first], 0
    for example in others:
        size += bytes_in(example)
        if size <= MOST_BYTES and recorded_inputs(example.args)[0] is not None:
            kept.append(example)
    return kept


def recorded_inputs(inputs: Sequence[Any]) -> tuple[list[Any] | None, list[Tensor]]:
    """The description of each positional input, and the tensors that it numbers. None and no
    tensors where an input holds anything else (an object of a class of its own).
    """
    tensors: list[Tensor] = []
    try:
        return [_described(value, tensors) for value in inputs], tensors
    except TypeError:
        return None, []


def _described(value: Any, tensors: list[Tensor]) -> dict[str, Any]:
    kind = type(value)
    if isinstance(value, Tensor):
        tensors.append(value)
        strided = value.layout is torch.strided and not value.is_contiguous() and _fits(value)
        stride = {"stride": list(value.stride())} if strided else {}
        return {"tensor": len(tensors) - 1, **stride}
    if value is None or kind in (bool, int, float, str):
        return {"value": value}
    if kind in (list, tuple):
        return {kind.__name__: [_described(item, tensors) for item in value]}
    if kind is dict and all(type(key) in (str, int) for key in value):
        return {"dict": [[key, _described(item, tensors)] for key, item in value.items()]}
    line = container_line(kind)
    parts = [(step.key, part) for step, part in children(value)]
    known = line is not None and container_of(line) is not None
    if not known or any(type(key) not in (str, int) for key, _ in parts):
        raise TypeError(kind.__name__)
    return {"made": [line, [[key, _described(part, tensors)] for key, part in parts]]}


def _fits(value: Tensor) -> bool:
    """Whether a reader can write the elements one by one: their windows do not overlap."""
    reach = 1
    for step, n in sorted(zip(value.stride(), value.shape, strict=True)):
        if n > 1 and step:
            if step < reach:
                return False
            reach += (n - 1) * step
    return reach <= _LOOSEST * max(value.numel(), 1)


def restored(written: Sequence[Any] | None, tensors: Sequence[Tensor]) -> tuple[Any, ...] | None:
    """The inputs that `described` wrote down. Raises A025 for what it never writes."""
    if written is None:
        return None
    try:
        return tuple(_restored(item, tensors) for item in written)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        raise malformed(f"holds inputs that cannot be read ({error})", "certificate.json") from None


def _restored(written: dict[str, Any], tensors: Sequence[Tensor]) -> Any:
    if "tensor" in written:
        return _strided(tensors[written["tensor"]], written.get("stride"))
    ((kind, content),) = written.items()
    if kind == "value":
        return content
    if kind == "dict":
        return {key: _restored(item, tensors) for key, item in content}
    if kind == "made":
        return _made(content[0], {key: _restored(item, tensors) for key, item in content[1]})
    return {"list": list, "tuple": tuple}[kind](_restored(item, tensors) for item in content)


def _made(line: str, parts: dict[Any, Any]) -> Any:
    kind = container_of(line)
    if not isinstance(kind, type):
        raise ValueError(f"the class `{line}`")
    if issubclass(kind, dict):
        return kind(parts.items())
    if issubclass(kind, tuple):
        return kind(*parts.values()) if hasattr(kind, "_fields") else kind(parts.values())
    return kind(parts.values()) if issubclass(kind, list) else kind(**parts)


def _strided(tensor: Tensor, stride: list[int] | None) -> Tensor:
    """The tensor in the strides that it had; where they are 0 it was one element, repeated."""
    if stride is None:
        return tensor
    if min(stride) < 0 or span(tensor.shape, stride) > _LOOSEST * max(tensor.numel(), 1):
        raise ValueError("strides that no input had")
    once = tensor[tuple(slice(None) if step else slice(1) for step in stride)]
    made = torch.empty_strided(once.shape, stride, dtype=tensor.dtype)
    return made.copy_(once).expand(tensor.shape)
