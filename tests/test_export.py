"""What is exported computes what the model computes, and what does not is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import lissom
from lissom.__main__ import main
from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.export import onnx_file, pt2
from lissom.rewrite.export.export import write
from lissom.rewrite.export.exportable import Exportable
from lissom.rewrite.measure.samples import Example
from lissom.rewrite.runtime import (
    Int8Conv1d,
    Int8Conv2d,
    Int8Conv3d,
    Int8Linear,
    Int8LinearRows,
    dequantize,
    fake_quantize,
    int8_interpolate,
    int8_max_pool,
    quantize,
    quantize_rows,
    row_scale,
)
from lissom.rewrite.runtime.layers import Int8Layer

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
ort = pytest.importorskip("onnxruntime")

from lissom.rewrite.export import onnx_runtime  # noqa: E402

WRAPPED = (
    quantize, dequantize, fake_quantize, int8_max_pool, int8_interpolate, row_scale, quantize_rows
)  # fmt: skip


class _Tracer(fx.Tracer):
    """Integer layers and what makes codes stay calls, as in a compiled model."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=WRAPPED)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Int8Layer) or super().is_leaf_module(m, module_qualified_name)


def exportable(model: nn.Module, *inputs: Any, other: Any = None) -> Exportable:
    """A model on inputs of a batch, of that batch twice, and on another input if there is one."""
    model = model.eval()
    module = fx.GraphModule(model, _Tracer().trace(model))
    twice = tuple(torch.cat([x, x]) for x in inputs)
    examples = (Example("the example", inputs), Example("twice the batch", twice))
    examples += (Example("another size", (other,)),) if other is not None else ()
    return Exportable(module, examples, Path("small"))


def drawn(layer: Any) -> Any:
    """The layer with numbers in it."""
    weight, features = layer.weight, len(layer.weight)
    weight.data.copy_(torch.randint(-127, 128, weight.shape))
    reach = 127 * weight[0].numel() ** 0.5
    layer.scale.data.copy_(2.0 * (0.5 + torch.rand(features)) / (reach * 30))
    layer.bias.data.copy_(3 * torch.randn(features))
    return layer


