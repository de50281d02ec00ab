"""Which layers and calls an artifact holds, and that everything else is refused by its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import fx, nn
from torch.nn import functional

from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.store.folder import load, save
from lissom.rewrite.store.layers import encode_layer, layer_from_json

# -- layers ----------------------------------------------------------------------------------------

LAYERS: list[nn.Module] = [
    nn.Linear(3, 4, bias=False),
    nn.Conv1d(2, 4, 3, stride=2, dilation=2, groups=2, padding_mode="circular"),
    nn.Conv2d(2, 4, (3, 5), padding="same", bias=False),
    nn.ConvTranspose2d(4, 2, 3, stride=2, output_padding=1, groups=2, dilation=2),
    nn.BatchNorm2d(3, affine=False, track_running_stats=False, momentum=None),
    nn.BatchNorm1d(3, eps=1e-3),
    nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
    nn.GroupNorm(2, 4, affine=False),
    nn.LayerNorm([2, 3], bias=False),
    nn.LayerNorm(4, elementwise_affine=False),
    nn.RMSNorm(4),
    nn.LSTM(3, 4, 2, bias=False, bidirectional=True, dropout=0.1, proj_size=2),
    nn.GRU(3, 4, batch_first=True),
    nn.RNN(3, 4, nonlinearity="relu"),
    nn.RNNCell(2, 3, nonlinearity="relu"),
    nn.LSTMCell(2, 3, bias=False),
    nn.MultiheadAttention(8, 2, 0.1, bias=False, add_bias_kv=True, kdim=4, vdim=6),
    nn.TransformerEncoderLayer(8, 2, 16, 0.3, "gelu", batch_first=True, norm_first=True),
    nn.Embedding(5, 3, padding_idx=1, max_norm=2.0),
    nn.EmbeddingBag(5, 3, mode="max"),
    nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
    nn.MaxPool2d(3, 2, ceil_mode=True),
    nn.AvgPool2d((2, 3), count_include_pad=False, divisor_override=3),
    nn.AdaptiveAvgPool2d((None, 2)),
    nn.PReLU(3),
    nn.LeakyReLU(0.2, True),
    nn.GELU("tanh"),
    nn.Hardtanh(-2, 3),
    nn.Softmax(-1),
    nn.Flatten(0, 2),
    nn.Unflatten(1, (2, 3)),
    nn.PixelShuffle(2),
    nn.ReflectionPad2d(2),
    nn.ConstantPad1d(1, 3.0),
    nn.Dropout(0.3),
    nn.LocalResponseNorm(3),
    nn.Bilinear(2, 3, 4, bias=False),
    nn.Identity(3, other=4),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_layer_is_rebuilt_from_its_arguments(layer: nn.Module) -> None:
    name, arguments = encode_layer(layer, "layer")
    twin = layer_from_json(name, json.loads(json.dumps(arguments)), "layer")
    assert type(twin) is type(layer)
    assert repr(twin) == repr(layer)
    shapes = {key: value.shape for key, value in layer.state_dict().items()}
    assert {key: value.shape for key, value in twin.state_dict().items()} == shapes


class Mine(nn.Linear):
    """Code of a user, under the name of a layer of torch or not."""


Mine_called_Linear = type("Linear", (nn.Linear,), {})


def changed(layer: nn.Module, **attributes: object) -> nn.Module:
    for name, value in attributes.items():
        setattr(layer, name, value)
    return layer


def hooked() -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda module, args, output: output * 2)
    return layer


REFUSED: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "subclass": ("A010", lambda: Mine(2, 2)),
    "same name": ("A010", lambda: Mine_called_Linear(2, 2)),
    "parametrized": ("A010", lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))),
    "lazy": ("A010", lambda: nn.LazyLinear(2)),
    "hook": ("A012", hooked),
    "own forward": ("A012", lambda: changed(nn.Linear(2, 2), forward=lambda x: x)),
    "wrong attribute": ("A011", lambda: changed(nn.Conv2d(2, 2, 1), stride=2)),
    "wrong shape": ("A011", lambda: changed(nn.Linear(2, 2), in_features=3)),
    "method replaced": ("A011", lambda: changed(nn.Conv2d(2, 2, 1), _conv_forward=max)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_layer_that_would_change_is_refused_by_name(case: str, tmp_path: Path) -> None:
    code, make = REFUSED[case]
    graph = fx.Graph()
    graph.output(graph.call_module("body.layer", (graph.placeholder("x"),)))
    module = fx.GraphModule({"body.layer": make()}, graph)
    with pytest.raises(LissomError, match=rf"{code}(.|\n)*--> body\.layer(.|\n)*= help: ") as error:
        save(module, tmp_path / "a")
    if code == "A010":
        assert type(make()).__name__ in str(error.value)


# -- calls -----------------------------------------------------------------------------------------


def calling(function: Callable[..., object], *args: object) -> fx.GraphModule:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(function, (x, *args)))
    return fx.GraphModule(nn.Module(), graph)


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (torch.ops.aten.add.Tensor, (1.5,)),
        (torch.ops.aten.clamp.default, (-0.5, 0.5)),
        (torch.clamp, (-float("inf"), 0.0)),
        (functional.relu6, ()),
        (functional.hardswish, (True,)),
        (torch.full_like, (float("nan"),)),
        (functional.interpolate, ([7, 7],)),
        (getattr, ("mT",)),
    ],
)
def test_functions_and_operators_come_back(function, args, tmp_path: Path) -> None:
    module = calling(function, *args)
    loaded = load(save(module, tmp_path / "a")).module
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(loaded(x.clone()), module(x), rtol=0, atol=0, equal_nan=True)


def mine(x: torch.Tensor) -> torch.Tensor:
    return x + 1


@pytest.mark.parametrize(
    ("function", "args", "code"),
    [
        (mine, (), "A013"),
        (torch.load, (), "A013"),
        (torch.save, ("file",), "A013"),
        (torch.compile, (), "A013"),
        (torch.from_file, (), "A013"),
        (torch.ops.aten.from_file.default, (), "A013"),
        (torch.ops.aten.from_file.out, (), "A013"),
        (torch.ops.aten.set_.source_Tensor, (), "A013"),
        (torch.vmap, (), "A013"),
        (eval, (), "A013"),
        (print, (), "A013"),
        (getattr, ("__class__",), "A015"),
        (getattr, ("register_hook",), "A015"),
        (torch.add, (torch.ones(2),), "A015"),
        (torch.add, (2**70,), "A015"),
        (torch.add, (1j,), "A015"),
    ],
)
def test_calls_beyond_tensor_compute_are_refused(function, args, code, tmp_path: Path) -> None:
    with pytest.raises(LissomError, match=rf"{code}(.|\n)*--> node \w+(.|\n)*= help: "):
        save(calling(function, *args), tmp_path / "a")


@pytest.mark.parametrize(
    "method", ["numpy", "register_hook", "apply_", "backward", "__reduce_ex__"]
)
def test_methods_beyond_tensor_compute_are_refused(method: str, tmp_path: Path) -> None:
    graph = fx.Graph()
    graph.output(graph.call_method(method, (graph.placeholder("x"),)))
    with pytest.raises(LissomError, match=r"A014(.|\n)*--> node"):
        save(fx.GraphModule(nn.Module(), graph), tmp_path / "a")


def test_arguments_of_every_kind_come_back(tmp_path: Path) -> None:
    graph = fx.Graph()
    x = graph.placeholder("x", default_value=None)
    nested = {"a": [x, (x, 1, True, -0.0)], 3: slice(x, None, 2), "d": torch.device("cpu")}
    kinds = [torch.float32, torch.channels_last, torch.strided, Ellipsis, 'it\'s "quoted"\n', 1e300]
    graph.output((nested, kinds, {"inf": -float("inf")}))
    module = fx.GraphModule(nn.Module(), graph)
    loaded = load(save(module, tmp_path / "a")).module
    assert loaded(5) == module(5)
    assert str(loaded(5)) == str(module(5))


def test_only_graph_modules_with_plain_calls_are_saved(tmp_path: Path) -> None:
    with pytest.raises(LissomError, match=r"A001(.|\n)*Linear"):
        save(nn.Linear(2, 2), tmp_path / "a")  # type: ignore[arg-type]


def test_a_graph_changed_without_recompile_is_refused(tmp_path: Path) -> None:
    module = calling(torch.neg)
    next(iter(module.graph.find_nodes(op="call_function", target=torch.neg))).target = torch.abs
    with pytest.raises(LissomError, match=r"A001(.|\n)*recompile"):
        save(module, tmp_path / "a")
    module.recompile()
    assert load(save(module, tmp_path / "a")).module(torch.tensor(-1.0)) == 1


def test_generated_code_rewritten_by_hand_is_refused(tmp_path: Path) -> None:
    module = calling(torch.neg)
    module.graph.on_generate_code(
        lambda _: lambda lines: [line.replace("neg(", "abs(") for line in lines]
    )
    module.recompile()
    with pytest.raises(LissomError, match="A001"):
        save(module, tmp_path / "a")


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    value: object = 1
    for _ in range(70):
        value = [value]
    with pytest.raises(LissomError, match="A018"):
        save(calling(torch.add, value), tmp_path / "a")


def test_ten_thousand_nodes_in_a_row(tmp_path: Path) -> None:
    """H25."""
    graph = fx.Graph()
    node = graph.placeholder("x")
    for _ in range(10_000):
        node = graph.call_function(torch.neg, (node,))
    graph.output(node)
    module = fx.GraphModule(nn.Module(), graph)
    assert load(save(module, tmp_path / "a")).module(torch.ones(1)).item() == 1.0
