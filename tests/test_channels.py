"""Dimension classes and cuts: what is coupled, what is a barrier, and that cuts are exact."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.channels.classes import classes
from lissom.rewrite.channels.cut import cut
from lissom.rewrite.channels.selection import Selection

from .cutting import apart, flow_of, free, halves, named, randomised, require_exact, shapes


def image(channels: int = 3, size: int = 8) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(5)).double()


def model(forward: Callable[..., Any], **layers: nn.Module | nn.Parameter) -> nn.Module:
    """A model with these layers, randomised; `forward` gets the model and the inputs."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, layer in layers.items():
                setattr(self, name, layer)

        def forward(self, *args: Any) -> Any:
            return forward(self, *args)

    return randomised(Model())


# -- convolutional networks ------------------------------------------------------------------------


def test_a_chain_has_one_class_for_each_inner_width() -> None:
    net = randomised(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 6, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(24, 10), nn.ReLU(),
            nn.Linear(10, 5),
        )
    )  # fmt: skip
    flow = require_exact(net, image())
    found = {dim.name: (dim.size, len(dim.places)) for dim in free(flow)}
    # A convolution's weight and bias, the four tensors of the norm, the weight of the next layer.
    assert found == {"0": (8, 7), "4": (6, 3), "7": (10, 3)}
    (kept,) = (dim for dim in classes(flow) if dim.blocks)
    assert kept.size == 5
    assert "the model returns it" in str(kept.blocks[0])


def test_flattened_channels_lose_their_whole_block() -> None:
    net = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5)))
    flow = flow_of(net, image())
    (dim,) = free(flow)
    small = cut(flow, [dim.leaves[1]])
    assert shapes(small) == {
        "0.weight": (3, 3, 3, 3), "0.bias": (3,), "2.weight": (5, 108), "2.bias": (5,),
    }  # fmt: skip
    kept = small.get_submodule("2").weight
    old = net[2].weight
    assert torch.equal(kept, torch.cat([old[:, :36], old[:, 72:]], 1))


