"""What the tensors of an integer layer may be, and whether they are still what they were."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn

_NO_GRADIENT = (
    "integer layers do not train, and nothing before them gets a gradient: codes have none. Train "
    "the model with numbers and compile it then; `.eval()` is the mode to run this one in"
)


class OfCodes(nn.Module):
    """A module whose weights are codes: they keep their types, and do not train."""

    def train(self, mode: bool = True) -> Self:
        """Says in training mode that nothing before this layer learns through it."""
        if mode and not self.training:
            warnings.warn(_NO_GRADIENT, stacklevel=2)
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `.half()` and `.to(...)` do. Codes stay int8, and scales float32 or float64: in half
        precision 1e-5 is another number, and 1e-8 is 0.
        """
        return super()._apply(lambda tensor: kept(tensor, fn(tensor)), recurse)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Refuses tensors of other types, which torch converts by value without a word."""
        for name, own in self._parameters.items():
            given = state_dict.get(prefix + name)
            if own is not None and isinstance(given, Tensor) and not holds(own, given):
                error_msgs.append(f"`{prefix}{name}` is {own.dtype}, and {given.dtype} was given")
                state_dict = {**state_dict, prefix + name: own}
        lists = missing_keys, unexpected_keys, error_msgs
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)


def fixed(tensor: Tensor) -> nn.Parameter:
    """A parameter that is not trained: counted, moved and saved as one."""
    return nn.Parameter(tensor, requires_grad=False)


def kept(old: Tensor, new: Tensor) -> Tensor:
    """What becomes of a tensor that is moved or cast."""
    return new if holds(old, new) else old.to(new.device)


def holds(own: Tensor, given: Tensor) -> bool:
    """Whether a type holds what a tensor of a layer may be."""
    wide = (torch.float32, torch.float64)
    return given.dtype == own.dtype or (own.is_floating_point() and given.dtype in wide)


def require_codes(device: torch.device, values: Iterable[Tensor]) -> None:
    """Raises TypeError for codes of another type, of which kernels would read the bytes, and
    ValueError for codes on another device.
    """
    for codes in values:
        if codes.dtype != torch.uint8:
            raise TypeError(f"codes are uint8, these are {codes.dtype}: `quantize` makes them")
        if codes.device != device:
            raise ValueError(f"codes lie on {codes.device}, the weights of the layer on {device}")


def require(weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
    """Raises TypeError or ValueError for tensors that a kernel would misread without a word."""
    if weight.dtype != torch.int8:
        raise TypeError(f"the weight of an integer layer is int8, this is {weight.dtype}")
    for name, tensor in (("scale", scale), ("bias", bias)):
        if tensor is not None and tensor.shape != weight.shape[:1]:
            shape, features = list(tensor.shape), len(weight)
            raise ValueError(f"{name} has one number for each of {features} features, not {shape}")


def state(tensor: Tensor | None) -> tuple[int, int] | None:
    """Where its numbers lie (`.to(...)` gives a parameter others), and how often they were written
    to, which tensors of inference mode do not say.
    """
    if tensor is None:
        return None
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
