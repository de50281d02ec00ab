"""What a trait says of an op of the library it says of an own one: channels are cut through it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lissom
from lissom.rewrite.journal import Refused

CUTS = "\npipeline cuts { stage s { once prune_l1(ratio = 50%) } budget drift(outputs) <= 1000% }\n"


def gate(x: Tensor, dim: int = -1) -> Tensor:
    left, right = x.chunk(2, dim)
    return left * torch.tanh(right)


def lean(x: Tensor, slope: Tensor) -> Tensor:
    return x + slope * x.abs()


def join(xs: list[Tensor], dim: int) -> Tensor:
    return torch.cat(list(xs), dim)


def pile(xs: list[Tensor], dim: int) -> Tensor:
    return torch.stack(list(xs), dim)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: Any = None) -> Tensor:
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return torch.softmax(q @ k.mT * scale + bias, -1) @ v


def lifted(z: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return z + x @ y


def pick(x: Tensor, index: Tensor, dim: int) -> Tensor:
    return x.index_select(dim, index)


def laid(x: Tensor, extents: tuple[int, ...]) -> Tensor:
    return x.reshape(extents)


def laid_like(x: Tensor, other: Tensor) -> Tensor:
    return x.reshape(other.shape)


def pieces(x: Tensor, parts: int, dim: int) -> tuple[Tensor, ...]:
    return x.tensor_split(parts, dim)


def window(x: Tensor, dim: int, first: int, count: int) -> Tensor:
    return x.narrow(dim, first, count)


def contract(xs: list[Tensor], equation: str) -> Tensor:
    return torch.einsum(equation, *xs)


def rim(x: Tensor, pad: tuple[int, ...]) -> Tensor:
    return F.pad(x, pad)


def enlarge(x: Tensor, factor: float) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bilinear")


def mean_of(x: Tensor, sizes: Any) -> Tensor:
    return F.adaptive_avg_pool2d(x, sizes)


class Flat(nn.Module):
    """inner, what `run` makes of it, outer; `weight` is what an own op reads."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.side, self.outer = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(width, 3)
        self.weight = nn.Parameter(torch.rand(8))
        self.mixed = nn.Parameter(torch.randn(6, 8))
        self.register_buffer("order", torch.tensor([3, 1, 7, 0, 2, 6, 5, 4]))
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.run(self, x))


class Images(nn.Module):
    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.run(self, self.inner(x)))


ROWS, BATCH, IMAGE = torch.randn(4, 6), torch.randn(2, 5, 6), torch.randn(2, 3, 8, 8)


def flat(run: Callable[[Any, Tensor], Tensor], width: int = 8) -> nn.Module:
    return Flat(run, width)