class Residual(nn.Module):
    """A stem, two blocks with a skip, one with squeeze-excite, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a = nn.Sequential(nn.Conv2d(8, 5, 1), nn.ReLU(), nn.Conv2d(5, 8, 3, padding=1))
        self.depthwise = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.b = nn.Conv2d(16, 8, 1)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.norm(x + self.a(x))
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))).sigmoid()
        x = x * gate + self.b(self.depthwise(x))
        return self.head(x.mean((2, 3)))


def test_skips_gates_and_depthwise_layers_share_a_class() -> None:
    flow = require_exact(randomised(Residual()), image())
    dims = named(flow)
    assert {name: dim.size for name, dim in dims.items()} == {
        "stem": 8, "a.0": 5, "squeeze": 4, "depthwise": 2,
    }  # fmt: skip
    paths = {path for path, _ in dims["stem"].places}
    assert {"a.2.weight", "excite.bias", "norm.running_mean", "b.weight", "head.weight"} <= paths
    assert "depthwise.weight" in paths


def test_groups_are_cut_as_groups_or_inside_all_of_them() -> None:
    net = randomised(
        nn.Sequential(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 8, 3, groups=4), nn.Conv2d(8, 5, 1))
    )
    flow = require_exact(net, image())
    sizes = sorted(dim.size for dim in free(flow))
    assert sizes == [2, 3, 4]  # widths out and in of each group, and groups
    groups = next(dim for dim in free(flow) if dim.size == 4)
    small = cut(flow, groups.leaves[:1])
    assert small.get_submodule("1").groups == 3
    assert shapes(small)["1.weight"] == (6, 3, 3, 3)


def test_groups_of_a_norm_and_their_widths() -> None:
    """H21: groups of a norm."""
    net = randomised(
        nn.Sequential(nn.Conv2d(3, 12, 1), nn.GroupNorm(4, 12), nn.ReLU(), nn.Conv2d(12, 5, 1))
    )
    flow = require_exact(net, image())
    groups, widths = sorted(free(flow), key=lambda dim: -dim.size)
    assert (groups.size, widths.size) == (4, 3)
    assert cut(flow, groups.leaves[:1]).get_submodule("1").num_groups == 3
    assert shapes(cut(flow, widths.leaves[:1]))["1.weight"] == (8,)


@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_takes_its_statistics_over_what_is_left(affine: bool) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x) + m.b(x)
        return m.head(F.rms_norm(m.norm(x), (8,)).relu())

    norm = nn.LayerNorm(8, elementwise_affine=affine)
    net = model(forward, a=nn.Linear(3, 8), b=nn.Linear(3, 8), norm=norm, head=nn.Linear(8, 5))
    flow = require_exact(net, torch.randn(4, 6, 3).double())
    (dim,) = free(flow)
    small = cut(flow, dim.leaves[:3])
    assert tuple(small.get_submodule("norm").normalized_shape) == (5,)


@pytest.mark.parametrize("slopes", [1, 8])
def test_slopes(slopes: int) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.PReLU(slopes), nn.Conv2d(8, 5, 1))
    flow = require_exact(randomised(net), image())
    (dim,) = free(flow)
    assert (("1.weight", 0) in dim.places) == (slopes > 1)


def test_a_product_with_what_is_added() -> None:
    """`addmm(bias, x, weight)`: the bias has the features of the result."""

    class Product(nn.Module):
        def __init__(self, i: int, o: int) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.zeros(i, o)), nn.Parameter(torch.zeros(o))

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(self.bias, x, self.weight)

    net = randomised(nn.Sequential(Product(3, 8), nn.ReLU(), Product(8, 5)))
    flow = require_exact(net, torch.randn(4, 3).double())
    (dim,) = free(flow)
    assert set(dim.places) == {("0.weight", 1), ("0.bias", 0), ("2.weight", 0)}


def test_concatenated_parts_are_cut_alone() -> None:
    """H21: concat."""

    def forward(m: Any, x: Tensor) -> Tensor:
        parts = [m.a(x), m.b(x)]
        parts.append(m.c(torch.cat(parts, 1)))
        return m.head(torch.cat([*parts, parts[0]], 1))

    net = model(
        forward, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 6, 1), c=nn.Conv2d(10, 2, 1),
        head=nn.Conv2d(16, 5, 1),
    )  # fmt: skip
    flow = require_exact(net, image())
    assert {name: dim.size for name, dim in named(flow).items()} == {"a": 4, "b": 6, "c": 2}


def test_a_shuffle_does_not_couple_what_it_mixes() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = torch.cat([m.a(x), m.b(x)], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        left, right = x.chunk(2, dim=1)
        return m.head(torch.cat([left, m.c(right)], 1))

    net = model(
        forward, a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(3, 6, 1), c=nn.Conv2d(6, 4, 1),
        head=nn.Conv2d(10, 5, 1),
    )  # fmt: skip
    flow = require_exact(net, image())
    left = [dim for dim in free(flow) if ("c.weight", 1) not in dim.places]
    assert sum(dim.size for dim in free(flow)) == 16
    small = cut(flow, [leaf for dim in left for leaf in dim.leaves][:5])
    assert apart(flow, small, [leaf for dim in left for leaf in dim.leaves][:5], (image(),)) < 1e-12


@pytest.mark.parametrize("move", ["roll", "flip", "channel_shuffle", "pixel_shuffle", "unshuffle"])
def test_movements_of_channels(move: str) -> None:
    """H21: what moves channels."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        if move == "roll":
            x = x.roll(3, 1)
        elif move == "flip":
            x = x.flip(1)
        elif move == "channel_shuffle":
            x = F.channel_shuffle(x, 4)
        elif move == "pixel_shuffle":
            x = F.pixel_shuffle(x, 2)
        else:
            x = F.pixel_unshuffle(x, 2)
        return m.head(F.relu(x))

    width = {"pixel_shuffle": 4, "unshuffle": 64}.get(move, 16)
    net = model(forward, a=nn.Conv2d(3, 16, 1), head=nn.Conv2d(width, 5, 1))
    flow = require_exact(net, image())
    (dim,) = free(flow)
    assert dim.size == (4 if move == "pixel_shuffle" else 16)