class Mixed(nn.Module):
    """Every way in which integers meet numbers: activations that the range of codes does and does
    not do, an added value, a float layer between codes, a coarse grid before a fine one.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        grid = {"output_scale": 0.03, "output_zero": 0}
        self.a = drawn(Int8Conv2d(3, 8, 3, padding=1, zero=131, activation="relu", **grid))
        odd = {"output_scale": 0.021, "output_zero": 13, "activation": "relu6"}
        self.b = drawn(Int8Conv2d(8, 8, 3, padding=1, groups=2, **odd))
        added = {"other_scale": 0.03, "activation": "hardswish"}
        self.c = drawn(Int8Conv2d(8, 8, 1, zero=13, output_scale=0.04, output_zero=7, **added))
        self.plain = nn.Conv2d(8, 4, 3)
        self.plain.weight.data *= 6
        self.d = drawn(Int8Linear(36, 6, zero=129, output_scale=0.05, output_zero=101))
        self.e = drawn(Int8Linear(6, 5, zero=101))

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(quantize(x, 0.023, 131))
        y = self.plain(dequantize(self.c(self.b(a), a), 0.04, 7))
        y = fake_quantize(dequantize(quantize(y, 0.5, 128), 0.5, 128), 0.25, 128)
        return self.e(self.d(quantize(y, 0.02, 129).flatten(1)))


def images() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, 5, 5)


class Checked:
    """A written file, and what it was compared with."""

    def __init__(self, path: Path, given: tuple[Any, ...], verdicts: Any) -> None:
        self.path, self.given, self.verdicts = path, given, verdicts
        self.model = onnx.load(path)

    def changed(self, change: Callable[[Any], None]) -> list[bool]:
        """Which of its verdicts hold after a change of the file."""
        other = onnx.ModelProto.FromString(self.model.SerializeToString())
        change(other)
        path = self.path.with_name("changed.onnx")
        onnx.save(other, path)
        given, _, *rest = self.given
        self.parts, self.wholes = onnx_runtime.check(given, path, *rest)
        return [v.holds for v in (*self.parts, *(whole.verdict for whole in self.wholes))]

    def kinds(self) -> list[str]:
        return [node.op_type for node in self.model.graph.node]


def checked(model: nn.Module, path: Path, *inputs: Any) -> Checked:
    """Writes a file, and keeps what it is compared with."""
    kept: list[Any] = []
    check = onnx_runtime.check

    def keep(*given: Any) -> Any:
        kept.append(given)
        return check(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_runtime, "check", keep)
        verdicts = write(exportable(model, *inputs), onnx_file.onnx_file, path)
    assert all(verdict.holds for verdict in verdicts), verdicts
    return Checked(path, kept[0], verdicts)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Checked:
    return checked(Mixed(), tmp_path_factory.mktemp("mixed") / "m.onnx", images())


def test_onnx_runtime_gives_the_codes_of_the_model(mixed: Checked) -> None:
    """In every layer, and inside of the whole, rewritten or not: no float layer becomes an integer
    layer, and no coarse grid vanishes.
    """
    layers, between, *wholes = mixed.verdicts
    assert (between.detail, between.worst < 1e-5) == ("3 values", True)
    assert layers.samples == 8
    assert layers.worst <= 1
    assert "1 QLinearConv, 2 QGemm" in layers.detail
    assert len(wholes) == 2
    for verdict in wholes:
        assert "also at twice the batch" in verdict.detail
        assert verdict.worst < 1e-3
        assert "by at most" not in verdict.detail or "by at most 1;" in verdict.detail


def test_layers_are_spelled_as_runtimes_know_them(mixed: Checked) -> None:
    """uint8 values, int8 weights with a scale for each output, int32 biases at the scale of the
    products, nothing between a layer and its codes that the range of codes does.
    """
    graph, makers = mixed.model.graph, {n.output[0]: n for n in mixed.model.graph.node}
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    layers = [n for n in graph.node if n.op_type in ("Conv", "Gemm") and n.input[1] in makers]
    assert len(layers) == 5
    for layer in layers:
        x, w, b = (makers[name] for name in layer.input)
        assert {n.op_type for n in (x, w, b)} == {"DequantizeLinear"}
        assert [a.i for n in (w, b) for a in n.attribute] == [0, 0]
        kinds = [tensors[name].dtype for name in (w.input[0], b.input[0], x.input[2])]
        assert kinds == ["int8", "int32", "uint8"]
        assert (tensors[b.input[1]] == tensors[x.input[1]] * tensors[w.input[1]]).all()
        assert (tensors[w.input[2]] == 0).all()
        made = makers[x.input[0]]  # codes are read on the grid on which they were stored
        made = makers[made.input[0]] if made.op_type == "Reshape" else made
        assert [tensors[name] for name in made.input[1:]] == [tensors[name] for name in x.input[1:]]
    # ONNX Runtime cannot make weights uint8 (without VNNI) where two share a zero point.
    assert len({makers[layer.input[1]].input[2] for layer in layers}) == 5
    assert mixed.kinds().count("Relu") == 0
    assert [(o.domain, o.version) for o in mixed.model.opset_import] == [("", onnx_file.OPSET)]


def rewritten(model: Any, name: str, change: Callable[[Any], Any]) -> None:
    (tensor,) = (t for t in model.graph.initializer if t.name == name)
    array = change(onnx.numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))


MISTAKES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "zero point next to it": ("a.inputs.zero", lambda z: z + 1),
    "zero point of the result dropped": ("b.outputs.zero", lambda z: z * 0),
    "bias dropped": ("d.bias", lambda b: b * 0),
    "scale of the neighbour": ("b.weights.scale", lambda s: s[[1, 0, *range(2, len(s))]]),
    "scale of the result a little off": ("a.outputs.scale", lambda s: s * 1.02),
    "sign of one weight": ("c.weight", lambda w: (w * (1 - 2 * (w == w.max()))).astype("int8")),
    "weight of a float layer": ("plain.weight", lambda w: w * 1.001),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_file_is_found(mixed: Checked, mistake: str) -> None:
    assert not all(mixed.changed(lambda model: rewritten(model, *MISTAKES[mistake])))


def test_a_bias_at_another_scale_is_found_where_nothing_is_rewritten(mixed: Checked) -> None:
    """ONNX Runtime fuses Gemm without looking at it."""
    held = mixed.changed(lambda model: rewritten(model, "d.biases.scale", lambda s: s * 2))
    assert held == [True, True, True, False]


def dequantized_by_an_op(model: Any) -> None:
    """Where codes become numbers for a float layer."""
    graph, makers = model.graph, {n.output[0]: n for n in model.graph.node}
    (plain,) = (n for n in graph.node if "plain.weight" in n.input)
    product = makers[plain.input[0]]
    cast = makers[makers[product.input[0]].input[0]]
    given = [cast.input[0], product.input[1], makers[cast.input[0]].input[2]]
    product.CopyFrom(onnx.helper.make_node("DequantizeLinear", given, list(product.output)))


def test_a_float_layer_between_codes_stays_one(mixed: Checked) -> None:
    """Behind DequantizeLinear ONNX Runtime makes its weights int8 by itself."""
    mixed.changed(dequantized_by_an_op)
    default, plain = (int(whole.inside.split()[0]) for whole in mixed.wholes)
    assert plain <= 2 < 10 <= default


# -- single layers ---------------------------------------------------------------------------------


class Rows(nn.Module):
    """Codes in and out, of more than two axes; a bias that no int32 holds beside the sums."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one = drawn(Int8Linear(6, 4, zero=5, output_scale=0.07, output_zero=3))
        self.large = drawn(Int8Linear(4, 4, zero=3, output_scale=400.0))
        self.large.bias.data[0] = 1e7

        self.same = drawn(Int8Linear(4, 4, output_scale=30.0, other_scale=400.0))

    def forward(self, codes: Tensor) -> Tensor:
        codes = self.large(self.one(codes))
        return self.same(codes, codes)


