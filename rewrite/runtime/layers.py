"""Layers with integer weights.

A layer holds plain tensors: `weight` (int8), `scale` (float32, one for each output feature: that of
the values times that of the weights) and `bias` (float32, or None), so that it is copied, saved,
loaded and exported like any other. It runs a kernel of this machine where that gives the bits of
`int8.py` (see `kernels.py`), and `int8.py` itself otherwise; `ran` says which, and why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from . import int8, kernels
from .tensors import OfCodes, fixed, require, require_codes, state

Run = Callable[[Tensor, Tensor | None], Tensor]

SHAPES = 8
"""Shapes of inputs for which a layer keeps a kernel and packed weights."""


@dataclass(slots=True)
class _Chosen:
    """What runs on inputs of one shape, and the tensors that it was made for."""

    run: Run
    name: str
    tensors: tuple[Tensor | None, ...]
    states: tuple[Any, ...]


class Int8Layer(OfCodes):
    """What all integer layers have in common.

    zero: the zero point of the codes that come in. activation: a key of `int8.ACTIVATIONS`.
    output_scale, output_zero: of the codes that go out; without them numbers go out, in the type
    of `scale`. other_scale, other_zero: of the codes that are added, where a layer is called with
    `other`, codes in the shape of the result.
    """

    meaning: ClassVar[Callable[..., Tensor]]
    tells: ClassVar[slice] = slice(1, None)
    """The sizes that decide which kernel runs, and for which weights are packed."""
    weight: nn.Parameter
    scale: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        shape: tuple[int, ...],
        bias: bool,
        zero: int = 0,
        activation: str = "none",
        output_scale: float | None = None,
        output_zero: int = 0,
        other_scale: float = 1.0,
        other_zero: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        none = torch.zeros(shape[:1], device=device)
        self.weight = fixed(torch.zeros(shape, dtype=torch.int8, device=device))
        self.scale = fixed(none + 1)
        self.register_parameter("bias", fixed(none) if bias else None)
        self.zero, self.activation = zero, activation
        self.output_scale = None if output_scale is None else int8.single(output_scale)
        self.output_zero = output_zero
        self.other_scale, self.other_zero = int8.single(other_scale), other_zero
        self._chosen: dict[Any, _Chosen] = {}

    def forward(self, codes: Tensor, other: Tensor | None = None) -> Tensor:
        if torch.compiler.is_compiling():
            return self._plain(codes, other)
        shape, own = codes.shape, self.tells
        key = (
            codes.device,
            codes.dtype,
            len(shape),
            shape[own],
            not codes.numel(),
            None if other is None else (other.dtype, other.shape[own]),
        )
        chosen = self._chosen.get(key)
        if chosen is None or self._changed(chosen):
            chosen = self._chosen_anew(key, codes, other)
        return chosen.run(codes, other)

    @property
    def ran(self) -> str | None:
        """What runs on inputs of the shape that came last anew: the kernel, or "plain torch: " and
        why; None before the first run.
        """
        return next(reversed(self._chosen.values())).name if self._chosen else None

    def exact(self, codes: Tensor, other: Tensor | None = None) -> Tensor:
        """Its numbers before they are stored as codes, in float64: the real arithmetic that the
        layer stands for.
        """
        bias = None if self.bias is None else self.bias.double()
        tensors = (self.weight, self.scale.double(), bias, other, self.zero)
        numbers = {**self._stored(), "output_scale": None}
        return type(self).meaning(codes, *tensors, *self.geometry(), **numbers)

    def geometry(self) -> tuple[Any, ...]:
        """What `meaning` takes besides, by position: of convolutions stride, padding, dilation and
        groups.
        """
        return ()

    # -- choosing ----------------------------------------------------------------------------------

    def _chosen_anew(self, key: Any, codes: Tensor, other: Tensor | None) -> _Chosen:
        """Of many shapes the last ones are kept: each holds the weights once more."""
        self._chosen.pop(key, None)
        for oldest in tuple(self._chosen)[: 1 - SHAPES]:
            self._chosen.pop(oldest, None)  # threads may share a layer
        chosen = self._chosen[key] = self._choose(codes, other)
        return chosen

    def _choose(self, codes: Tensor, other: Tensor | None) -> _Chosen:
        require(self.weight, self.scale, self.bias)
        require_codes(self.weight.device, self._coded(codes, other))
        tensors = (self.weight, self.scale, self.bias)
        states = tuple(map(state, tensors))
        why = self._why_plain(codes)
        if why is None:
            sample = self._sample(codes, other)
            found = self._tried(codes.shape, sample, self._plain(*sample))
            if found is not None:
                return _Chosen(*found, tensors, states)
            why = f"oneDNN is wrong for {list(codes.shape[1:])} on this CPU"
        return _Chosen(self._plain, f"plain torch: {why}", tensors, states)

    def _tried(
        self, shape: torch.Size, sample: tuple[Tensor, Tensor | None], wanted: Tensor
    ) -> tuple[Run, str] | None:
        """The first kernel that gives these bits. Kernels raise for what they do not have."""
        try:
            return next(pair for pair in self._kernels(shape) if _gives(pair[0], sample, wanted))
        except (RuntimeError, StopIteration):
            return None

    def _sample(self, codes: Tensor, other: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What a kernel is tried on."""
        return self._first(codes), None if other is None else self._first(other)

    def _coded(self, codes: Tensor, other: Tensor | None) -> Sequence[Tensor]:
        """What of it has to be codes."""
        return (codes,) if other is None else (codes, other)

    def _first(self, codes: Tensor) -> Tensor:
        """The first sample; linear layers take one that has no axis for samples."""
        return codes[:1] if codes.dim() >= self.weight.dim() else codes

    def _why_plain(self, codes: Tensor) -> str | None:
        """Why no kernel may be tried on these codes."""
        return kernels.why_none(self.weight, self.scale, codes)

    def _changed(self, chosen: _Chosen) -> bool:
        """Whether a tensor was exchanged or written to since. Asked at each call: no loop."""
        own = self._parameters
        weight, scale, bias = own["weight"], own["scale"], own["bias"]
        before, scale_before, bias_before = chosen.tensors
        if weight is not before or scale is not scale_before or bias is not bias_before:
            return True
        return chosen.states != (state(weight), state(scale), state(bias))

    def _kernels(self, shape: torch.Size) -> Iterator[tuple[Run, str]]:
        """All in one kernel; the sums in a kernel and the rest in plain torch."""
        fused, sums = self._packed(shape)
        yield fused, "oneDNN"
        finish = partial(int8.finished, **self._stored())
        yield (lambda codes, other: finish(sums(codes), other)), "oneDNN, the rest plain torch"

    def _packed(self, shape: torch.Size) -> tuple[Run, kernels.Run]:
        """For codes of a shape: the whole layer, and its numbers before anything is added; either
        may raise.
        """
        raise NotImplementedError

    def _plain(self, codes: Tensor, other: Tensor | None) -> Tensor:
        tensors = (self.weight, self.scale, self.bias, other, self.zero)
        return type(self).meaning(codes, *tensors, *self.geometry(), **self._stored())

    def _stored(self) -> dict[str, Any]:
        names = ("activation", "output_scale", "output_zero", "other_scale", "other_zero")
        return {name: getattr(self, name) for name in names}

    def _tensors(self) -> tuple[Tensor, Tensor | None]:
        """Scale and bias as kernels take them: their strides would be ignored."""
        return self.scale.contiguous(), None if self.bias is None else self.bias.contiguous()

    @property
    def _output(self) -> tuple[float, int] | None:
        return None if self.output_scale is None else (self.output_scale, self.output_zero)

    def __getstate__(self) -> dict[str, Any]:
        """What a kernel packed has no storage: it is made again where it is needed."""
        return {**self.__dict__, "_chosen": {}}

    def extra_repr(self) -> str:
        shape = "x".join(map(str, self.weight.shape))
        output = f", output_scale={self.output_scale:.3g}" if self.output_scale else ""
        return f"{shape}, zero={self.zero}, activation={self.activation!r}{output}"


