"""Integer layers give the bits of their plain arithmetic, whatever runs them."""

from __future__ import annotations

import copy
import io
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lissom.rewrite.runtime import int8, kernels, layers

CONVS = {1: layers.Int8Conv1d, 2: layers.Int8Conv2d, 3: layers.Int8Conv3d}


def codes_of(draw: random.Random, *shape: int) -> Tensor:
    """Codes, both ends of the range among them."""
    generator = torch.Generator().manual_seed(draw.randrange(1 << 30))
    codes = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    ends = torch.rand(shape, generator=generator)
    return codes.where(ends < 0.9, 255 * (ends < 0.95).to(torch.uint8))


def settings(draw: random.Random) -> dict[str, Any]:
    """An odd zero point and an even one; scales at which many results lie between two codes."""
    return {
        "zero": draw.choice((0, 7, 128, 255)),
        "activation": draw.choice(sorted(int8.ACTIVATIONS)),
        "output_scale": draw.choice((None, 0.037, 0.5)),
        "output_zero": draw.choice((0, 13, 128, 255)),
        "other_scale": draw.choice((0.02, 0.25)),
        "other_zero": draw.choice((0, 9, 255)),
    }


def tensors(draw: random.Random, *shape: int) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(draw.randrange(1 << 30))
    weight = torch.randint(-127, 128, shape, dtype=torch.int8, generator=generator)
    scale = 2.0 ** -torch.randint(8, 14, shape[:1], generator=generator)
    scale = scale * (1 if draw.random() < 0.5 else torch.rand(shape[:1], generator=generator))
    bias = torch.randn(shape[:1], generator=generator) if draw.random() < 0.6 else None
    return weight, scale, bias


def layer_of(
    kind: Any, weight: Tensor, scale: Tensor, bias: Tensor | None = None, **settings: Any
) -> Any:
    """A layer with these tensors."""
    outputs, inputs, *kernel = weight.shape
    sizes = (inputs * settings.get("groups", 1), outputs, *([tuple(kernel)] if kernel else []))
    layer = kind(*sizes, bias=bias is not None, **settings)
    given = {"weight": weight, "scale": scale, "bias": bias}
    for name, tensor in given.items():
        if tensor is not None:
            setattr(layer, name, fixed(tensor))
    return layer


