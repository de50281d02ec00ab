"""Integer layers whose scales are found when they run, one for each row."""

from __future__ import annotations

import copy
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.capture.capture import capture
from lissom.rewrite.graph.emit import emit
from lissom.rewrite.graph.index import GraphView
from lissom.rewrite.graph.own import declared
from lissom.rewrite.journal import Refused
from lissom.rewrite.ops.vocabulary import Vocabulary
from lissom.rewrite.runtime import (
    Int8LinearRows,
    fake_quantize_rows,
    int8_linear_rows,
    kernels,
    quantize_rows,
    row_scale,
)

from .support import Fn, library
from .test_int8_layers import fixed, kernel_runs, tensors

TINY = torch.finfo(torch.float32).tiny


def drawn(draw: random.Random, inputs: int, outputs: int) -> Int8LinearRows:
    weight, scale, bias = tensors(draw, outputs, inputs)
    layer = Int8LinearRows(inputs, outputs, bias is not None)
    layer.weight, layer.scale = fixed(weight), fixed(scale)
    layer.bias = None if bias is None else fixed(bias)
    return layer


def coded(x: Tensor) -> tuple[Tensor, Tensor]:
    return quantize_rows(x, row_scale(x)), row_scale(x)


def strange() -> Tensor:
    """Rows that hold zeros alone, an infinity, nan, numbers below every scale, one number, and
    usual ones.
    """
    torch.manual_seed(0)
    x = torch.randn(7, 12)
    x[1], x[2, 3], x[3, 4], x[4], x[5] = 0, -math.inf, math.nan, 1e-42, 2.5
    return x


def test_codes_are_multiples_of_a_scale_for_each_row() -> None:
    """The same in Python's numbers."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9)
    x[0, 0] = torch.tensor([127.0, 0.5, 1.5, -2.5, 63.5, -126.5, 0, -0.5, 126.5])  # halves
    codes, scale = coded(x)
    assert (codes.dtype, codes.shape, scale.shape) == (torch.uint8, x.shape, (2, 3, 1))
    for row, found, step in zip(x.view(6, 9), codes.view(6, 9), scale.view(6), strict=True):
        most = row.abs().max() / 127
        assert step == most
        assert found.tolist() == [round((n / most).item()) + 128 for n in row]
    assert (128.0 - codes.min(), codes.max() - 128.0) == (127, 127)
    assert torch.equal((codes.float() - 128) * scale, fake_quantize_rows(x))
    assert ((fake_quantize_rows(x) - x).abs() <= scale * 0.5001).all()


def test_strange_rows_spoil_no_other() -> None:
    x = strange()
    codes, scale = coded(x)
    layer = drawn(random.Random(0), 12, 5)
    found, faked = layer(codes, scale), fake_quantize_rows(x)
    assert scale.isnan().flatten().tolist() == [False, False, True, True, False, False, False]
    for rows in (found, faked):
        assert rows[2:4].isnan().all()
        assert rows[[0, 1, 4, 5, 6]].isfinite().all()
    assert scale[[1, 4]].flatten().tolist() == [TINY] * 2
    assert (codes[[1, 4]] == 128).all()
    assert (codes[5] == 255).all()
    bias = torch.zeros(5) if layer.bias is None else layer.bias
    assert torch.equal(found[1], bias)
    alone = [layer(*coded(x[n : n + 1]))[0] for n in (0, 1, 4, 5, 6)]
    assert torch.equal(found[[0, 1, 4, 5, 6]], torch.stack(alone))


@pytest.mark.parametrize("shape", [(0, 12), (2, 0, 12), (12,), (1, 12), (2, 3, 12), (2, 1, 3, 12)])
def test_every_layer_gives_the_bits_of_plain_torch(shape: tuple[int, ...]) -> None:
    draw, x = random.Random(0), torch.randn(shape)
    for outputs in (1, 5, 33):
        layer = drawn(draw, 12, outputs)
        codes, scale = coded(x)
        found = layer(codes, scale)
        assert found.shape == (*shape[:-1], outputs)
        assert torch.equal(found, layer._plain(codes, scale))
        strided = codes.repeat_interleave(2, -1)[..., ::2]
        assert torch.equal(layer(strided, scale), found)
        if kernel_runs():
            none = "plain torch: there are no samples"
            assert layer.ran == ("oneDNN" if x.numel() else none)


def test_plain_torch_is_whole_numbers() -> None:
    codes = torch.tensor([[1, 255, 128], [17, 4, 200]], dtype=torch.uint8)
    weight = torch.tensor([[127, -127, 1], [3, 0, -128]], dtype=torch.int8)
    scale, rows = torch.tensor([0.5, 0.25]), torch.tensor([[2.0], [0.125]])
    found = int8_linear_rows(codes, weight, scale, torch.tensor([0.5, -1.0]), rows)
    for numbers, row, step in zip(found.tolist(), codes.tolist(), (2.0, 0.125), strict=True):
        for number, weights, s, b in zip(
            numbers, weight.tolist(), (0.5, 0.25), (0.5, -1.0), strict=True
        ):
            total = sum((c - 128) * w for c, w in zip(row, weights, strict=True))
            assert number == total * s * step + b


def test_a_row_of_nan_in_front_hides_no_kernel_and_no_fault(monkeypatch: Any) -> None:
    x = strange().flip(0)[4:]
    assert x[0].isinf().any()
    layer = drawn(random.Random(1), 12, 8)
    layer(*coded(x))
    right = kernels.linear
    assert layer.ran == "oneDNN" or not kernel_runs()
    monkeypatch.setattr(
        kernels, "linear", lambda *given: lambda codes: right(*given)(codes).index_fill(
            0, torch.tensor(0), 1.0
        )
    )  # fmt: skip
    other = copy.deepcopy(layer)
    other(*coded(x))
    assert str(other.ran).startswith("plain torch")


def test_scales_are_needed() -> None:
    codes, _ = coded(torch.randn(2, 12))
    with pytest.raises(TypeError, match="a scale for each row"):
        drawn(random.Random(0), 12, 3)(codes)


def test_on_a_cpu_without_vnni_all_of_it_holds() -> None:
    program = """
