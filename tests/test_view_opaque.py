"""What is not canonical, and the reason that is given."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import parametrizations

from lissom.rewrite.graph.index import GraphView
from tests.traced import Held, described

X = torch.randn(2, 4, 6, 6)


class Doubled(nn.Conv2d):
    """Overrides what the layer computes, yet fx keeps it whole because the test says so."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Named(nn.Conv2d):
    """Adds nothing that forward uses."""

    def extra_repr(self) -> str:
        return "named"


class Leaves(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        return not isinstance(module, (nn.Sequential, Held))


def last(model: Any, *inputs: torch.Tensor, recorded: bool = True) -> tuple[GraphView, fx.Node]:
    tracer = Leaves()
    graph = tracer.trace(model)
    root = fx.GraphModule(tracer.root, graph)
    if recorded:
        described(root, *inputs)
    return GraphView(root), next(iter(reversed(root.graph.nodes))).args[0]


def hooked() -> nn.Module:
    layer = nn.Conv2d(4, 4, 3)
    layer.register_forward_hook(lambda module, args, result: result + 1)
    return layer


def patched() -> nn.Module:
    layer = nn.Conv2d(4, 4, 3)
    layer.forward = lambda x: x  # type: ignore[method-assign]
    return layer


WEIGHT = torch.randn(4, 4, 3, 3)
LAYERS: list[tuple[nn.Module, str]] = [
    (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "padding_mode is 'reflect'"),
    (nn.Conv2d(4, 4, (2, 3), padding="same"), r"padding 'same' adds \[1, 2\] in all"),
    (hooked(), "has hooks"),
    (patched(), "a forward of its own"),
    (parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), "parametrizations"),
    (Doubled(4, 4, 3), "the class Doubled overrides forward"),
    (nn.LayerNorm((6, 6)), r"normalized_shape is \(6, 6\)"),
    (nn.MaxPool2d(2, return_indices=True), "return_indices is True"),
    (nn.FractionalMaxPool2d(2, output_size=3), "no op is declared for the module class Frac"),
]
FUNCTIONS: list[tuple[Callable[..., Any], str]] = [
    (lambda x: torch.fft.fft(x), "no op is declared for .*fft"),
    (lambda x: x.size(0) + 1, "numbers, not tensors"),
    (
        lambda x: x[torch.tensor([0]), torch.tensor([0])],
        "index is a tensor|not known to be a number",
    ),
    (lambda x: F.dropout(x, x.size(0) * 0.1), "p is mul, the op takes a number"),
    (lambda x: x.chunk(2)[1], "takes one result of `chunk`"),
    (lambda x: x.sum(dtype=torch.float32, out=x), "its argument `out` is not part"),
    (lambda x: x.to("cpu"), "dtype is 'cpu'"),
    (lambda x: x.view(torch.int32), "shape is .torch.int32"),
    (lambda x: torch.clamp(x, max=x), "its max is computed in the graph"),
]


@pytest.mark.parametrize(("layer", "reason"), LAYERS, ids=lambda value: type(value).__name__)
def test_layers_that_are_not_the_op(layer: nn.Module, reason: str) -> None:
    view, node = last(nn.Sequential(layer), X, recorded=False)
    assert view.call(node) is None
    assert_reason(view, node, reason)


@pytest.mark.parametrize(("function", "reason"), FUNCTIONS)
def test_calls_that_are_not_the_op(function: Callable[..., Any], reason: str) -> None:
    view, node = last(function, X.clone(), recorded="out=" not in reason and "out`" not in reason)
    node = node if isinstance(node, fx.Node) else node[0]
    assert view.call(node) is None
    assert_reason(view, node, reason)


def assert_reason(view: GraphView, node: fx.Node, reason: str) -> None:
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(view.why_opaque(node))


def test_a_computed_weight_is_named() -> None:
    view, node = last(Held(lambda x, w: F.conv2d(x, w.abs()), WEIGHT), X)
    assert_reason(view, node, "its `weight` is computed by `abs_1`")