def fixed(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def convolution(draw: random.Random) -> tuple[layers.Int8Layer, Tensor]:
    axes = draw.choice((1, 2, 2, 3))
    groups, wide = draw.choice((1, 1, 2, 5)), draw.choice((1, 3, 8))
    inputs, outputs = groups * draw.choice((1, wide)), groups * wide
    kernel = [draw.choice((1, 2, 3)) for _ in range(axes)]
    sizes = [draw.choice((5, 6, 9)) for _ in range(axes)]
    given = {
        "stride": tuple(draw.choice((1, 2)) for _ in kernel),
        "padding": tuple(draw.choice((0, 1, 2)) for _ in kernel),
        "dilation": tuple(draw.choice((1, 1, 2)) for _ in kernel),
        "groups": groups,
    }
    own = tensors(draw, outputs, inputs // groups, *kernel)
    layer = layer_of(CONVS[axes], *own, **given, **settings(draw))
    return layer, codes_of(draw, 2, inputs, *sizes)


def linear(draw: random.Random) -> tuple[layers.Int8Layer, Tensor]:
    inputs, outputs = draw.choice((1, 5, 16, 64)), draw.choice((1, 3, 16))
    lead = draw.choice(((4,), (1,), (2, 3), (2, 1, 3)))
    layer = layer_of(layers.Int8Linear, *tensors(draw, outputs, inputs), **settings(draw))
    return layer, codes_of(draw, *lead, inputs)


def drawn(count: int) -> Iterator[tuple[layers.Int8Layer, Tensor, Tensor | None]]:
    draw = random.Random(0)
    for _ in range(count):
        layer, codes = draw.choice((linear, convolution))(draw)
        result = layer._plain(codes, None)
        other = codes_of(draw, *result.shape) if draw.random() < 0.4 else None
        yield layer, codes, other


def test_every_layer_gives_the_bits_of_plain_torch() -> None:
    ran = set()
    for layer, codes, other in drawn(250):
        before = None if other is None else other.clone()
        wanted = layer._plain(codes, other)
        found = layer(codes, other)
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted), (layer, layer.ran)
        assert before is None or torch.equal(before, other)  # a kernel would add in place
        ran.add(str(layer.ran).partition(":")[0])
    if kernel_runs():
        assert {"oneDNN", "oneDNN, the rest plain torch"} <= ran


def test_plain_torch_is_whole_numbers() -> None:
    """The same in Python's integers and fractions, on numbers that round to a tie."""
    codes = torch.tensor([[0, 255, 3], [17, 4, 200]], dtype=torch.uint8)
    weight = torch.tensor([[127, -127, 1], [3, 0, -128]], dtype=torch.int8)
    scale, bias = torch.tensor([0.5, 0.25]), torch.tensor([0.5, -1.0])
    found = int8.int8_linear(codes, weight, scale, bias, zero=7, output_scale=0.5, output_zero=129)
    for row, codes_row in zip(found.tolist(), codes.tolist(), strict=True):
        for code, weights, s, b in zip(
            row, weight.tolist(), scale.tolist(), bias.tolist(), strict=True
        ):
            total = sum((c - 7) * w for c, w in zip(codes_row, weights, strict=True))
            assert code == min(255, max(0, round((total * s + b) / 0.5 + 129)))


@pytest.mark.parametrize("zero", [0, 1, 128, 255])
def test_halves_round_to_the_even_code_after_the_zero_point(zero: int) -> None:
    """Rounding first and adding then would move every tie of an odd zero point."""
    x = torch.arange(-300, 300) * 0.5
    wanted = torch.tensor([min(255, max(0, round(n / 2 + zero))) for n in range(-300, 300)])
    assert torch.equal(int8.quantize(x, 1.0, zero).long(), wanted)


def test_codes_stand_for_numbers_within_half_a_step() -> None:
    x = torch.linspace(-1.0, 2.0, 1001)
    back = int8.dequantize(int8.quantize(x, 3 / 255, 85), 3 / 255, 85)
    assert (back - x).abs().max() <= 3 / 255 / 2 * 1.001
    assert int8.quantize(x.bfloat16(), 3 / 255, 85).dtype == torch.uint8


def of_8_by_4(**more: Any) -> layers.Int8Linear:
    torch.manual_seed(0)
    weight = torch.randint(-127, 128, (8, 4), dtype=torch.int8)
    tensors = weight, torch.rand(8) * 1e-2, torch.randn(8)
    return layer_of(layers.Int8Linear, *tensors, zero=9, **more)


CODES = torch.arange(12, dtype=torch.uint8).reshape(3, 4) * 20


def kernel_runs() -> bool:
    """Whether this CPU has an integer kernel that gives the bits of plain torch."""
    layer = of_8_by_4()
    layer(CODES)
    return layer.ran == "oneDNN"


ONE_KERNEL = pytest.mark.skipif(not kernel_runs(), reason="no such integer kernel on this CPU")


@ONE_KERNEL
def test_texts_of_all_lengths_share_one_kernel_and_images_have_the_last_ones() -> None:
    layer = of_8_by_4()
    for rows in range(1, 20):
        codes = CODES[:1].expand(2, rows, 4)
        assert torch.equal(layer(codes), layer._plain(codes, None))
    assert len(layer._chosen) == 1
    image = layer_of(layers.Int8Conv1d, layer.weight.unsqueeze(2), layer.scale, layer.bias, zero=9)
    for rows in (*range(1, 20), 1):
        codes = CODES[:1, :, None].expand(1, 4, rows)
        assert torch.equal(image(codes), image._plain(codes, None))
    assert len(image._chosen) == layers.SHAPES


@ONE_KERNEL
def test_a_weight_that_changes_is_packed_again() -> None:
    layer = of_8_by_4()
    first = layer(CODES)
    layer.weight[0, 0] += 1
    assert not torch.equal(layer(CODES), first)
    assert torch.equal(layer(CODES), layer._plain(CODES, None))
    layer.load_state_dict(of_8_by_4().state_dict())
    assert torch.equal(layer(CODES), first)
    layer.weight = fixed(layer.weight.flip(0))
    assert torch.equal(layer(CODES), layer._plain(CODES, None))
    assert layer.ran == "oneDNN"


@ONE_KERNEL
def test_strides_are_no_other_numbers() -> None:
    """oneDNN reads a strided weight, scale or bias as if it lay in order."""
    layer = of_8_by_4()
    want = layer(CODES)
    layer.weight = fixed(layer.weight.t().contiguous().t())
    layer.scale = fixed(torch.stack([layer.scale, layer.scale * 2], 1)[:, 0])
    layer.bias = fixed(torch.stack([layer.bias, layer.bias * 2], 1)[:, 0])
    assert not layer.weight.is_contiguous()
    assert not layer.scale.is_contiguous()
    assert torch.equal(layer(CODES), want)
    assert torch.equal(layer(CODES.t().contiguous().t()), want)
    assert layer.ran == "oneDNN"


def test_copies_and_files_hold_plain_tensors() -> None:
    layer = of_8_by_4(output_scale=0.1)
    want = layer(CODES)
    assert sorted(layer.state_dict()) == ["bias", "scale", "weight"]
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    copied = copy.deepcopy(layer)
    assert copied.ran is None
    assert torch.equal(copied(CODES), want)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(CODES), want)
    exported = torch.export.export(layer, (CODES,))
    assert torch.equal(exported.module()(CODES), want)