import random
import torch
from tests.test_int8_rows import coded, drawn
draw = random.Random(0)
for inputs in (3, 64, 200):
    layer, x = drawn(draw, inputs, 9), torch.ones(4, inputs)
    layer.weight.fill_(127)
    assert torch.equal(layer(*coded(x)), layer._plain(*coded(x)))
    layer.weight.fill_(63)
    assert torch.equal(layer(*coded(x)), layer._plain(*coded(x))), layer.ran
"""
    env = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


# -- ops -------------------------------------------------------------------------------------------


class Coded(nn.Module):
    """Written by hand with what `runtime/` has."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = drawn(random.Random(0), 12, 5)

    def forward(self, x: Tensor) -> Tensor:
        scale = row_scale(x)
        return fake_quantize_rows(self.layer(quantize_rows(x, scale), scale))


def test_a_model_that_calls_them_is_captured_as_ops() -> None:
    x, model = torch.randn(3, 12), Coded().eval()
    with declared(Vocabulary.library()):
        found = capture(model, (x,)).module
    view = GraphView(found)
    calls = [view.call(node) for node in found.graph.nodes if node.op.startswith("call_")]
    names = [call.op.name for call in calls if call is not None]
    assert names == ["row_scale", "quantize_rows", "int8_linear_rows", "fake_quantize_rows"]
    assert torch.equal(found(x), model(x))
    call = next(call for call in calls if call is not None and call.params)
    params = {name: call.tensor(name) for name in call.params}
    made, inputs = emit(call.op, (*coded(x),), params, call.attrs, model.layer), coded(x)
    assert type(made.layer) is Int8LinearRows
    assert torch.equal(made.run(*inputs), model.layer(*inputs))
    for call in calls:
        assert call is not None
        assert call.op.result_specs(call) == (call.node.meta["val"],)
    assert calls[2].op.macs(calls[2].op.bind(calls[2].shapes(), {})) == 3 * 12 * 5


# -- rules -----------------------------------------------------------------------------------------

SNAP = "stage snap { once int8_linear_dynamic }"
STAGES = f"{SNAP} stage join {{ fixpoint {{ merge_row_scale; merge_quantize_rows }} }}"


