"""More dimension classes: tables, sizes and types of other tensors, grouped heads, batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lissom.rewrite.channels.classes import classes
from lissom.rewrite.channels.cut import cut

from .cutting import apart, flow_of, free, halves, named, randomised, require_exact
from .test_channels import image, model

GENERATOR = torch.Generator().manual_seed(3)
TOKENS = torch.randn(2, 6, 5, generator=GENERATOR).double()


def reasons(net: nn.Module, *args: Any) -> list[str]:
    """Why the dimensions that stay do."""
    return [str(block) for dim in classes(flow_of(net, *args)) for block in dim.blocks]


# -- tables ----------------------------------------------------------------------------------------


class Windowed(nn.Module):
    """Attention of Swin Transformer V2 (Liu et al. 2021, arXiv:2111.09883): cosines, a bias of
    keys that is set to zero, and a table of positions that a small network makes.
    """

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.stem, self.head = nn.Linear(5, width), nn.Linear(width, 4)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.scale = nn.Parameter(torch.ones(heads, 1, 1))
        self.table = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, heads, bias=False))
        place = torch.arange(6)
        self.register_buffer("index", (place[:, None] - place[None, :] + 5).reshape(-1))
        self.register_buffer("coordinates", torch.randn(11, 2, generator=GENERATOR))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, length, width = x.shape
        bias = self.qkv.bias.clone()
        third = bias.numel() // 3
        bias[third : 2 * third].zero_()
        qkv = F.linear(x, self.qkv.weight, bias).reshape(n, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.scale
        near = self.table(self.coordinates)[self.index].view(length, length, -1).permute(2, 0, 1)
        mixed = (scores + 16 * near.sigmoid()).softmax(-1) @ v
        return self.head(x + self.out(mixed.transpose(1, 2).reshape(n, length, width)))


def test_heads_behind_a_table_and_a_bias_that_is_set_to_zero() -> None:
    flow = require_exact(randomised(Windowed()), TOKENS)
    dims = named(flow)
    assert sorted(dim.size for dim in dims.values()) == [2, 3, 4, 8, 12]
    heads = next(dim for dim in dims.values() if dim.size == 3)
    paths = {path for path, _ in heads.places}
    assert {"table.2.weight", "scale", "qkv.weight", "out.weight", "folded_bias"} <= paths


def test_rows_of_a_table_that_the_model_chooses() -> None:
    """One row of positions is a choice among features; several rows keep the axis that they read,
    and let the others go.
    """
    order = torch.tensor([3, 1, 1, 0, 5, 4])

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x).permute(2, 0, 1)[m.order].permute(1, 2, 0)
        return m.head(x + m.table(m.places)[m.index].sum(0))

    net = model(
        forward, stem=nn.Linear(5, 6), head=nn.Linear(6, 4),
        table=nn.Linear(2, 6), places=nn.Parameter(torch.zeros(9, 2)),
    )  # fmt: skip
    net.register_buffer("order", order)
    net.register_buffer("index", torch.arange(12).reshape(2, 6) % 9)
    flow = require_exact(net, TOKENS)
    assert sorted(dim.size for dim in free(flow)) == [2, 5]  # of six: 1 twice, and 2 never


def test_positions_that_are_computed_keep_the_axis_that_they_choose_from() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        table = m.table(m.places)
        return m.head(m.stem(x) + table[x[:, :, 0].argsort(1)])

    net = model(
        forward, stem=nn.Linear(5, 8), head=nn.Linear(8, 4), table=nn.Linear(2, 8),
        places=nn.Parameter(torch.zeros(6, 2)),
    )  # fmt: skip
    flow = require_exact(net, TOKENS)
    assert sorted(dim.size for dim in free(flow)) == [2, 8]
    net = model(
        lambda m, x: m.head(m.stem(x).mT[0][x[0, :, 0].argsort()[:4]].mT),
        stem=nn.Linear(5, 8), head=nn.Linear(4, 4),
    )  # fmt: skip
    assert any("chooses positions that it computes" in why for why in reasons(net, TOKENS))


# -- sizes and types of other tensors --------------------------------------------------------------


def test_sizes_of_another_tensor() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        y = m.norm(x.flatten(0, 1)).reshape_as(x)
        gate = m.gate(y.mean((0, 1), keepdim=True)).expand_as(y)
        return m.head((y.view_as(x) * gate).type_as(x).to(gate))

    net = model(
        forward, stem=nn.Linear(5, 8), norm=nn.BatchNorm1d(8), gate=nn.Linear(8, 8),
        head=nn.Linear(8, 4),
    )  # fmt: skip
    flow = require_exact(net, TOKENS)
    assert {name: dim.size for name, dim in named(flow).items()} == {"stem": 8}
    small, more = cut(flow, halves(free(flow))), torch.randn(3, 6, 5).double()
    assert small(more).shape == (3, 6, 4)


def test_expanding_as_another_tensor_gives_its_features() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.stem(x)
        return m.head(y + x[:, :, :1].expand_as(y))

    net = model(forward, stem=nn.Linear(5, 8), head=nn.Linear(8, 4))
    (dim,) = free(require_exact(net, TOKENS))
    assert dim.size == 8


def test_sizes_of_what_has_other_features_stay() -> None:
    net = model(
        lambda m, x: m.head(x.reshape_as(m.stem(x))), stem=nn.Linear(5, 5), head=nn.Linear(5, 4)
    )
    assert any("takes its sizes from what has no such" in why for why in reasons(net, TOKENS))


def test_new_memory_of_the_same_type_reads_nothing() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        mask = x.new_zeros((6, 6))
        mask[2:, :3] = 1
        return m.head(mask @ x)

    (dim,) = free(require_exact(model(forward, stem=nn.Linear(5, 8), head=nn.Linear(8, 4)), TOKENS))
    assert dim.size == 8


# -- growth ----------------------------------------------------------------------------------------


def dense(layers: int) -> nn.Module:
    """Every layer reads what all before it wrote."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        for layer in m.layers:
            x = torch.cat([x, layer(x)], 1)
        return m.head(x)

    made = [nn.Conv2d(8 + 2 * i, 2, 1) for i in range(layers)]
    head = nn.Conv2d(8 + 2 * layers, 5, 1)
    return model(forward, stem=nn.Conv2d(3, 8, 1), layers=nn.ModuleList(made), head=head)