CASES: dict[str, tuple[str, Callable[..., Any], nn.Module, Tensor]] = {
    "gated": (
        "op own(x: f[...]) -> f { attr dim: int = -1\n trait gated\n meaning own.f(x, dim) }",
        gate,
        flat(lambda m, x: gate(m.inner(x), -1), 4),
        ROWS,
    ),
    "per_channel": (
        "op own(x: f[...]) -> f[...] { param slope: [C]\n trait per_channel\n mixes none\n"
        " meaning own.f(x, slope) }",
        lean,
        flat(lambda m, x: lean(m.inner(x), m.weight)),
        ROWS,
    ),
    "movement of several": (
        "op own(xs...: t) -> t { attr dim: int = none\n trait movement\n meaning own.f(xs, dim) }",
        join,
        flat(lambda m, x: join([m.inner(x), m.side(x)], 1), 16),
        ROWS,
    ),
    "movement of several along a new axis": (
        "op own(xs...: t) -> t { attr dim: int = none\n trait movement\n meaning own.f(xs, dim) }",
        pile,
        flat(lambda m, x: pile([m.inner(x), m.side(x)], 0)),
        ROWS,
    ),
    "mask and scaled": (
        "op own(q: f[..., L, E], k: f[..., S, E], v: f[..., S, V], bias: t) -> f[..., L, V] {\n"
        " attr scale: any = none\n trait mask, scaled\n mixes L, S\n sums E\n"
        " meaning own.f(q, k, v, bias, scale) }",
        attend,
        flat(lambda m, x: attend(m.inner(x), m.side(x), m.inner(x), x[..., :1] * x[:, :1, 0:1])),
        BATCH,
    ),
    "addend": (
        "op own(z: f, x: f[M, K], y: f[K, N]) -> f[M, N] {\n trait addend\n sums K\n"
        " meaning own.f(z, x, y) }",
        lifted,
        flat(lambda m, x: lifted(m.inner(x), x, m.mixed)),
        ROWS,
    ),
    "selection": (
        "op own(x: t[...], index: i) -> t { attr dim: int = none\n trait selection\n"
        " meaning own.f(x, index, dim) }",
        pick,
        flat(lambda m, x: pick(m.inner(x), m.order, 1)),
        ROWS,
    ),
    "movement by sizes": (
        "op own(x: t[...]) -> t { attr extents: ints = none\n trait movement\n"
        " meaning own.f(x, extents) }",
        laid,
        flat(lambda m, x: laid(m.inner(x), (-1, 1, 8))[:, 0]),
        ROWS,
    ),
    "movement by the sizes of another": (
        "op own(x: t[...], other: t) -> t { trait movement\n meaning own.f(x, other) }",
        laid_like,
        flat(lambda m, x: laid_like(m.inner(x), m.side(x))),
        ROWS,
    ),
    "movement into parts": (
        "op own(x: t[...]) -> t { attr parts: int = none\n attr dim: int = none\n"
        " trait movement, many\n meaning own.f(x, parts, dim) }",
        pieces,
        flat(lambda m, x: torch.cat(pieces(m.inner(x), 3, 1)[::-1], 1)),
        ROWS,
    ),
    "movement by positions": (
        "op own(x: t[...]) -> t { attr dim: int = none\n attr first: int = none\n"
        " attr count: int = none\n trait movement\n meaning own.f(x, dim, first, count) }",
        window,
        flat(lambda m, x: window(m.inner(x), 1, 2, 5), 5),
        ROWS,
    ),
    "equation": (
        'op own(xs...: f) -> f { attr equation: str = none\n trait equation\n'
        " meaning own.f(xs, equation) }",
        contract,
        flat(lambda m, x: contract([m.inner(x), m.side(x)], "bi,bi->bi")),
        ROWS,
    ),
    "pads": (
        "op own(x: f[...]) -> f { attr pad: ints = none\n trait resize, pads\n"
        " meaning own.f(x, pad) }",
        rim,
        Images(lambda m, x: rim(x, (1, 1, 0, 2))),
        IMAGE,
    ),
    "resize": (
        "op own(x: f[N, C, ...]) -> f { attr factor: float = 2.0\n trait resize\n"
        " meaning own.f(x, factor) }",
        enlarge,
        Images(lambda m, x: enlarge(x, 2.0)),
        IMAGE,
    ),
    "an axis that keeps its size": (
        "op own(x: f[..., H, W]) -> f[..., HO, WO] { attr sizes: any = none\n"
        " dim HO = sizes.0\n dim WO = sizes.1\n trait pooling\n meaning own.f(x, sizes) }",
        mean_of,
        Images(lambda m, x: mean_of(x.transpose(1, 2), (None, 3)).transpose(1, 2)),
        IMAGE,
    ),
}  # fmt: skip


def cut(case: str) -> lissom.Result:
    text, function, model, x = CASES[case]
    ops = {"own.f": function}
    return lissom.compile(model.eval(), text + CUTS, inputs=(x,), ops=ops)


@pytest.mark.parametrize("case", CASES)
def test_channels_are_cut_through(case: str) -> None:
    result = cut(case)
    assert "inner" in str([event.site for event in result.applied]), [
        event.reason for event in result.journal.of(Refused)
    ]


def test_what_gives_its_sizes_is_cut_too() -> None:
    kept = cut("movement by the sizes of another").model.state_dict()
    assert {len(kept["inner.weight"]), len(kept["side.weight"])} == {4}


@pytest.mark.parametrize("case", ["movement by sizes", "movement by positions"])
def test_a_setting_that_is_a_size_follows_the_cut(case: str) -> None:
    """The own function stays: no selection of positions takes its place."""
    targets = [node.target for node in cut(case).model.graph.nodes]
    assert CASES[case][1] in targets
    assert torch.index_select not in targets