def test_what_no_kernel_may_run_says_why() -> None:
    layer = of_8_by_4()
    assert layer.ran is None
    assert layer(CODES[:0]).shape == (0, 8)
    assert layer.ran == "plain torch: there are no samples"
    assert torch.equal(layer(CODES), layer._plain(CODES, None))
    assert "no samples" not in str(layer.ran)
    layer.double()
    assert layer(CODES).dtype == torch.float64
    assert "these are torch.float64" in str(layer.ran)
    most = torch.full((1, 1 << 17), 127, dtype=torch.int8)
    long = layer_of(layers.Int8Linear, most, torch.ones(1))
    codes = torch.full((1, 1 << 17), 255, dtype=torch.uint8)
    assert long(codes).item() == 127 * 255 * (1 << 17)  # int32 would wrap
    assert long.ran == "plain torch: its sums may leave int32"


def test_without_vnni_wide_weights_stay_in_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "operators", lambda: {"any": 1})
    monkeypatch.setattr(kernels, "saturates", lambda: True)
    layer = of_8_by_4()
    layer(CODES)
    assert layer.ran == "plain torch: without VNNI, sums with weights beyond 64 saturate"


@ONE_KERNEL
@pytest.mark.parametrize("fault", ["lies", "raises", "wrong type"])
def test_a_faulty_kernel_is_found_before_it_is_used(
    monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    right = kernels.linear

    def faulty(codes: Tensor, *given: Any) -> Tensor:
        found = right(*given)(codes)
        if fault == "raises":
            raise RuntimeError("could not create a primitive")
        return found.double() if fault == "wrong type" else found.index_fill(0, torch.tensor(0), 1)

    monkeypatch.setattr(kernels, "linear", lambda *given: lambda codes: faulty(codes, *given))
    layer = of_8_by_4()
    assert torch.equal(layer(CODES), layer._plain(CODES, None))
    assert "oneDNN is wrong for [4] on this CPU" in str(layer.ran)


def test_shapes_at_which_onednn_is_wrong_stay_in_plain_torch() -> None:
    """With a zero point: where a window lies in the padding alone, now and then; where one channel
    gives more than 32, always.
    """
    draw = random.Random(0)
    codes = codes_of(draw, 2, 4, 7, 7)
    kind, four = layers.Int8Conv2d, {"zero": 79, "groups": 4}
    wide = layer_of(kind, *tensors(draw, 160, 1, 3, 3), stride=2, **four)
    outside = layer_of(kind, *tensors(draw, 4, 1, 1, 1), padding=1, **four)
    for layer in (wide, outside):
        assert torch.equal(layer(codes), layer._plain(codes, None))
    assert "a window may lie in the padding alone" in str(outside.ran)


@pytest.mark.parametrize(
    ("weight", "scale", "bias", "what"),
    [
        (torch.zeros(2, 3), torch.ones(2), None, "int8"),
        (torch.zeros(2, 3, dtype=torch.int8), torch.ones(3), None, "scale has one number"),
        (torch.zeros(2, 3, dtype=torch.int8), torch.ones(2), torch.ones(1), "bias has one number"),
    ],
)
def test_tensors_that_would_be_misread_are_refused(
    weight: Tensor, scale: Tensor, bias: Tensor | None, what: str
) -> None:
    layer = layer_of(layers.Int8Linear, weight, scale, bias)
    with pytest.raises((TypeError, ValueError), match=what):
        layer(torch.zeros(2, 3, dtype=torch.uint8))


def test_on_a_cpu_without_vnni_all_of_it_holds() -> None:
    """In a process in which oneDNN may use AVX2 alone, as an older CPU."""
    program = """
import torch
from lissom.rewrite.runtime import kernels
from tests.test_int8_layers import drawn
print(kernels.saturates())
for layer, codes, other in drawn(60):
    assert torch.equal(layer(codes, other), layer._plain(codes, other)), layer
"""
    env = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


def test_one_sample_needs_no_axis_of_samples() -> None:
    layer = of_8_by_4(output_scale=0.1)
    other = torch.arange(8, dtype=torch.uint8)
    assert torch.equal(layer(CODES[0]), layer(CODES)[0])
    assert torch.equal(layer(CODES[0], other), layer(CODES[:1], other[None])[0])


@pytest.mark.parametrize("shape", [(1, 6, 5, 5), (2, 1, 5, 5), (2, 6, 5, 1), (3, 6, 5, 5)])
def test_codes_of_another_shape_are_not_added(shape: tuple[int, ...]) -> None:
    """Whether a kernel has been chosen before or not: it would read past their end."""
    draw = random.Random(0)
    codes = codes_of(draw, 2, 4, 5, 5)
    given = {"padding": 1, "output_scale": 0.1}
    layer = layer_of(layers.Int8Conv2d, *tensors(draw, 6, 4, 3, 3), **given)
    layer(codes, codes_of(draw, 2, 6, 5, 5))
    other = codes_of(draw, *shape)
    for tried in (layer, copy.deepcopy(layer)):
        with pytest.raises(ValueError, match="added to"):
            tried(codes, other)


def test_numbers_in_half_precision_have_the_codes_that_quantize_gives() -> None:
    """256 steps of float16 are too coarse to be rounded in."""
    draw = random.Random(0)
    weight, scale, bias = tensors(draw, 64, 5)
    given = {"weight": weight, "scale": scale.half(), "bias": None if bias is None else bias.half()}
    numbers, coded = (
        layer_of(layers.Int8Linear, **given, **more)
        for more in ({}, {"output_scale": 0.037, "output_zero": 128})
    )
    codes = codes_of(draw, 40, 5)
    assert torch.equal(coded(codes), int8.quantize(numbers(codes), 0.037, 128))
