"""Networks while they are built, and where their features may be."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ...ops.vocabulary import Vocabulary
from ..choices.source import ChoiceSource, Unsuitable
from ..models.builder import GraphBuilder

MOST = 6000
"""Numbers in one value at most."""

Number = int | fx.Node

MAKERS: dict[Any, int] = {
    F.linear: -1, torch.matmul: -1, F.conv1d: 1, F.conv2d: 1, F.conv_transpose1d: 1,
    F.conv_transpose2d: 1,
}  # fmt: skip
"""The axis that carries the features that an op makes."""

MOVES = {
    Tensor.view, Tensor.reshape, Tensor.flatten, Tensor.unflatten, Tensor.permute, Tensor.transpose,
    Tensor.unsqueeze, Tensor.expand, Tensor.unbind, Tensor.select, Tensor.mean, Tensor.sum,
    Tensor.amax, torch.stack, operator.getitem,
}  # fmt: skip
"""Ops after which features may be on another axis."""


class NetworkBuilder(GraphBuilder):
    """A network in float64. wide: axes that are likely to carry features. step: what is built."""

    dtype = torch.float64

    def __init__(self, source: ChoiceSource, vocabulary: Vocabulary) -> None:
        super().__init__(source, vocabulary)
        self.choice, self.chance = source.choice, source.chance
        self.module.add_module("held", nn.Module())
        self.wide: dict[fx.Node, int | None] = {}
        self.step, self.floating = "", True

    # -- nodes -------------------------------------------------------------------------------------

    def call(self, what: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A new node: a module, a method (by name) or a function on these arguments."""
        if isinstance(what, nn.Module):
            path = self.name()
            self.module.add_module(path, self.filled(what))
            return self.again(path, *args)
        method = isinstance(what, str)
        run = getattr(torch.Tensor, what) if method else what
        given, named = fx.node.map_aggregate((args, kwargs), self.value)  # type: ignore[misc]
        found = self.run(str(what), run, *given, **named)
        with self.graph.inserting_before(self.end):
            make = self.graph.call_method if method else self.graph.call_function
            node = self.hold(make(what, args, kwargs), found)
        self.wide[node] = self._carried(run, node)
        return node

    def again(self, path: str, *args: fx.Node) -> fx.Node:
        """One more call of a layer."""
        layer = self.module.get_submodule(path)
        found = self.run(path, layer, *map(self.value, args))
        with self.graph.inserting_before(self.end):
            node = self.hold(self.graph.call_module(path, args), found)
        self.wide[node] = _made(layer, self.wide.get(args[0]))
        return node

    def run(self, name: str, what: Callable[..., Any], *args: Any, **named: Any) -> Any:
        found = super().run(name, what, *args, **named)
        if isinstance(found, Tensor) and not 0 < found.numel() <= MOST:
            raise Unsuitable(f"{tuple(found.shape)} is too large, or empty")
        return found

    def hold(self, node: fx.Node, value: Any) -> fx.Node:
        node.meta["step"] = self.step
        return super().hold(node, value)

    def _carried(self, run: Callable[..., Any], node: fx.Node) -> int | None:
        """Where the features of the first argument are in the result, as far as one can guess: the
        op moves numbers that vary along that axis alone.
        """
        if run in MAKERS:
            return MAKERS[run]
        first = next(iter(node.all_input_nodes), node)
        if run not in MOVES or not isinstance(self.real[first], Tensor):
            return self.wide.get(first)
        axis, value = self.features(first), self.real[first]
        if axis is None:
            return None
        along = [-1 if i == axis else 1 for i in range(value.ndim)]
        places = torch.arange(float(value.shape[axis])).reshape(along).expand(value.shape)
        args, named = fx.node.map_aggregate(  # type: ignore[misc]
            (node.args, node.kwargs), lambda v: places if v is first else self.value(v)
        )
        found = run(*args, **named)
        found = found if isinstance(found, Tensor) else found[0]
        varies = [int((found.diff(dim=i) != 0).sum()) for i in range(found.ndim)]
        return varies.index(max(varies)) if max(varies, default=0) else None

    def held(self, *shape: int, buffer: bool = False) -> fx.Node:
        """A parameter of the model itself, or of a module in it."""
        path = f"{self.choice(('', 'held.'))}{self.name()}"
        owner, value = self.module.get_submodule(path.rpartition(".")[0]), self.random(*shape)
        name = path.rpartition(".")[2]
        if buffer:
            owner.register_buffer(name, value)
        else:
            owner.register_parameter(name, nn.Parameter(value))
        return self.read(path)

    # -- choices -----------------------------------------------------------------------------------

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def filled(self, layer: nn.Module) -> nn.Module:
        """The layer in eval mode, in float64, with numbers of this model."""
        layer = layer.double().eval()
        with torch.no_grad():
            for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
                if tensor.is_floating_point():
                    drawn = self.random(*tensor.shape)
                    tensor.copy_(drawn.abs() + 0.5 if "var" in name else drawn * 0.7)
        return layer

    def shape(self, x: fx.Node, *ranks: int) -> tuple[int, ...]:
        """The shape of a value. Raises `Unsuitable` where its rank is none of these."""
        shape = tuple(self.real[x].shape)
        self.need(not ranks or len(shape) in ranks)
        return shape

    def need(self, condition: bool) -> None:
        if not condition:
            raise Unsuitable("does not fit here")

    def features(self, x: fx.Node) -> int | None:
        """The axis that is likely to carry features."""
        axis, rank = self.wide.get(x), len(self.shape(x))
        return axis % rank if axis is not None and -rank <= axis < rank else None

    def axis(self, x: fx.Node, least: int = 1, mixes: bool = False) -> int:
        """An axis behind the batch: one with features, or one without if the op `mixes`, mostly."""
        shape = self.shape(x)
        axes = [i for i, n in enumerate(shape) if n >= least and (i or len(shape) == 1)]
        liked = [i for i in axes if (i == self.features(x)) != mixes]
        self.need(bool(axes) and (bool(liked) or self.chance(20)))
        return self.choice(liked if liked and self.chance(80 if mixes else 65) else axes)

    def divisor(self, number: int) -> int:
        """Of several parts, if that is possible."""
        return self.choice([n for n in range(2, number + 1) if number % n == 0] or [1])

    def extent(self, x: fx.Node, axis: int) -> Number:
        """A size as a number, or as a node that asks for it."""
        kind = self.source.integer(0, 3)
        if kind < 2:
            return self.shape(x)[axis]
        if kind == 2:
            return self.call("size", x, axis)
        return self.call(operator.getitem, self.call(getattr, x, "shape"), axis)

    def over(self, number: Number, divisor: int) -> Number:
        if isinstance(number, int):
            return number // divisor
        return self.call(operator.floordiv, number, divisor)

    def parts(self, several: fx.Node, least: int = 1) -> list[fx.Node]:
        """Some results of an op with several."""
        number = len(self.real[several])
        self.need(0 < number <= 12)
        wanted = [i for i in range(number) if i < least or self.chance(60)]
        return [self.call(operator.getitem, several, i) for i in wanted]

    def sibling(self, x: fx.Node) -> fx.Node:
        """Another value of the same shape, from a layer of its own."""
        shape = self.shape(x, 2, 3, 4)
        if self.features(x) == 1 and len(shape) > 2:
            layer = (nn.Conv1d, nn.Conv2d)[len(shape) - 3]
            return self.call(layer(shape[1], shape[1], 1), x)
        return self.call(nn.Linear(shape[-1], shape[-1]), x)

    def partner(self, x: fx.Node, fits: Callable[[Tensor, Tensor], bool]) -> fx.Node:
        """Another value (or the same) that fits to this one."""
        found = [n for n in self.offers if fits(self.real[x], self.real[n])]
        self.need(bool(found))
        return self.choice(found[::-1])


def _made(layer: nn.Module, axis: int | None) -> int | None:
    """The axis that carries the features of what a layer gives."""
    if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)):
        return 1
    makes = isinstance(layer, (nn.Linear, nn.Embedding, nn.RNNBase))
    return -1 if makes else axis
