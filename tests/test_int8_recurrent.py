"""Recurrent layers in integers: what they compute, and the rules that make them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.export.exportable import exportable
from lissom.rewrite.export.taps import spelled
from lissom.rewrite.journal import Refused
from lissom.rewrite.measure.integer_layers import runs_of
from lissom.rewrite.runtime import (
    Int8LSTM,
    fake_quantize_rows,
    int8_lstm,
    quantize_rows,
    row_scale,
)

from .support import Fn, library
from .test_int8_layers import kernel_runs

NAMES = ("input.weight", "input.scale", "input.bias", "state.weight", "state.scale")


def drawn(inputs: int = 5, hidden: int = 4, **more: Any) -> Int8LSTM:
    torch.manual_seed(0)
    layer = Int8LSTM(inputs, hidden, **more)
    for part in (layer.input, layer.state):
        part.weight.copy_(torch.randint(-127, 128, part.weight.shape))
        part.scale.copy_((0.5 + torch.rand(4 * hidden)) / 127)
    assert layer.input.bias is not None
    layer.input.bias.copy_(torch.randn(4 * hidden))
    return layer


def coded(x: Tensor) -> tuple[Tensor, Tensor]:
    return quantize_rows(x, row_scale(x)), row_scale(x)


def plain(layer: Int8LSTM, x: Tensor) -> Tensor:
    tensors = (layer.get_parameter(name).detach() for name in NAMES)
    tensors = (t.to(x.dtype) if t.is_floating_point() else t for t in tensors)
    return int8_lstm(*coded(x), *tensors, layer.batch_first, layer.reverse)


def by_cells(layer: Int8LSTM, x: Tensor) -> Tensor:
    """A cell of torch with the numbers that codes stand for, one step after another [T, N, I]."""
    cell = nn.LSTMCell(layer.input_size, layer.hidden_size).double()
    with torch.no_grad():
        cell.weight_ih.copy_(layer.input.weight.double() * layer.input.scale[:, None].double())
        cell.weight_hh.copy_(layer.state.weight.double() * layer.state.scale[:, None].double())
        cell.bias_ih.copy_(layer.input.bias)
        cell.bias_hh.zero_()
        state = torch.zeros(2, x.shape[1], layer.hidden_size, dtype=torch.float64)
        found = []
        for step in x:
            hidden, kept = cell(fake_quantize_rows(step), (fake_quantize_rows(state[0]), state[1]))
            state = torch.stack([hidden, kept])
            found.append(hidden)
    return torch.stack(found)


def test_it_is_a_cell_of_torch_on_numbers_that_have_codes() -> None:
    layer, x = drawn(), torch.randn(7, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(plain(layer, x), by_cells(layer, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
def test_layouts_and_directions_are_those_of_torch(reverse: bool) -> None:
    x = torch.randn(6, 3, 5)
    along, across = drawn(reverse=reverse), drawn(batch_first=True, reverse=reverse)
    want = along(*coded(x))
    assert torch.equal(across(*coded(x.transpose(0, 1))).transpose(0, 1), want)
    alone = [along(*coded(x[:, n])) for n in range(3)]
    torch.testing.assert_close(torch.stack(alone, 1), want, rtol=0, atol=1e-5)
    turned = drawn(reverse=not reverse)(*coded(x.flip(0)))
    assert torch.equal(turned.flip(0), want)
    assert along(*coded(x[:, :0])).shape == (6, 0, 4)


def test_kernels_give_the_bits_of_plain_torch() -> None:
    for inputs, hidden in ((5, 4), (64, 32), (1, 1)):
        layer, x = drawn(inputs, hidden), torch.randn(5, 2, inputs)
        assert torch.equal(layer(*coded(x)), plain(layer, x))
        assert layer.state.ran == "oneDNN" or not kernel_runs()


def test_a_sequence_with_nan_spoils_no_other() -> None:
    layer, x = drawn(), torch.randn(4, 3, 5)
    want = layer(*coded(x))
    x[1, 2, 0] = torch.nan
    found = layer(*coded(x))
    assert torch.equal(found[:, :2], want[:, :2])
    assert torch.equal(found[:1], want[:1])
    assert found[1:, 2].isnan().all()


# -- rules -----------------------------------------------------------------------------------------

STAGE = "once int8_lstm_dynamic; once int8_lstm_bidirectional_dynamic"


class Reader(nn.Module):
    def __init__(self, **layout: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = nn.LSTM(6, 8, **layout)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.rnn(x)[0])


def compiled(model: nn.Module, x: Tensor, rules: str = "") -> Any:
    data = [(torch.randn(x.shape, dtype=x.dtype), torch.zeros(len(x))) for _ in range(2)]
    given = f'data calib = sample("train", all)\nstage snap {{ {STAGE} }}'
    text = f"{rules or library('dynamic')}\npipeline p {{ {given} }}"
    return lissom.compile(model.eval(), text, inputs=(x,), data=data)


def reasons(result: Any) -> set[str]:
    return {event.reason for event in result.journal.of(Refused)}


def layers_of(result: Any) -> list[Int8LSTM]:
    return [part for part in result.model.modules() if isinstance(part, Int8LSTM)]


def apart(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize(
    ("layout", "count"),
    [({}, 1), ({"batch_first": True}, 1), ({"bidirectional": True, "batch_first": True}, 2)],
)
def test_trained_layers_become_integer(layout: dict[str, Any], count: int, tmp_path: Path) -> None:
    model, x = Reader(**layout).eval(), torch.randn(3, 5, 6)
    result = compiled(model, x)
    assert len(layers_of(result)) == count
    assert [layer.reverse for layer in layers_of(result)] == [False, True][:count]
    assert apart(result.model(x), model(x)) < 0.02
    assert result.after.bytes < result.before.bytes / 2
    assert result.after.macs == result.before.macs
    steps = 5 if layout.get("batch_first") else 3
    ran = runs_of(result.model, (x,))
    assert [times for _, times in ran.values()] == [1, steps] * count
    result.save(tmp_path / "small")  # reads it in a process of its own and compares
    assert torch.equal(lissom.load(tmp_path / "small")(x), result.model(x))
    longer = torch.randn(4, 9, 6)
    assert apart(result.model(longer), model(longer)) < 0.02


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("input_scale = si", "input_scale = sh"),
        ("input_bias = b", "input_bias = l.bias_ih_l0"),
        ("q = quantize_rows(x, s)", "q = quantize_rows(x, 2 * s)"),
        ("reverse = true", "reverse = false"),
        ("y = cat(h, g, dim = -1)", "y = cat(g, h, dim = -1)"),
    ],
)
def test_mistakes_are_found_whatever_the_budget_allows(right: str, wrong: str) -> None:
    before, clause, after = library("dynamic").rpartition("  rewrite {")
    assert right in after
    rules = before + clause + after.replace(right, wrong)
    rules = rules.replace("error(y) <= 5%", "error(y) <= 9000%")
    with pytest.raises(LissomError) as caught:
        compiled(Reader(bidirectional=True), torch.randn(3, 2, 6), rules)
    assert caught.value.diagnostics[0].code == "V101"


def test_what_stays_says_why() -> None:
    x = torch.randn(3, 2, 6)
    stacked = compiled(Reader(num_layers=2), x)
    assert layers_of(stacked) == []
    model = Fn(lambda m, x: m.rnn(x)[0] + m.rnn(x)[1][0], rnn=nn.LSTM(6, 8))
    assert layers_of(compiled(model, x)) == []
    wide = compiled(Reader().double(), x.double())
    assert layers_of(wide) == []
    assert "integer kernels give float32, the model computes in float64" in reasons(wide)
    twice = Fn(lambda m, x: m.rnn(m.rnn(x)[0])[0], rnn=nn.LSTM(6, 6))
    found = compiled(twice, x)
    assert layers_of(found) == []
    assert any("its weight is shared with" in text for text in reasons(found))


def test_a_small_one_is_told_to_be_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are calls from Python: what they cost is more than a small product in float32."""
    model, x = Reader(bidirectional=True), torch.randn(3, 2, 6)
    told = [note.message for note in compiled(model, x).notes if note.code == "W706"]
    assert "2 LSTM layers in integers step in Python" in told[-1]
    monkeypatch.setattr("lissom.rewrite.pipeline.remarks.LEAST_UNITS", 8)
    assert [note for note in compiled(model, x).notes if "step in Python" in note.message] == []


def test_onnx_has_no_form_for_it(tmp_path: Path) -> None:
    result = compiled(Reader(), torch.randn(3, 2, 6))
    result.save(tmp_path / "small")
    with pytest.raises(LissomError) as caught:
        spelled(exportable(tmp_path / "small"))
    (error,) = caught.value.diagnostics
    assert error.code == "A040"
    assert "is an LSTM in integers, which ONNX has no form for" in error.message
