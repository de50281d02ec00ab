"""New calls: layers where there are weights, defaults from shapes, and never over an existing
path.
"""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import fx, nn

from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.graph.emit import Emitted, emit
from lissom.rewrite.graph.index import GraphView
from lissom.rewrite.ops.vocabulary import Vocabulary
from tests.traced import described

LIBRARY = Vocabulary.library()
X = torch.randn(2, 4, 6, 6)


def graph_of(*names: str) -> tuple[fx.GraphModule, list[fx.Node]]:
    graph = fx.Graph()
    nodes = [graph.placeholder(name) for name in names]
    graph.output(nodes[0])
    return fx.GraphModule(nn.Module(), graph), nodes


def inserted(new: Emitted, root: fx.GraphModule, path: str = "new.layer") -> fx.Node:
    output = next(iter(reversed(root.graph.nodes)))
    node = new.insert(root, output, path)
    output.args = (node,)
    root.graph.lint()
    root.recompile()
    return node


def test_a_convolution_becomes_a_layer_with_these_very_tensors() -> None:
    root, (x,) = graph_of("x")
    weight, bias = torch.randn(6, 2, 3, 3), torch.randn(6)
    x.meta["val"] = None
    new = emit(
        LIBRARY["conv2d"], (x,), {"weight": weight, "bias": bias}, {"groups": 2, "stride": (2, 2)}
    )
    expected = nn.functional.conv2d(X, weight, bias, 2, groups=2)
    assert torch.equal(new.run(X), expected)
    node = inserted(new, root)
    assert node.op == "call_module"
    assert root.get_submodule("new.layer").weight.data_ptr() == weight.data_ptr()
    assert repr(root.get_submodule("new.layer")) == (
        "Conv2d(4, 6, kernel_size=(3, 3), stride=(2, 2), groups=2)"
    )
    assert torch.equal(root(X), expected)


def test_groups_left_out_are_solved_from_shapes() -> None:
    weight = torch.randn(8, 1, 3, 3)
    new = emit(LIBRARY["conv2d"], (X,), {"weight": weight}, {"padding": (1, 1)})
    assert new.attrs["groups"] == 4
    assert torch.equal(new.run(X), nn.functional.conv2d(X, weight, None, 1, 1, 1, 4))


def test_without_weights_it_is_a_function_call() -> None:
    root, (x,) = graph_of("x")
    node = inserted(emit(LIBRARY["hardtanh"], (x,), {}, {"min_val": 0.0, "max_val": 6.0}), root)
    assert (node.op, node.target) == ("call_function", nn.functional.hardtanh)
    assert node.kwargs == {"min_val": 0.0, "max_val": 6.0}
    assert torch.equal(root(X), nn.functional.relu6(X))


def test_defaults_are_not_written() -> None:
    root, (x, y) = graph_of("x", "y")
    node = inserted(emit(LIBRARY["add"], (x, y), {}, {}), root)
    assert (node.args, node.kwargs) == ((x, y), {})


def test_a_true_is_not_mistaken_for_the_default_one() -> None:
    """`1 == True` in Python; torch tells them apart."""
    root, (x, y) = graph_of("x", "y")
    node = inserted(emit(LIBRARY["add"], (x, y), {}, {"alpha": True}), root)
    assert node.kwargs == {"alpha": True}


def test_a_method_stays_a_method() -> None:
    root, (x,) = graph_of("x")
    node = inserted(emit(LIBRARY["repeat"], (x,), {}, {"repeats": (1, 2, 1, 1)}), root)
    assert (node.op, node.target, node.args) == ("call_method", "repeat", (x, 1, 2, 1, 1))
    assert root(X).shape == (2, 8, 6, 6)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((2, 4), nn.BatchNorm1d), ((2, 4, 5), nn.BatchNorm1d), ((2, 4, 5, 5), nn.BatchNorm2d),
     ((2, 4, 2, 2, 2), nn.BatchNorm3d)],
)  # fmt: skip
def test_the_rank_decides_which_batch_norm(shape: tuple[int, ...], kind: type) -> None:
    x = torch.randn(shape)
    params = {"running_mean": torch.randn(4), "running_var": torch.rand(4) + 0.5}
    new = emit(LIBRARY["batch_norm"], (x,), params, {})
    assert type(new.layer) is kind
    assert new.layer.training is False
    assert torch.equal(new.run(x), nn.functional.batch_norm(x, **params))
    assert new.attrs["track_running_stats"] is True