class Int8Linear(Int8Layer):
    """Codes [..., I] (uint8) with weights [O, I] to numbers or codes [..., O]. `settings` are those
    of every integer layer.
    """

    meaning = staticmethod(int8.int8_linear)
    tells = slice(-1, None)  # texts have ever other lengths, and rows are all alike

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, **settings: Any
    ) -> None:
        super().__init__((out_features, in_features), bias, **settings)
        self.in_features, self.out_features = in_features, out_features

    def _packed(self, shape: torch.Size) -> tuple[Run, kernels.Run]:
        rows = (shape.numel() // self.in_features, self.in_features)
        given = (kernels.packed_linear(self.weight, rows), *self._tensors(), self.zero)
        alone = kernels.linear(*given, self.activation, self._output)

        def fused(codes: Tensor, other: Tensor | None) -> Tensor:
            if other is not None:
                raise NotImplementedError
            return alone(codes)

        return fused, kernels.linear(*given)


class Int8Conv(Int8Layer):
    """Convolution of codes [N, C, ...] (uint8) with weights [O, C / groups, ...] to numbers or
    codes [N, O, ...]; the subclasses say of how many axes. `settings` are those of every layer.
    """

    axes: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int8.Sizes,
        stride: int8.Sizes = 1,
        padding: int8.Sizes = 0,
        dilation: int8.Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        **settings: Any,
    ) -> None:
        kernel = self._each(kernel_size)
        shape = (out_channels, in_channels // groups, *kernel)
        super().__init__(shape, bias, **settings)
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel
        self.stride, self.padding = self._each(stride), self._each(padding)
        self.dilation, self.groups = self._each(dilation), groups

    def _each(self, size: int8.Sizes) -> tuple[int, ...]:
        return (size,) * self.axes if isinstance(size, int) else tuple(size)

    def geometry(self) -> tuple[Any, ...]:
        return self.stride, self.padding, self.dilation, self.groups

    def _why_plain(self, codes: Tensor) -> str | None:
        if self.zero and kernels.reads_padding_alone(self.weight, self._lists()):
            return "a window may lie in the padding alone, where oneDNN is wrong"
        return super()._why_plain(codes)

    def _lists(self) -> kernels.Geometry:
        return list(self.stride), list(self.padding), list(self.dilation), self.groups

    def _packed(self, shape: torch.Size) -> tuple[Run, kernels.Run]:
        geometry = self._lists()
        packed = kernels.packed_convolution(self.weight, self.scale, self.zero, geometry, shape)
        given = (packed, *self._tensors(), self.zero, geometry)
        stored = (self.activation, self._output)
        alone = kernels.convolution(*given, *stored)
        added = kernels.convolution_added(*given, *stored, self.other_scale, self.other_zero)

        def fused(codes: Tensor, other: Tensor | None) -> Tensor:
            return alone(codes) if other is None else added(codes, other)

        return fused, kernels.convolution(*given)


class Int8Conv1d(Int8Conv):
    """Codes [N, C, L] with weights [O, C / groups, K]."""

    axes = 1
    meaning = staticmethod(int8.int8_conv1d)


class Int8Conv2d(Int8Conv):
    """Codes [N, C, H, W] with weights [O, C / groups, K, L]."""

    axes = 2
    meaning = staticmethod(int8.int8_conv2d)


class Int8Conv3d(Int8Conv):
    """Codes [N, C, D, H, W] with weights [O, C / groups, J, K, L]."""

    axes = 3
    meaning = staticmethod(int8.int8_conv3d)


def _gives(run: Run, sample: tuple[Tensor, Tensor | None], wanted: Tensor) -> bool:
    """Whether a kernel gives these bits."""
    try:
        found = run(*sample)
    except RuntimeError:
        return False
    return found.dtype == wanted.dtype and torch.equal(found, wanted)
