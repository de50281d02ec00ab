"""Properties and recurrent layers: what is read as an op, and what is not, with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx, nn

from lissom.rewrite.capture.capture import capture
from lissom.rewrite.graph.index import GraphView
from lissom.rewrite.ops.call import OpCall
from tests.support import Fn

MATRIX, CUBE = torch.randn(3, 4), torch.randn(2, 3, 4)


def read(model: nn.Module, *inputs: torch.Tensor) -> tuple[OpCall | None, str]:
    """The first computation of a captured model, and why it is opaque."""
    module = capture(model, inputs).module
    view = GraphView(module)
    node = next(n for n in module.graph.nodes if n.op not in ("placeholder", "get_attr"))
    return view.call(node), view.why_opaque(node)


@pytest.mark.parametrize(
    ("function", "x", "dims"),
    [
        (lambda m, x: x.T, MATRIX, (0, 1)),
        (lambda m, x: x.mT, MATRIX, (-2, -1)),
        (lambda m, x: x.mT, CUBE, (-2, -1)),
        (lambda m, x: x.t(), MATRIX, (0, 1)),
        (lambda m, x: x.swapaxes(0, 2), CUBE, (0, 2)),
        (lambda m, x: x.swapdims(0, 2), CUBE, (0, 2)),
    ],
)
def test_spellings_of_a_transpose(function: Any, x: torch.Tensor, dims: tuple[int, int]) -> None:
    call, _ = read(Fn(lambda m, x: function(m, x) + 0), x)
    assert call is not None
    assert call.op.name == "transpose"
    assert (call.attrs["dim0"], call.attrs["dim1"]) == dims
    assert call.op.run({"x": x}, {}, call.attrs).equal(function(None, x))


def test_a_property_is_found_by_its_op() -> None:
    module = capture(Fn(lambda m, x: x.T @ x), (MATRIX,)).module
    assert len(GraphView(module).calls_of("transpose")) == 1


def test_other_properties_are_opaque() -> None:
    _, why = read(Fn(lambda m, x: x.H + 0), MATRIX)
    assert why == "no op is declared for the property H"


@pytest.mark.filterwarnings("ignore:The use of `x.T`")
def test_turning_all_axes_around_is_no_transpose() -> None:
    root = fx.symbolic_trace(lambda x: x.T + 1)
    node = next(n for n in root.graph.nodes if n.target is getattr)
    assert "rank is not recorded" in GraphView(root).why_opaque(node)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.LSTM(4, 6, num_layers=2), "num_layers is 2, the op has 1"),
        (nn.GRU(4, 6, bidirectional=True), "bidirectional is True, the op has False"),
        (nn.LSTM(4, 6, proj_size=3), "proj_size is 3, the op has 0"),
        (nn.RNN(4, 6, bias=False), "the module has no `bias_ih_l0`"),
    ],
)
def test_what_a_declaration_of_single_layers_leaves_out(layer: nn.Module, reason: str) -> None:
    call, why = read(Fn(lambda m, x: m.layer(x)[0], layer=layer), torch.randn(5, 2, 4))
    assert call is None
    assert reason in why


def test_a_state_that_is_passed_is_not_lost() -> None:
    model = Fn(lambda m, x: m.layer(x, x[:1, :, :6])[0], layer=nn.GRU(8, 6))
    module = capture(model, (torch.randn(5, 2, 8),)).module
    node = next(n for n in module.graph.nodes if n.op == "call_module")
    assert "passes more than input" in GraphView(module).why_opaque(node)


def test_results_of_a_captured_layer() -> None:
    """The state of `lstm` is a pair: its parts are results of a result."""
    model = Fn(lambda m, x: m.layer(x)[0] + m.layer(x)[1][0], layer=nn.LSTM(4, 6))
    module = capture(model, (torch.randn(5, 2, 4),)).module
    view = GraphView(module)
    (first, second) = view.calls_of("lstm")
    call = view.call(first)
    assert call is not None
    assert call.op.result_specs(call) == first.meta["val"]
    results = [view.projection(node) for node in module.graph.nodes]
    assert (first, 0) in results
    assert (second, 1) in results