def test_codes_may_be_inputs_and_outputs(tmp_path: Path) -> None:
    codes = torch.arange(48, dtype=torch.uint8).reshape(2, 4, 6) * 5
    found = checked(Rows(), tmp_path / "rows.onnx", codes)
    graph = found.model.graph
    kinds = [v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)]
    assert kinds == [onnx.TensorProto.UINT8] * 2
    biases = {t.name: t.data_type for t in graph.initializer if t.name.endswith(".bias")}
    kinds = onnx.TensorProto
    assert list(biases.values()) == [kinds.INT32, kinds.FLOAT, kinds.INT32]
    assert {verdict.worst for verdict in found.verdicts} == {0}


class Narrow(nn.Module):
    """Codes of half-precision numbers; convolutions along one and three axes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = drawn(Int8Conv1d(3, 4, 3, zero=9, padding=2, dilation=2))
        self.b = drawn(Int8Conv3d(2, 4, 2, zero=9, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        codes = quantize(x, 0.03, 9)
        cubes = self.b(codes.reshape(-1, 2, 2, 2, 3))
        return self.a(codes).sum(-1) + cubes.flatten(1)


def test_other_axes_and_half_precision(tmp_path: Path) -> None:
    """What is half precision is divided in float32, as the model does."""
    x = torch.randn(2, 3, 8).half()
    found = checked(Narrow(), tmp_path / "narrow.onnx", x)
    assert found.kinds()[:2] == ["Cast", "QuantizeLinear"]
    assert "0 of 48 codes inside differ" in found.verdicts[2].detail


class Found(nn.Module):
    """Scales that are found for each row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = drawn(Int8LinearRows(6, 8)), Int8LinearRows(8, 4, bias=False)
        self.b.weight.random_(-127, 128)

    def forward(self, x: Tensor) -> Tensor:
        scale = row_scale(x)
        y = torch.relu(self.a(quantize_rows(x, scale), scale))
        scale = row_scale(y)
        return self.b(quantize_rows(y, scale), scale)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Checked:
    x = torch.randn(3, 5, 6)
    x[1, 2] = 0
    return checked(Found(), tmp_path_factory.mktemp("rows") / "m.onnx", x)


def test_scales_of_rows_are_found_in_onnx_runtime(rows: Checked) -> None:
    assert rows.kinds().count("MatMulInteger") == 2
    assert "2 MatMulInteger" in rows.verdicts[0].detail
    assert "0 of 210 codes inside differ" in rows.verdicts[2].detail


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("b.scale", lambda s: s[[1, 0, 2, 3]] * [1, 1, 1, 1.001]),
        ("a.bias", lambda b: b * 0),
        ("a.zero", lambda z: z + 1),
        ("b.weight", lambda w: w[:, ::-1]),
    ],
)
def test_mistakes_in_layers_of_rows_are_found(rows: Checked, name: str, change: Any) -> None:
    assert not rows.changed(lambda model: rewritten(model, name, change))[0]


