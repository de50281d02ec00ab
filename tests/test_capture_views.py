"""Weights that are views of a parameter: stored where nothing is tied, left alone elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lissom.rewrite.capture.capture import Captured, capture
from lissom.rewrite.graph.index import GraphView

from .captured import Lambda, same
from .support import library, run

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
Forward = Callable[[Any, torch.Tensor], Any]


def model_of(forward: Forward) -> nn.Module:
    torch.manual_seed(0)
    return Lambda(forward, w=nn.Parameter(torch.randn(6, 6)), b=nn.Parameter(torch.randn(6))).eval()


def readable(captured: Captured) -> int:
    """How many contractions rules can read."""
    view = GraphView(captured.module)
    return len(view.calls_of("linear")) + len(view.calls_of("conv1d"))


def halves(m: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([F.linear(x, m.w[:2], m.b[:2]), F.linear(x, m.w[2:], m.b[2:])], -1)


def chunks(m: Any, x: torch.Tensor) -> list[torch.Tensor]:
    pairs = zip(m.w.chunk(3), m.b.chunk(3), strict=True)
    return [F.linear(x, weight, bias) for weight, bias in pairs]


ALONE: dict[str, tuple[Forward, list[tuple[int, ...]]]] = {
    "turned": (lambda m, x: F.linear(x, m.w.t()), [(6, 6)]),
    "property": (lambda m, x: F.linear(x, m.w.mT, m.b), [(6,), (6, 6)]),
    "an axis more": (lambda m, x: F.conv1d(x[..., None], m.w.unsqueeze(-1)), [(6, 6, 1)]),
    "some rows": (lambda m, x: F.linear(x, m.w[1:5]), [(4, 6)]),
    "gain and shift": (lambda m, x: F.linear(x, m.w) * m.b.view(1, -1), [(1, 6), (6, 6)]),
    "halves": (halves, [(2,), (2, 6), (4,), (4, 6)]),
    "chunks": (chunks, [(2,), (2,), (2,), (2, 6), (2, 6), (2, 6)]),
}


@pytest.mark.parametrize("name", ALONE)
def test_a_view_that_nobody_shares_is_a_weight(name: str) -> None:
    forward, shapes = ALONE[name]
    model = model_of(forward)
    captured = capture(model, (X,))
    held = list(captured.module.parameters())
    assert sorted(tuple(p.shape) for p in held) == sorted(shapes)
    assert len({p.untyped_storage().data_ptr() for p in held}) == len(held)
    assert readable(captured) == sum(len(shape) > 1 and shape[0] > 1 for shape in shapes)
    assert all(p.requires_grad for p in held)
    assert same(captured, model, torch.rand(5, 6))


TIED: dict[str, Forward] = {
    "itself, too": lambda m, x: F.linear(F.linear(x, m.w.t()), m.w),
    "rows in common": lambda m, x: (F.linear(x, m.w[:4]), F.linear(x, m.w[2:])),
    "read by something else": lambda m, x: F.linear(x, m.w.t()) + (m.w * x.sum()).sum(),
    "given out": lambda m, x: (F.linear(x, m.w[:4]), m.w[4:]),
    "columns": lambda m, x: F.linear(x[:, :3], m.w[:, :3]),
}


@pytest.mark.parametrize("name", TIED)
def test_a_view_of_what_others_read_stays_a_view(name: str) -> None:
    model = model_of(TIED[name])
    captured = capture(model, (X,))
    memory = {p.untyped_storage().data_ptr() for p in captured.module.parameters()}
    assert len(memory) == 1
    assert "w" in dict(captured.module.named_parameters())
    assert same(captured, model, torch.rand(5, 6))


def test_a_gain_of_channels_folds_into_the_layer_before() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        return m.conv(x) * m.gain[:, None] + m.shift.reshape(1, -1, 1)

    torch.manual_seed(0)
    own = {name: nn.Parameter(torch.randn(4)) for name in ("gain", "shift")}
    model = Lambda(forward, conv=nn.Conv1d(6, 4, 1), **own).eval()
    driven = run(model, X[..., None], library("fold")).check()
    assert driven.applied == 2
    assert not {"mul", "add"} & set(driven.ops())


def test_what_is_given_to_other_calls_stays_a_view() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x, x, attn_mask=m.b[:3].expand(3, 3))

    model = model_of(forward)
    captured = capture(model, (X,))
    assert "b" in dict(captured.module.named_parameters())
    assert same(captured, model, X)


def test_a_view_of_the_weight_of_a_layer_stays_a_view() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 6)
    model = Lambda(lambda m, x: F.linear(m.layer(x), m.layer.weight.t()), layer=layer).eval()
    captured = capture(model, (X,))
    assert readable(captured) == 1
    assert set(dict(captured.module.named_parameters())) == {"layer.weight", "layer.bias"}
    assert same(captured, model, torch.rand(5, 6))