def test_a_transposed_convolution_with_output_size() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.ConvTranspose2d(4, 4, 3, stride=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x, output_size=(13, 13))

    root = fx.symbolic_trace(Sized())
    assert GraphView(root).calls_of("conv_transpose2d") == ()
    assert_reason(GraphView(root), list(root.graph.nodes)[1], "`output_size` is not part of the op")


def test_a_wrong_rank_is_named() -> None:
    view, node = last(nn.Sequential(nn.Conv2d(4, 4, 3)), X[0])
    assert_reason(view, node, "`x` has 3 axes, the op declares 4")


def test_a_subclass_that_changes_nothing_is_the_op() -> None:
    view, node = last(nn.Sequential(Named(4, 4, 3)), X)
    assert view.call(node) is not None
    assert view.why_opaque(node) == ""


def test_a_function_with_its_own_forward_is_seen_through() -> None:
    """fx traces into a subclass with its own forward; its functional call has the layer's
    weights.
    """

    class Padded(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias)

    model = nn.Sequential(Padded(4, 4, 3))
    tracer = fx.Tracer()
    tracer.is_leaf_module = lambda module, path: False  # type: ignore[method-assign]
    root = fx.GraphModule(model, tracer.trace(model))
    view = GraphView(root)
    call = view.call(view.calls_of("conv2d")[0])
    assert call is not None
    assert call.params == {"weight": "0.weight", "bias": "0.bias"}


# -- in place --------------------------------------------------------------------------------------


def kept_and_changed(x: torch.Tensor) -> torch.Tensor:
    h = x * 2
    return h.sum() + h.relu_()


def view_of_kept(x: torch.Tensor) -> torch.Tensor:
    h = x * 2
    return h.sum() + h.view(-1).relu_().sum()


def dtype_kept(x: torch.Tensor) -> torch.Tensor:
    return (x * 2).add_(x.double())


IN_PLACE: list[tuple[Callable[..., Any], str, str]] = [
    (lambda x: x.relu_(), "relu_", "overwrites `x`, which the model does not own"),
    (lambda x: x.view(-1).relu_(), "relu_", "overwrites `x`"),
    (lambda x: F.dropout(x, training=False).relu_(), "relu_", "overwrites `x`"),
    (kept_and_changed, "relu_", "overwrites `mul`, which others read too"),
    (view_of_kept, "relu_", "overwrites `mul`, which others read too"),
    (dtype_kept, "add_", "keeps the dtype"),
    (lambda x: (x * 2).eq_(x), "eq_", "keeps the dtype"),
    (lambda x: torch.fft.fft(x).relu_(), "relu_", "overwrites `x`"),
    (lambda x: (x * 2).relu_(), "relu_", ""),
    (lambda x: (x * 2).view(-1).relu_(), "relu_", ""),
    (lambda x: (x * 2).relu_().add_(x).mul_(2), "mul_", ""),
    (lambda x: torch.cat([x, x]).relu_(), "relu_", ""),
    (lambda x: (x * 2).masked_fill_(x > 0, 1.0), "masked_fill_", ""),
    (lambda x: operator.iadd(x * 2, x).relu_(), "relu_", ""),
]


@pytest.mark.parametrize(("function", "method", "reason"), IN_PLACE)
def test_in_place_is_canonical_only_where_nobody_can_tell(
    function: Callable[..., Any], method: str, reason: str
) -> None:
    root = fx.symbolic_trace(function)
    shapes = fx.symbolic_trace(function)
    if "fft" not in shapes.code:
        described(root, X.clone())
    view = GraphView(root)
    node = next(n for n in root.graph.nodes if n.target == method)
    assert (view.call(node) is None) == bool(reason)
    assert_reason(view, node, reason) if reason else None


def test_in_place_is_judged_anew_when_readers_change() -> None:
    root = fx.symbolic_trace(lambda x: (x * 2).relu_())
    view = GraphView(root)
    times, relu = list(root.graph.nodes)[1:3]
    assert view.call(relu) is not None
    with root.graph.inserting_after(relu):
        view.add(root.graph.call_function(torch.sum, (times,)))
    assert view.call(relu) is None
    assert view.calls_of("relu") == ()