def test_zero_padded_shortcuts_keep_what_they_meet() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        return m.head(m.b(x) + F.pad(x, (0, 0, 0, 0, 2, 2)))

    net = model(forward, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 8, 1), head=nn.Conv2d(8, 5, 1))
    flow = require_exact(net, image())
    assert sum(dim.size for dim in free(flow)) == 4  # the padded four of eight have no partner


def test_the_constant_of_a_removed_channel_is_not_folded_by_itself() -> None:
    """S12, S13, H22: beta and bias of a removed channel go with it, zero padding or not."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Sigmoid(),
        nn.Conv2d(8, 5, 3, padding=1),
    )  # fmt: skip
    require_exact(randomised(net), image())


def test_concatenation_with_itself_and_flattening() -> None:
    """S15, H21: cat([x, x]), unbind of five as three, flatten in front of a linear layer."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        first, *_, last = torch.cat([x, x], 1).reshape(2, 5, 4, -1).unbind(1)
        return m.head((first + last).flatten(1))

    net = model(forward, a=nn.Conv2d(3, 10, 1), head=nn.Linear(256, 5))
    flow = flow_of(net, image())
    removed = halves(free(flow))
    if removed:
        assert apart(flow, cut(flow, removed), removed, (image(),)) < 1e-12


# -- transformers and recurrent networks -----------------------------------------------------------


class Attention(nn.Module):
    """Self-attention with one projection for queries, keys and values, and a gated MLP."""

    def __init__(self, split: str, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.split, self.heads = split, heads
        self.embed = nn.Embedding(20, width)
        self.place = nn.Parameter(torch.zeros(1, 6, width))
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 16), nn.Linear(8, width)
        self.head = nn.Linear(width, 7)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.place
        q, k, v = self._parts(self.qkv(self.norm(x)))
        scale = 1 / math.sqrt(q.shape[-1])
        mixed = (q @ k.transpose(-2, -1) * scale).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        x = x + self.down(F.glu(self.up(x)))
        return self.head(x)

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        n, length, width = x.shape
        each = width // 3 // self.heads
        if self.split == "unbind":
            return x.reshape(n, length, 3, self.heads, each).permute(2, 0, 3, 1, 4).unbind(0)
        parts = x.chunk(3, -1)
        return tuple(part.view(n, length, self.heads, each).transpose(1, 2) for part in parts)


IDS = torch.arange(12).reshape(2, 6) % 20


@pytest.mark.parametrize("split", ["unbind", "chunk"])
def test_heads_and_their_widths(split: str) -> None:
    """H21: reshape, permute, chunk, unbind and heads."""
    flow = require_exact(randomised(Attention(split)), IDS)
    sizes = sorted(dim.size for dim in free(flow))
    widths = [4] if split == "unbind" else [4, 4]  # of values, and of queries and keys
    assert sizes == sorted([3, 8, 12, *widths])
    norm = next(dim for dim in free(flow) if ("norm.weight", 0) in dim.places)
    assert {"embed.weight", "place", "head.weight"} <= {path for path, _ in norm.places}


def test_the_scale_of_attention_stays() -> None:
    """A number that is computed from a size is a number of the model."""
    flow = flow_of(randomised(Attention("chunk")), IDS)
    widths = next(d for d in free(flow) if d.size == 4 and ("out.weight", 1) not in d.places)
    small = cut(flow, widths.leaves[:1])
    assert apart(flow, small, [widths.leaves[0]], (IDS,)) < 1e-12