class Moved(nn.Module):
    """Codes that are pooled, padded, joined, repeated and moved between layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = drawn(Int8Conv2d(8, 4, 1, zero=3, output_scale=0.2, output_zero=3))

    def forward(self, codes: Tensor) -> Tensor:
        large = int8_max_pool(codes, 3, 2, 1, ceil_mode=True)
        small = int8_max_pool(codes, (2, 3), stride=2, padding=(0, 1))
        codes = torch.cat([F.pad(small, (0, 0, 0, 1), value=3), large], 1)
        return F.pixel_shuffle(self.a(int8_interpolate(codes, scale_factor=2)), 2)


def test_codes_are_pooled_and_moved_as_codes(tmp_path: Path) -> None:
    codes = torch.arange(392, dtype=torch.int32).mul(37).to(torch.uint8).reshape(2, 4, 7, 7)
    found = checked(Moved(), tmp_path / "moved.onnx", codes)
    assert found.kinds().count("MaxPool") == 2
    assert found.kinds().count("Resize") == 1
    assert "Cast" not in found.kinds()
    assert "1 QLinearConv" in found.verdicts[0].detail
    assert {verdict.worst for verdict in found.verdicts} == {0}


# -- files -----------------------------------------------------------------------------------------


class Tied(nn.Module):
    """A weight that two layers share, and a part of another one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.names, self.out = nn.Embedding(40, 16), nn.Linear(16, 40, bias=False)
        self.out.weight = self.names.weight
        self.register_buffer("part", torch.randn(4096, 40)[7])

    def forward(self, i: Tensor) -> Tensor:
        return torch.tanh(self.out(self.names(i))) * self.part


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tied") / "small"
    program = "pipeline p { stage s { fixpoint { drop_dropout } } }"
    i = torch.arange(14).reshape(2, 7)
    lissom.compile(Tied().eval(), program, inputs=(i,)).save(folder)
    return folder


def told(run: pytest.CaptureFixture[str], tied: Path, kind: str) -> bytes:
    """What the command writes, once it has said so."""
    assert main(["export", str(tied), "--format", kind]) == 0
    said = run.readouterr().out
    path = tied.with_name(f"small.{kind}")
    assert f"wrote {path}, {path.stat().st_size:,} bytes" in said
    assert "export  ok" in said
    assert "also at batch 4" in said
    return path.read_bytes()


