"""Weights computed in forward become stored weights, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from lissom.rewrite.capture.capture import capture
from lissom.rewrite.capture.constants import fold_constants


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Standardised(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias.contiguous())


def graph_of(module: nn.Module, *inputs: Any) -> fx.GraphModule:
    return capture(module.eval(), inputs).module


def functions(module: fx.GraphModule) -> list[str]:
    return [n.name for n in module.graph.nodes if n.op in ("call_function", "call_method")]


def test_standardised_weights() -> None:
    model = nn.Sequential(Standardised(3, 4, 3), nn.ReLU(inplace=True), Standardised(4, 4, 1))
    module = graph_of(model, torch.rand(2, 3, 8, 8))
    assert functions(module) == ["conv2d", "conv2d_1"]
    state = dict(module.named_parameters())
    assert list(state) == ["0.bias", "0.folded_weight", "2.bias", "2.folded_weight"]
    assert all(value.requires_grad for value in state.values())
    x = torch.rand(3, 3, 9, 9)
    with torch.no_grad():
        assert torch.equal(module(x), model(x))


class Bias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.rand(9, 2))
        self.register_buffer("index", torch.randint(0, 9, (16,)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = self.table[self.index].view(4, 4, 2).permute(2, 0, 1).contiguous()
        return x + bias.unsqueeze(0)


def test_a_gathered_table_becomes_a_buffer() -> None:
    module = graph_of(Bias(), torch.rand(2, 2, 4, 4))
    assert functions(module) == ["add"]
    assert [name for name, _ in module.named_buffers()] == ["folded_constant"]


def test_views_of_a_parameter_keep_their_tie() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(10, 4)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.embed(ids) @ self.embed.weight.t()

    module = graph_of(Head(), torch.randint(0, 10, (2, 3)))
    assert functions(module) == ["t", "matmul"]
    assert list(dict(module.named_parameters())) == ["embed.weight"]


class Makes(nn.Module):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4))
        self.make = make

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.make(self.weight)


def test_small_tables_of_numbers_are_stored() -> None:
    assert functions(graph_of(Makes(lambda w: torch.arange(4) * 2), torch.rand(2, 4))) == ["add"]


def test_large_expansions_stay_computed() -> None:
    module = graph_of(Makes(lambda w: (w * 2).repeat(1 << 18, 1).sum(0)), torch.rand(2, 4))
    assert functions(module) == ["add"]
    module = graph_of(Makes(lambda w: (w * 2).repeat(1 << 18, 1)), torch.rand(1, 4))
    assert functions(module) == ["mul", "repeat", "add"]


def test_a_table_that_constants_are_written_to_is_stored() -> None:
    def make(weight: torch.Tensor) -> torch.Tensor:
        bias = weight.clone()
        bias[1:3].zero_()
        bias[3:] += weight[:1] * 2
        return bias

    model = Makes(make)
    module = graph_of(model, torch.rand(2, 4))
    assert functions(module) == ["add"]
    x = torch.rand(2, 4)
    with torch.no_grad():
        assert torch.equal(module(x), model(x))
        assert not torch.equal(module(x), x + model.weight)


def test_a_weight_that_parameters_are_written_to_is_a_parameter() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Parameter(torch.rand(4, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight = torch.zeros(4, 4)
            weight[:, 1:3] = self.inner
            return F.linear(x, weight)

    module = graph_of(Padded(), torch.rand(2, 4))
    assert functions(module) == ["linear"]
    assert list(dict(module.named_parameters())) == ["folded_weight"]


def test_what_is_too_large_to_store_is_still_written_to() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            wide = (self.weight * 2).repeat(1 << 18, 1)
            wide[:, :2].zero_()
            return x * self.weight.exp() + wide

    model = Wide()
    module = graph_of(model, torch.rand(1, 4))
    assert functions(module) == ["mul", "repeat", "getitem", "zero_", "mul_1", "add"]
    x = torch.rand(1, 4)
    with torch.no_grad():
        assert torch.equal(module(x), model(x))


def an_input_is_written(weight: torch.Tensor, x: torch.Tensor) -> Any:
    weight[:2].copy_(x[0, :2])
    return x + weight


def it_is_read_before(weight: torch.Tensor, x: torch.Tensor) -> Any:
    early = x * weight
    weight[:2].zero_()
    return early + weight


def it_is_read_between(weight: torch.Tensor, x: torch.Tensor) -> Any:
    view = weight[:3]
    weight[:2].zero_()
    early = view * x[:, :3]
    view.add_(1)
    return early, x * weight


def the_caller_gets_it(weight: torch.Tensor, x: torch.Tensor) -> Any:
    weight[:2].zero_()
    return x * weight[1:3].sum(), weight


WRITES = (an_input_is_written, it_is_read_before, it_is_read_between, the_caller_gets_it)


@pytest.mark.parametrize("make", WRITES)
def test_what_is_written_to_otherwise_is_not_stored(make: Any) -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(4))

        def forward(self, x: torch.Tensor) -> Any:
            return make(self.weight * 2, x)

    model = Writes()
    module = graph_of(model, torch.rand(2, 4))
    assert {"copy_", "zero_"} & set(functions(module))
    x = torch.rand(2, 4)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(module(x), model(x), rtol=0, atol=0)


def test_what_the_caller_gets_is_not_the_stored_value() -> None:
    class Table(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return x + 1, torch.arange(4).view(2, 2)

    module = graph_of(Table(), torch.rand(2, 2))
    module(torch.rand(2, 2))[1].zero_()
    assert module(torch.rand(2, 2))[1].sum() == 6


class Hand(nn.Module):
    """Built by hand, so that a random node can stand among constants."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4))


def hand_made(make: Any) -> fx.GraphModule:
    root, graph = Hand(), fx.Graph()
    x = graph.placeholder("x")
    value = make(graph, graph.get_attr("weight"))
    graph.output(graph.call_function(torch.add, (x, value)))
    return fx.GraphModule(root, graph)


def test_random_numbers_are_never_stored() -> None:
    module = hand_made(lambda g, w: g.call_function(torch.rand_like, (w,)))
    state = torch.get_rng_state()
    assert fold_constants(module) == ()
    assert torch.equal(state, torch.get_rng_state())
    assert functions(module) == ["rand_like", "add"]


def test_uninitialised_memory_is_never_stored() -> None:
    module = hand_made(lambda g, w: g.call_function(torch.empty_like, (w,)))
    assert fold_constants(module) == ()


def test_graphs_without_observations_are_read_by_name() -> None:
    def make(graph: fx.Graph, weight: fx.Node) -> fx.Node:
        copy = graph.call_method("clone", (weight,))
        graph.call_method("mul_", (copy, 2))
        return copy

    module = hand_made(make)
    expected = module(torch.ones(4))
    fold_constants(module)
    assert torch.equal(module(torch.ones(4)), expected)
    assert torch.equal(module(torch.ones(4)), expected)


def test_folding_says_what_it_folded() -> None:
    module = hand_made(lambda g, w: g.call_function(torch.mul, (w, 2)))
    for node in module.graph.nodes:
        node.meta["aliases"] = ()
    (folded,) = fold_constants(module)
    assert folded.path == "folded_constant"
    assert folded.nodes == ("mul",)
    assert not hasattr(module, "weight")
