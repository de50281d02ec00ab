"""Networks while they are built, and where their features may be."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn

from ....grammar.tree import tree as t
from ...graph.index import GraphView
from ...ops.dims import names_of
from ...ops.opspec import OpSpec
from ...ops.vocabulary import Vocabulary
from ..choices.source import ChoiceSource, Unsuitable
from ..models.builder import GraphBuilder
from ..models.one_op import drawn_op

MOST = 6000
"""Numbers in one value at most."""

LARGE = 1e4
"""Magnitude of what declared ops give at most."""

Number = int | fx.Node


class NetworkBuilder(GraphBuilder):
    """A network in float64. wide: axes that are likely to carry features. step: what is built."""

    dtype = torch.float64

    def __init__(self, source: ChoiceSource, vocabulary: Vocabulary) -> None:
        super().__init__(source, vocabulary)
        self.choice, self.chance = source.choice, source.chance
        self.module.add_module("held", nn.Module())
        self.wide: dict[fx.Node, int | None] = {}
        self.step, self.floating = "", True
        self.view = GraphView(self.module, vocabulary)

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
            return self.hold(make(what, args, kwargs), found)

    def declared(self, trait: str, x: fx.Node) -> list[fx.Node]:
        """Some op that has a trait ("": any), called as its declaration says that it may be."""
        op = self.vocabulary[self.choice(_ops_of(self.vocabulary, trait))]
        node = drawn_op(self, op, x)
        self.need(not any(isinstance(value, torch.dtype) for value in node.kwargs.values()))
        made = self.parts(node) if isinstance(self.real[node], tuple) else [node]
        self.need(any(_is_plain(self.real[part], self.dtype) for part in made))
        self.need(not self._writes(node))
        return made

    def _writes(self, node: fx.Node) -> bool:
        """Whether a call changes what the model holds, as norms in train mode do."""
        before = {name: held.clone() for name, held in self.module.state_dict().items()}
        self.run(node.name, self._callee(node), *self.value(node.args), **node.kwargs)
        after = self.module.state_dict()  # torch counts no version of statistics up
        return any(not torch.equal(held, after[name]) for name, held in before.items())

    def _callee(self, node: fx.Node) -> Callable[..., Any]:
        if node.op == "call_module":
            return self.module.get_submodule(str(node.target))
        return node.target if callable(node.target) else getattr(Tensor, str(node.target))

    def again(self, path: str, *args: fx.Node) -> fx.Node:
        """One more call of a layer."""
        layer = self.module.get_submodule(path)
        found = self.run(path, layer, *map(self.value, args))
        with self.graph.inserting_before(self.end):
            return self.hold(self.graph.call_module(path, args), found)

    def run(self, name: str, what: Callable[..., Any], *args: Any, **named: Any) -> Any:
        found = super().run(name, what, *args, **named)
        if isinstance(found, Tensor) and not 0 < found.numel() <= MOST:
            raise Unsuitable(f"{tuple(found.shape)} is too large, or empty")
        return found

    def hold(self, node: fx.Node, value: Any) -> fx.Node:
        node.meta["step"] = self.step
        super().hold(node, value)
        self.view.add(node)
        self.wide[node] = self._carried(node)
        return node

    def back(self, mark: tuple[frozenset[fx.Node], int]) -> None:
        for node in self.graph.nodes:
            if node not in mark[0]:
                self.view.forget(node)
        super().back(mark)

    def _carried(self, node: fx.Node) -> int | None:
        """Where the features of the first argument are in the result, as far as one can guess: on
        an axis that the op makes; or it moves numbers that vary along that axis alone.
        """
        first = next(iter(node.all_input_nodes), None)
        call = self.view.call(node) if first is not None else None
        if first is None or call is None:
            return None if first is None else self.wide.get(first)
        made = _made(call.op)
        if made is not None:
            return made
        moves = not call.op.traits.isdisjoint(("movement", "reduction"))
        return self._moved(node, first) if moves else self.wide.get(first)

    def _moved(self, node: fx.Node, first: fx.Node) -> int | None:
        axis = self.features(first) if isinstance(self.real[first], Tensor) else None
        if axis is None:
            return self.wide.get(first)
        shape = self.shape(first)
        along = [-1 if i == axis else 1 for i in range(len(shape))]
        places = torch.arange(float(shape[axis])).reshape(along).expand(shape)
        args, named = fx.node.map_aggregate(  # type: ignore[misc]
            (node.args, node.kwargs), lambda v: places if v is first else self.value(v)
        )
        found = self._callee(node)(*args, **named)
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


def _is_plain(value: Tensor, dtype: torch.dtype) -> bool:
    """Whether it is something like an image, of finite numbers that hide nothing."""
    return value.dtype == dtype and 0 < value.ndim <= 5 and bool((value.abs() < LARGE).all())


@cache
def _ops_of(vocabulary: Vocabulary, trait: str) -> tuple[str, ...]:
    """The ops that compute floating numbers from some, the same ones each time."""
    ops = (vocabulary[name] for name in sorted(vocabulary.names()))
    return tuple(
        op.name
        for op in ops
        if (trait in op.traits or not trait)
        and "random" not in op.traits
        and op.inputs
        and op.inputs[0].kind in ("f", "t")
    )


@cache
def _made(op: OpSpec) -> int | None:
    """The axis of the result that is sized by a weight or another operand, and not by the first."""
    first, dims = op.inputs[0].shape, op.decl.results[0].dims
    if first is None or dims is None:
        return None
    others = [spec.shape.names for spec in (*op.params, *op.inputs[1:]) if spec.shape is not None]
    made = frozenset().union(*others) - first.names
    rest = next((i for i, dim in enumerate(dims) if isinstance(dim, t.DimRest)), len(dims))
    new = (i for i, dim in enumerate(dims) if isinstance(dim, t.Expr) and names_of(dim) & made)
    return next((i if i < rest else i - len(dims) for i in new), None)