def test_fused_attention_keeps_its_scale() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = (part(x).view(2, 6, 3, 4).transpose(1, 2) for part in (m.q, m.k, m.v))
        y = F.scaled_dot_product_attention(q, k, v)
        return m.out(y.transpose(1, 2).reshape(2, 6, 12))

    layers = {name: nn.Linear(5, 12) for name in "qkv"}
    net = model(forward, **layers, out=nn.Linear(12, 5))
    x = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(3)).double()
    flow = require_exact(net, x)
    assert sorted(dim.size for dim in free(flow)) == [3, 4, 4]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_hidden_units_of_recurrent_layers(kind: type[nn.Module]) -> None:
    net = model(
        lambda m, x: m.head(m.second(m.first(m.stem(x))[0])[0]),
        stem=nn.Linear(3, 6), first=kind(6, 8), second=kind(8, 5), head=nn.Linear(5, 4),
    )  # fmt: skip
    x = torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(3)).double()
    flow = require_exact(net, x)
    assert {name: dim.size for name, dim in named(flow).items()} == {
        "stem": 6, "first": 8, "second": 5,
    }  # fmt: skip


def test_a_state_that_is_used_stays() -> None:
    net = model(lambda m, x: m.head(m.first(x)[1][0]), first=nn.LSTM(3, 6), head=nn.Linear(6, 4))
    texts = blocks_of(net, torch.randn(7, 2, 3).double())
    assert any("lstm has no dimensions for result 1" in text for text in texts)


@pytest.mark.parametrize("equation", ["blad, bmad -> balm", "blad,bmad->balm"])
def test_an_einsum_names_its_dimensions(equation: str) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = (part(x).view(2, 6, 3, 4) for part in (m.q, m.k, m.v))
        y = torch.einsum("balm,bmad->blad", torch.einsum(equation, q, k).softmax(-1), v)
        return m.out(y.reshape(2, 6, 12))

    layers = {name: nn.Linear(5, 12) for name in "qkv"}
    net = model(forward, **layers, out=nn.Linear(12, 5))
    flow = require_exact(net, torch.randn(2, 6, 5).double())
    assert sorted(dim.size for dim in free(flow)) == [3, 4, 4]


def test_tied_weights_are_one() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.inner = nn.Embedding(9, 6), nn.Linear(6, 6)
            self.head = nn.Linear(6, 9, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.inner(self.embed(ids)).relu())

    flow = require_exact(randomised(Tied()), torch.arange(8).reshape(2, 4))
    (dim,) = free(flow)  # the width that the embedding makes is the one that the head reads
    assert dim.size == 6
    small = cut(flow, dim.leaves[:2])
    assert small.get_submodule("embed").weight is small.get_submodule("head").weight
    assert shapes(small)["inner.weight"] == (4, 4)


def test_a_shared_layer_is_cut_for_all_its_calls() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(m.a(m.a(m.stem(x)).relu()))

    net = model(
        forward, stem=nn.Conv2d(3, 6, 1), a=nn.Conv2d(6, 6, 3, padding=1), head=nn.Conv2d(6, 5, 1)
    )
    flow = require_exact(net, image())
    (dim,) = free(flow)
    assert dim.size == 6


# -- barriers --------------------------------------------------------------------------------------


def blocks_of(net: nn.Module, *args: Any) -> list[str]:
    flow = flow_of(net, *args)
    assert not free(flow)
    return [str(block) for dim in classes(flow) for block in dim.blocks]


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x, dim=1).real


def test_what_is_not_declared_is_a_barrier_that_is_named() -> None:
    net = model(
        lambda m, x: m.b(m.odd(m.a(x))), a=nn.Conv2d(3, 6, 1), odd=Odd(), b=nn.Conv2d(6, 5, 1)
    )
    texts = blocks_of(net, image())
    assert any("fft" in text for text in texts)


BARRIERS: dict[str, Callable[[Tensor], Tensor]] = {
    "cumsum mixes it": lambda x: x.cumsum(1),
    "argmax reduces over it": lambda x: x * x.argmax(1, keepdim=True),
    "it picks single positions": lambda x: x[:, 2:3] + x.mean(),
    "avg_pool1d": lambda x: (
        F.avg_pool1d(x.flatten(2).transpose(1, 2), 3, 1, 1).transpose(1, 2).reshape(2, 6, 8, 8)
    ),
}