def test_without_a_known_rank_a_batch_norm_is_a_function_with_held_buffers() -> None:
    root, (x,) = graph_of("x")
    params = {"running_mean": torch.randn(4), "running_var": torch.rand(4) + 0.5}
    new = emit(LIBRARY["batch_norm"], (x,), params, {})
    node = inserted(new, root, "bn")
    assert node.op == "call_function"
    assert torch.equal(root(X), nn.functional.batch_norm(X, **params))
    call = GraphView(root).call(node)
    assert call is not None
    assert call.params["running_mean"] == "bn.running_mean"


def test_batch_norm_in_all_its_spellings() -> None:
    layer = nn.BatchNorm2d(4).eval()
    layer.running_mean, layer.running_var = torch.randn(4), torch.rand(4) + 0.5
    for training, tracked in ((False, True), (True, True), (False, False)):
        model = nn.Sequential(nn.BatchNorm2d(4, track_running_stats=tracked)).train(training)
        root = fx.symbolic_trace(model)
        described(root, X)
        call = GraphView(root).call(list(root.graph.nodes)[1])
        assert call is not None
        assert call.attrs["training"] is (training or not tracked)
        assert call.attrs["track_running_stats"] is tracked
        torch.testing.assert_close(call.op.run({"x": X}, tensors(call), call.attrs), model(X))


def tensors(call: Any) -> dict[str, torch.Tensor | None]:
    return {name: call.tensor(name) for name in call.params}


def test_a_layer_takes_after_the_one_it_stands_for() -> None:
    like = nn.Linear(4, 3).train()
    like.weight.requires_grad_(False)
    new = emit(
        LIBRARY["linear"], (X,), {"weight": torch.ones(2, 6), "bias": torch.ones(2)}, {}, like
    )
    assert new.layer is not None
    assert (new.layer.training, new.layer.weight.requires_grad) == (True, False)
    assert new.layer.bias.requires_grad is True


def test_batches_are_counted_on() -> None:
    like = nn.BatchNorm2d(4)
    like.num_batches_tracked += 7
    params = {name: torch.ones(4) for name in ("running_mean", "running_var", "weight", "bias")}
    new = emit(LIBRARY["batch_norm"], (X,), params, {}, like)
    assert new.layer is not None
    buffers = dict(new.layer.named_buffers())
    assert buffers["num_batches_tracked"] == 7
    assert set(buffers) == {"running_mean", "running_var", "num_batches_tracked"}


def test_an_existing_path_is_refused() -> None:
    root, (x,) = graph_of("x")
    root.add_module("taken", nn.Linear(6, 6))
    new = emit(LIBRARY["linear"], (x,), {"weight": torch.ones(2, 6)}, {})
    with pytest.raises(LissomError, match="`taken` exists already"):
        inserted(new, root, "taken")


@pytest.mark.parametrize(
    ("op", "params", "attrs", "message"),
    [
        (
            "linear",
            {"weight": torch.ones(2, 6)},
            {"strides": 1},
            "no parameter or attribute `strides`",
        ),
        ("linear", {"bias": torch.ones(2)}, {}, "needs a `weight`"),
        ("linear", {"weight": torch.ones(2, 5)}, {}, "size 5"),
        ("linear", {"weight": torch.ones(2, 6), "bias": torch.ones(3)}, {}, "size 3"),
    ],
)
def test_what_does_not_fit_is_refused(
    op: str, params: dict[str, torch.Tensor], attrs: dict[str, Any], message: str
) -> None:
    with pytest.raises(LissomError, match=message):
        emit(LIBRARY[op], (X,), params, attrs)


def test_attention_is_written_as_its_layer() -> None:
    like = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    model = nn.Module()
    model.like = like
    x = torch.randn(3, 5, 8)
    root = fx.GraphModule(model, attention_graph())
    described(root, x)
    node = next(n for n in root.graph.nodes if n.op == "call_module")
    call = GraphView(root).call(node)
    assert call is not None
    new = emit(call.op, call.inputs, tensors(call), call.attrs)
    expected = like(x, x, x, need_weights=False)[0]
    torch.testing.assert_close(new.run(x, x, x, None, None)[0], expected)
    written = new.insert(root, node, "again")
    node.replace_all_uses_with(written)
    root.recompile()
    torch.testing.assert_close(root(x), expected)
    assert GraphView(root).call(written).attrs == call.attrs  # type: ignore[union-attr]


def attention_graph() -> fx.Graph:
    graph = fx.Graph()
    x = graph.placeholder("x")
    result = graph.call_module("like", (x, x, x), {"need_weights": False})
    graph.output(graph.call_function(operator.getitem, (result, 0)))
    return graph