def test_pt2_is_read_without_lissom_bit_for_bit(
    tied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = told(capsys, tied, "pt2")
    assert len(content) < 60_000  # the part of a buffer, not all of it
    assert str(Path(lissom.__file__).parent).encode() not in content
    program = torch.export.load(tied.with_name("small.pt2"))
    assert program.example_inputs is None
    assert len({t.data_ptr() for t in program.state_dict.values()}) == 2


def test_attention_is_what_it_is_without_its_fused_kernel(tmp_path: Path) -> None:
    """torch.export never takes it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 24, batch_first=True))
    (verdict,) = write(exportable(model, torch.randn(3, 7, 16)), pt2.pt2, tmp_path / "m.pt2")
    assert verdict.worst == 0


def test_an_integer_model_is_exported_to_pt2(tmp_path: Path) -> None:
    (verdict,) = write(exportable(Mixed(), images()), pt2.pt2, tmp_path / "m.pt2")
    assert (verdict.holds, verdict.worst) == (True, 0)
    assert "also at twice the batch" in verdict.detail
    program = torch.export.load(tmp_path / "m.pt2")
    types = {t.dtype for t in program.state_dict.values()}
    assert types == {torch.int8, torch.float32}


def test_onnx_holds_a_shared_weight_once(tied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.ModelProto.FromString(told(capsys, tied, "onnx"))
    assert [list(t.dims) for t in model.graph.initializer].count([40, 16]) == 1
    assert b"/" not in b"".join(
        p.value.encode() for n in model.graph.node for p in n.metadata_props
    )


def test_weights_lie_beside_a_large_file(tied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "IN_ONE_FILE", 100)
    first, *_ = lissom.export(tied, path := tied.with_name("large.onnx"))
    assert first.worst is not None
    assert sorted(p.name for p in path.parent.glob("large*")) == ["large.onnx", "large.onnx.data"]
    assert path.stat().st_size < 2000 < 2560 <= path.with_name("large.onnx.data").stat().st_size


class Pooled(nn.Module):
    """torch.onnx pools with the windows of the size that it traces, and leaves the size free."""

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, 2) * 2


def test_sizes_at_which_a_file_would_be_wrong_are_fixed(tmp_path: Path) -> None:
    path = tmp_path / "pooled.onnx"
    given = exportable(Pooled(), torch.randn(2, 3, 8, 8), other=torch.randn(2, 3, 12, 12))
    *wholes, left_out = write(given, onnx_file.onnx_file, path)
    assert "also at twice the batch" in wholes[0].detail
    assert "not as at another size: the output is float32[2, 3, 3, 3]" in left_out.detail
    (x,) = onnx.load(path).graph.input
    sizes = [axis.dim_value for axis in x.type.tensor_type.shape.dim]
    assert sizes == [0, 3, 8, 8]  # the batch alone is free
    pt2_verdicts = write(given, pt2.pt2, tmp_path / "pooled.pt2")
    assert "another size" in pt2_verdicts[0].detail


class Half(nn.Module):
    """A convolution in half precision between casts."""

    def __init__(self, half: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.half, self.conv = half, nn.Conv2d(3, 8, 3).to(half)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.to(self.half)).float()


def test_half_precision_may_round_as_its_type_does(tmp_path: Path) -> None:
    """Outputs are float32; bfloat16 convolutions came with opset 22, and have no kernel."""
    found = checked(Half(torch.float16), tmp_path / "half.onnx", images())
    assert [verdict.how for verdict in found.verdicts] == ["tested"] * 2
    assert 0 < found.verdicts[0].worst < found.verdicts[0].tolerance == 8 * 2**-10
    found = checked(Half(torch.bfloat16), tmp_path / "bfloat16.onnx", images())
    assert [verdict.how for verdict in found.verdicts] == ["not checked"]
    assert found.model.opset_import[0].version == onnx_file.OPSET_OF_BFLOAT16


# -- refusals --------------------------------------------------------------------------------------


def refused(run: Callable[[], object]) -> Any:
    with pytest.raises(LissomError) as error:
        run()
    (found,) = error.value.diagnostics
    return found


def test_what_cannot_be_exported_says_why(tied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Double(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return dequantize(quantize(x, 0.1, 3), 0.1, 3)

    given = exportable(Double(), torch.randn(2, 3).double())
    found = refused(lambda: write(given, onnx_file.onnx_file, tied.with_name("no.onnx")))
    assert (found.code, "float64" in found.message) == ("A040", True)

    class Unknown(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.qr(x)[0]

    given = exportable(Unknown(), torch.randn(2, 3, 3))
    found = refused(lambda: write(given, onnx_file.onnx_file, tied.with_name("no.onnx")))
    assert (found.code, "qr" in found.notes[0]) == ("A040", True)
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    found = refused(lambda: lissom.export(tied, tied.with_name("no.onnx")))
    assert (found.code, found.helps) == ("U010", ('pip install "lissom[onnx]"',))
    assert not tied.with_name("no.onnx").exists()
    with pytest.raises(ValueError, match="neither pt2 nor onnx"):
        lissom.export(tied, "small.pt")


def test_a_file_that_differs_is_not_written(tied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_runtime, "_outputs", lambda session, args: [torch.zeros(2, 7, 40)])
    path = tied.with_name("differs.onnx")
    path.write_text("before")
    found = refused(lambda: lissom.export(tied, path))
    assert (found.code, path.read_text()) == ("A041", "before")


def test_without_onnx_runtime_nothing_is_claimed(
    tied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = onnx_file.find_spec
    monkeypatch.setattr(
        onnx_file, "find_spec", lambda name: None if name == "onnxruntime" else found(name)
    )
    (verdict,) = lissom.export(tied, tied.with_name("unchecked.onnx"))
    assert verdict.how == "not checked"
