"""torch.nn's transformers are traced through, as far as that gives the very same bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.capture.capture import Captured, capture
from lissom.rewrite.graph.index import GraphView
from tests.captured import codes, same
from tests.support import run

SIZES: dict[str, Any] = {"d_model": 16, "nhead": 2, "dim_feedforward": 32}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@contextmanager
def fast_path(enabled: bool) -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def encoder(layers: int = 2, **more: Any) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(**SIZES, batch_first=True, **more)
    return nn.TransformerEncoder(layer, layers).eval()


def ops(captured: Captured) -> list[str]:
    """The ops of the graph that have weights."""
    view = GraphView(captured.module)
    calls = [call for node in captured.module.graph.nodes if (call := view.call(node)) is not None]
    return [call.op.name for call in calls if call.op.params]


ENCODER = ["multihead_attention", "layer_norm", "linear", "linear", "layer_norm"]
DECODER = [*ENCODER[:2], *ENCODER]
ENCODER_FIRST = ["layer_norm", "multihead_attention", "layer_norm", "linear", "linear"]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    ("more", "found"),
    [
        ({}, ENCODER),
        ({"activation": "gelu"}, ENCODER),
        ({"norm_first": True}, ENCODER_FIRST),
        ({"bias": False}, ENCODER),
    ],
)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_an_encoder_is_its_layers(fast: bool, more: dict[str, Any], found: list[str]) -> None:
    model, x = encoder(**more), torch.randn(2, 5, 16)
    with fast_path(fast):
        captured = capture(model, (x,))
        assert same(captured, model, torch.randn(3, 7, 16))
    assert captured.how == "trace"
    assert captured.opaque == captured.notes == ()
    assert ops(captured) == found * 2


def test_wide_layers_are_traced_bit_for_bit() -> None:
    """Here blocked kernels run, which small sizes do not reach."""
    layer = nn.TransformerEncoderLayer(256, 8, 1024, batch_first=True, activation="gelu").eval()
    captured = capture(layer, (torch.randn(2, 65, 256),))
    assert ops(captured) == ENCODER
    assert same(captured, layer, torch.randn(3, 33, 256))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("batch_first", [True, False])
def test_decoders_and_whole_transformers(batch_first: bool) -> None:
    layer = nn.TransformerDecoderLayer(**SIZES, batch_first=batch_first)
    decoder, x = nn.TransformerDecoder(layer, 2).eval(), torch.randn(2, 5, 16)
    assert ops(capture(decoder, (x, x))) == DECODER * 2
    whole = nn.Transformer(16, 2, 1, 1, 32, batch_first=batch_first).eval()
    captured = capture(whole, (x, x))
    assert ops(captured) == [*ENCODER, "layer_norm", *DECODER, "layer_norm"]
    assert same(captured, whole, x + 1, x)


def test_rules_reach_into_an_encoder() -> None:
    rule = """exact rule drop {
      match { y = dropout(x) as d }
      where { mode(d) == eval }
      rewrite { y = x }
    }"""
    driven = run(encoder(), torch.randn(2, 5, 16), rule).check()
    assert len(driven.sites("drop")) == 6
    assert "dropout" not in driven.ops()


class Masked(nn.Module):
    """Gives its encoder a mask that it makes itself, and in between computes something plain."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.encoder = encoder()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.encoder(self.first(x), mask=mask)


class Padded(Masked):
    """Says which positions are padding; torch then packs the others into a nested tensor."""

    def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        return self.encoder(self.first(x), src_key_padding_mask=padding)


PADDING = torch.arange(5) >= torch.tensor([[5], [3]])


@pytest.mark.parametrize(
    ("model", "more", "whole"),
    [
        (Masked, (), ["encoder.layers.0", "encoder.layers.1"]),
        (Padded, (PADDING,), ["encoder"]),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_layers_that_run_fused_with_a_mask_stay_whole(
    model: type[nn.Module], more: tuple[Any, ...], whole: list[str]
) -> None:
    built, x = model().eval(), torch.randn(2, 5, 16)
    captured = capture(built, (x, *more))
    called = [n.target for n in captured.module.graph.nodes if n.op == "call_module"]
    assert called == ["first", *whole]
    assert [text.partition(":")[0] for text in captured.opaque] == whole
    assert "M011" in codes(captured)
    note = next(note for note in captured.notes if note.code == "M011")
    assert [label.where for label in note.labels] == whole
    assert "set_fastpath_enabled(False)" in note.helps[0]
    assert same(captured, built, x - 1, *more)


@pytest.mark.parametrize(("model", "more"), [(Masked, ()), (Padded, (PADDING,))])
def test_the_remedy_opens_them(model: type[nn.Module], more: tuple[Any, ...]) -> None:
    built, x = model().eval(), torch.randn(2, 5, 16)
    with fast_path(False):
        captured = capture(built, (x, *more))
        assert same(captured, built, x - 1, *more)
    assert ops(captured) == ["linear", *ENCODER * 2]
    assert "M011" not in codes(captured)


def test_a_model_that_is_such_a_layer_itself_is_told_the_remedy() -> None:
    layer = nn.TransformerEncoderLayer(**SIZES, batch_first=True).eval()
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    with pytest.raises(LissomError, match="M005") as caught:
        capture(layer, (torch.randn(2, 5, 16), mask))
    assert "set_fastpath_enabled(False)" in caught.value.diagnostics[0].helps[-1]