class Block(nn.Module):
    """Two layers that read one value, and one behind."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 8), nn.Linear(6, 8, bias=False), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.a(x)) * self.b(x))


def block() -> nn.Module:
    torch.manual_seed(0)
    return Block().eval()


def compiled(model: nn.Module, x: Tensor, stages: str = STAGES, rules: str = "") -> Any:
    data = [(torch.randn(8, *x.shape[1:], dtype=x.dtype), torch.zeros(8)) for _ in range(2)]
    given = f'data calib = sample("train", all)\n{stages}'
    text = f"{rules or library('dynamic', 'attention')}\npipeline p {{ {given} }}"
    return lissom.compile(model, text, inputs=(x,), data=data)


def targets(result: Any, function: Any) -> int:
    return [node.target for node in result.model.graph.nodes].count(function)


def layers_of(result: Any) -> list[Int8LinearRows]:
    return [part for part in result.model.modules() if isinstance(part, Int8LinearRows)]


def apart(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def reasons(result: Any) -> set[str]:
    return {event.reason for event in result.journal.of(Refused)}


def test_layers_compute_in_integers_without_calibration() -> None:
    model, x = block(), torch.randn(4, 3, 6)
    before = copy.deepcopy(model.state_dict())
    result = compiled(model, x)
    assert len(layers_of(result)) == 3
    assert apart(result.model(x), model(x)) < 0.02
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert result.after.params == result.before.params + 8 + 8 + 5  # the scales
    # Numbers that no data showed stay numbers: a range of data would end at theirs.
    far = 1e4 * torch.randn(2, 3, 6)
    assert apart(result.model(far), model(far)) < 0.05


def test_one_value_becomes_codes_once() -> None:
    result = compiled(block(), torch.randn(4, 3, 6))
    assert (targets(result, row_scale), targets(result, quantize_rows)) == (2, 2)
    assert targets(compiled(block(), torch.randn(4, 6), SNAP), row_scale) == 3


def test_each_step_is_what_the_layers_say() -> None:
    """Computed beside them from the tensors that they hold, in plain torch."""
    x = torch.randn(4, 3, 6)
    result = compiled(block(), x)
    a, b, out = layers_of(result)

    def plain(layer: Int8LinearRows, x: Tensor) -> Tensor:
        step = x.abs().amax(-1, True) / 127
        whole = (x / step).round().double() @ layer.weight.double().t()
        y = whole.float() * layer.scale * step
        return y if layer.bias is None else y + layer.bias

    want = plain(out, torch.tanh(plain(a, x)) * plain(b, x))
    assert torch.equal(result.model(x), want)


def test_a_row_is_the_same_in_every_batch() -> None:
    x = torch.randn(6, 3, 6)
    result = compiled(block(), x)
    alone = torch.cat([result.model(row[None]) for row in x])
    torch.testing.assert_close(alone, result.model(x), rtol=1e-6, atol=1e-6)
    assert result.model(x[:0]).shape == (0, 3, 5)


class Attended(nn.Module):
    """torch's own attention, with or without the weights that nobody reads."""

    def __init__(self, **layout: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention, self.out = nn.MultiheadAttention(8, 2, **layout), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.attention(x, x, x, need_weights=False)[0])


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


@pytest.mark.parametrize(
    ("make", "layers", "read"),
    [
        (lambda: Attended(batch_first=True), 5, 3),
        (lambda: Attended(batch_first=False), 5, 3),
        (encoder, 6, 4),
    ],
    ids=["batch first", "time first", "encoder layer"],
)
def test_projections_of_attention_read_codes_of_one_value(
    make: Any, layers: int, read: int
) -> None:
    model, x = make().eval(), torch.randn(4, 5, 8)
    opened = "stage open { fixpoint { open_attention; open_attention_time_first } }"
    result = compiled(model, x, opened + STAGES)
    assert len(layers_of(result)) == layers
    assert (targets(result, row_scale), targets(result, quantize_rows)) == (read, read)
    assert apart(result.model(x), model(x)) < 0.03


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_stay(dtype: torch.dtype) -> None:
    result = compiled(block().to(dtype), torch.randn(4, 6).to(dtype))
    assert layers_of(result) == []
    said = f"integer kernels give float32, the model computes in {str(dtype)[6:]}"
    assert said in reasons(result)


def test_a_shared_weight_and_an_infinite_one_stay() -> None:
    model = Fn(lambda m, x: m.b(torch.relu(m.b(x))), b=nn.Linear(4, 4))
    result = compiled(model, torch.randn(3, 4))
    assert layers_of(result) == []
    assert any("its weight is shared with" in text for text in reasons(result))
    model = block()
    with torch.no_grad():
        model.a.weight[0, 0] = math.inf
    result = compiled(model, torch.randn(3, 6))
    assert any("infinite or nan" in text for text in reasons(result))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("scale = sw, bias", "scale = sw[0] * ones(O), bias"),
        ("bias = c.bias", "bias = none"),
        ("q = quantize_rows(x, s)", "q = quantize_rows(x, 2 * s)"),
        ("x := fake_quantize_rows(x)", "x := fake_quantize(x, scale = 0.01, zero = 128)"),
    ],
)
def test_mistakes_are_found_whatever_the_budget_allows(right: str, wrong: str) -> None:
    rules = library("dynamic")
    assert right in rules
    rules = rules.replace(right, wrong).replace("error(y) <= 5%", "error(y) <= 900%")
    with pytest.raises(LissomError) as caught:
        compiled(block(), torch.randn(4, 6), SNAP, rules)
    assert caught.value.diagnostics[0].code == "V101"


def test_a_kernel_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "why_none", lambda *_: "this processor is too old")
        result = compiled(block(), torch.randn(4, 6))
    (told,) = (note for note in result.notes if note.code == "W706")
    assert told.message.startswith("3 integer layers run in plain torch, ")
    x = torch.randn(4, 6)
    result.save(tmp_path / "small")  # reads it in a process of its own and compares
    assert torch.equal(lissom.load(tmp_path / "small")(x), result.model(x))
