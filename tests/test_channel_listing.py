"""The numbers of `lissom dims` are what a cut does, and reasons lead to the model's own lines."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.capture.capture import capture
from lissom.rewrite.channels.analyse import analyse
from lissom.rewrite.channels.classes import DimClass, classes
from lissom.rewrite.channels.cut import cut
from lissom.rewrite.channels.flow import Flow
from lissom.rewrite.channels.listing import Listed, dims_at, listing
from lissom.rewrite.graph.index import GraphView

from .cutting import size


class Heads(nn.Module):
    """Attention with one projection, a concatenation, a norm, and a weight that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Linear(5, 12), nn.Linear(12, 36)
        self.out, self.norm = nn.Linear(12, 12), nn.LayerNorm(12)
        self.left, self.right = nn.Linear(12, 6), nn.Linear(12, 4, bias=False)
        self.again = nn.Linear(12, 6)
        self.again.weight = self.left.weight
        self.join = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = self.qkv(x).reshape(2, 4, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        x = self.norm(x + self.out(y.transpose(1, 2).reshape(2, 4, 12)))
        return self.join(torch.cat([self.left(x), self.right(x), self.again(x)], -1))


@pytest.fixture(scope="module")
def flow() -> Flow:
    torch.manual_seed(0)
    captured = capture(Heads().eval(), (torch.rand(2, 4, 5),), prove=False)
    return analyse(GraphView(captured.module))


def pairs(flow: Flow) -> list[tuple[DimClass, Listed]]:
    return list(zip(classes(flow), listing(flow).dims, strict=True))


def test_what_goes_with_one_feature_is_what_a_cut_removes(flow: Flow) -> None:
    whole = size(flow.view.root)
    free = [(dim, told) for dim, told in pairs(flow) if not dim.blocks]
    assert len(free) >= 4
    for dim, told in free:
        gone = [whole - size(cut(flow, [leaf])) for leaf in dim.leaves]
        assert (told.least, told.most) == (min(gone), max(gone))


def test_what_carries_a_dimension_is_what_all_but_one_feature_take(flow: Flow) -> None:
    whole = size(flow.view.root)
    for dim, told in pairs(flow):
        if not dim.blocks:
            left = size(cut(flow, dim.leaves[1:]))
            assert whole - left < told.parameters <= whole - left + told.most


def test_a_square_weight_counts_once() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False)).eval()
    captured = capture(net, (torch.rand(2, 3),), prove=False)
    first, last = listing(analyse(GraphView(captured.module))).dims
    assert (first.parameters, first.least) == (3 * 4 + 4 + 4 * 2, 3 + 1 + 2)
    assert (last.parameters, last.least) == (4 * 2, 4)


def test_totals_count_convolutions_and_linear_layers_once(flow: Flow) -> None:
    found = listing(flow)
    root: Any = flow.view.root
    norm = sum(p.numel() for p in root.norm.parameters())
    assert found.weights == size(root) - norm
    assert found.total == len(found.dims)
    assert found.free == sum(not dim.reasons for dim in found.dims)
    assert found.cuttable == found.weights - root.join.bias.numel()


def test_factors_and_ties_are_told(flow: Flow) -> None:
    found = listing(flow).dims
    factors = {axis.factor for dim in found for axis in dim.axes if axis.path == "qkv.weight"}
    assert len(factors) > 1
    tied = {axis.tied for dim in found for axis in dim.axes if axis.path == "left.weight"}
    assert tied == {("again.weight",)}


def test_a_reason_names_node_place_and_line(flow: Flow) -> None:
    (reason,) = next(dim for dim in listing(flow).dims if dim.name == "join").reasons
    assert (reason.node, reason.does, reason.is_boundary) == (
        "output",
        "the model returns it",
        True,
    )

    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.cumsum(self.a(x), 1))

    captured = capture(Sums().eval(), (torch.rand(2, 3),), prove=False)
    (reason,) = listing(analyse(GraphView(captured.module))).dims[0].reasons
    line = Sums.forward.__code__.co_firstlineno + 1
    assert (reason.node, reason.source) == ("cumsum", f"test_channel_listing.py:{line}")


def test_places_are_paths_or_globs(flow: Flow) -> None:
    dims = classes(flow)
    assert {dim.name for dim in dims_at(dims, "le*")} >= {"left"}
    assert all("right.weight" in dict(dim.places) for dim in dims_at(dims, "right.weight"))
    with pytest.raises(LissomError, match="U008"):
        dims_at(dims, "nothing")
    with pytest.raises(LissomError, match="U008"):
        listing(flow, "lef")