def test_what_is_read_again_makes_no_new_features() -> None:
    features = {n: len(flow_of(dense(n), image()).atoms) for n in (2, 12, 22)}
    assert features[12] - features[2] == features[22] - features[12] == 10 * 2


# -- attention -------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_heads_that_share_keys_go_together(masked: bool) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = (
            part(x).view(2, 6, heads, 4).transpose(1, 2)
            for part, heads in ((m.q, 6), (m.k, 2), (m.v, 2))
        )
        mask = m.mask(x).mT.unsqueeze(-1) if masked else None
        y = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
        return m.out(y.transpose(1, 2).reshape(2, 6, 24))

    net = model(
        forward, q=nn.Linear(5, 24), k=nn.Linear(5, 8), v=nn.Linear(5, 8), out=nn.Linear(24, 5),
        mask=nn.Linear(5, 6),
    )  # fmt: skip
    flow = require_exact(net, TOKENS)
    # Two heads of keys, three of queries for each of them, the width of both, and that of values.
    assert sorted(dim.size for dim in free(flow)) == [2, 3, 4, 4]


def test_attention_over_channels_names_the_op_that_keeps_them() -> None:
    """Efficient channel attention (Wang et al. 2020, arXiv:1910.03151): a window that moves over
    channels mixes neighbours.
    """

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        gate = m.window(x.mean((2, 3)).unsqueeze(1)).sigmoid().view(2, -1, 1, 1)
        return m.head(x * gate.expand_as(x))

    net = model(
        forward, stem=nn.Conv2d(3, 6, 1), window=nn.Conv1d(1, 1, 3, padding=1),
        head=nn.Conv2d(6, 5, 1),
    )  # fmt: skip
    assert "window: conv1d reads windows of it, as its axis L" in reasons(net, image())


# -- batches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["batch first", "heads first"])
@pytest.mark.parametrize("norm", [False, True])
def test_the_masked_model_follows_the_batch_where_heads_share_an_axis_with_it(
    order: str, norm: bool
) -> None:
    """The axis of heads and batch has another size then; widths, which are summed over, do not."""

    def forward(m: Any, x: Tensor) -> Tensor:
        n = x.shape[0]
        q, k, v = (part(x).view(n, 6, 4, 3).transpose(1, 2) for part in (m.q, m.k, m.v))
        turned = order == "heads first"
        q, k, v = ((p.transpose(0, 1) if turned else p).reshape(n * 4, 6, 3) for p in (q, k, v))
        scores = torch.bmm(q, k.transpose(1, 2)).softmax(-1)
        y = torch.bmm(scores, m.norm(v) if norm else v)
        y = y.view(4, n, 6, 3).transpose(0, 1) if turned else y.view(n, 4, 6, 3)
        return m.out(y.transpose(1, 2).reshape(n, 6, 12))

    layers = {name: nn.Linear(5, 12) for name in "qkv"}
    net = model(forward, **layers, norm=nn.LayerNorm(3), out=nn.Linear(12, 5))
    flow = require_exact(net, TOKENS)
    assert sorted(dim.size for dim in free(flow)) == [3, 3, 4]
    for seed, batch in ((0, 1), (1, 5), (2, 3)):
        more = torch.randn(batch, 6, 5, generator=GENERATOR).double()
        removed = halves(free(flow), seed)
        small = cut(flow, removed)
        assert apart(flow, small, removed, (more,)) < 1e-12