@pytest.mark.parametrize("reason", BARRIERS)
def test_what_depends_on_all_channels_is_a_barrier(reason: str) -> None:
    net = model(
        lambda m, x: m.b(BARRIERS[reason](m.a(x)).expand(2, 6, 8, 8)),
        a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 5, 1),
    )  # fmt: skip
    assert any(reason in text for text in blocks_of(net, image()))


OVER_WHAT_IS_LEFT: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(1),
    "normalize": lambda x: F.normalize(x, dim=1),
    "mean": lambda x: x - x.mean(1, keepdim=True),
    "amax": lambda x: x / (1 + x.abs().amax(1, keepdim=True)),
    "standard deviation": lambda x: x / x.std((1, 2, 3), keepdim=True),
    "norm of each position": lambda x: torch.cat([x, x.norm(dim=1, keepdim=True)], 1)[:, 1:],
}


@pytest.mark.parametrize("name", OVER_WHAT_IS_LEFT)
def test_what_is_taken_over_all_channels_is_taken_over_what_is_left(name: str) -> None:
    net = model(
        lambda m, x: m.b(OVER_WHAT_IS_LEFT[name](m.a(x))),
        a=nn.Conv2d(3, 6, 1),
        b=nn.Conv2d(6, 5, 1),
    )
    require_exact(net, image())


def test_sizes_that_follow_the_batch_go_on_following_it() -> None:
    """Heads and batch share one axis: a size computed from both stays computed."""

    def forward(m: Any, x: Tensor) -> Tensor:
        n = x.shape[0]
        q, k, v = (
            part(x).view(n, 6, 4, 3).transpose(1, 2).reshape(n * 4, 6, 3)
            for part in (m.q, m.k, m.v)
        )
        y = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
        return m.out(y.view(n, 4, 6, 3).transpose(1, 2).reshape(n, 6, 12))

    layers = {name: nn.Linear(5, 12) for name in "qkv"}
    net = model(forward, **layers, out=nn.Linear(12, 5))
    flow = require_exact(net, torch.randn(2, 6, 5).double())
    small, more = cut(flow, halves(free(flow))), torch.randn(5, 6, 5).double()
    torch.testing.assert_close(small(more)[:2], small(more[:2]))


def test_positions_that_the_example_does_not_reach_are_no_dimension() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(m.stem(x) + m.place[:, : x.shape[1]])

    place = nn.Parameter(torch.zeros(1, 20, 8))
    net = model(forward, stem=nn.Linear(5, 8), head=nn.Linear(8, 5), place=place)
    flow = require_exact(net, torch.randn(2, 6, 5).double())
    (dim,) = free(flow)
    assert dim.size == 8


def test_what_meets_an_input_stays() -> None:
    net = model(lambda m, x: m.b(m.a(x) + x), a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 5, 1))
    assert any("what has no features" in text for text in blocks_of(net, image()))


def test_nothing_may_be_left_empty() -> None:
    """H23: everything is removed."""
    net = randomised(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)))
    flow = flow_of(net, image())
    (dim,) = free(flow)
    with pytest.raises(LissomError, match=r"R011.*`0.weight`"):
        cut(flow, dim.leaves)


# -- the check itself ------------------------------------------------------------------------------


def test_the_masked_model_notices_a_wrong_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison finds a cut that keeps the wrong channels of a reader."""
    net = randomised(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 5, 1)))
    flow = flow_of(net, image())
    removed = halves(free(flow))
    good = cut(flow, removed)
    axes = Selection.axes

    def shifted(self: Selection, tracks: Any) -> Any:
        return {axis: (kept + 1) % 8 if axis == 1 and tracks[0].ndim == 4 else kept
                for axis, kept in axes(self, tracks).items()}  # fmt: skip

    monkeypatch.setattr(Selection, "axes", shifted)
    bad = cut(flow, removed)
    monkeypatch.undo()
    assert apart(flow, good, removed, (image(),)) < 1e-12
    assert apart(flow, bad, removed, (image(),)) > 1e-3
