"""Weights computed in forward become stored weights, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from lissom.rewrite.capture import capture
from lissom.rewrite.constants import fold_constants


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


def test_what_is_written_to_is_not_stored() -> None:
    def make(weight: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(2, 4)
        mask[0] = weight * 2
        return mask

    module = graph_of(Makes(make), torch.rand(2, 4))
    assert "setitem" in functions(module)
    x = torch.rand(2, 4)
    assert torch.equal(module(x), module(x))


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
    (folded,) = fold_constants(module)
    assert folded.path == "folded_constant"
    assert folded.nodes == ("mul",)
    assert not hasattr(module, "weight")
