"""An artifact gives back the same model: bit for bit, ties and views included, in any process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.layer_json import build_layer, encode_layer
from lissom.rewrite.store import file_bytes, load, save
from torch import fx, nn
from torch.nn import functional
from torch.utils import _pytree as pytree


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect", bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.body = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1, groups=2), nn.PReLU(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor, scale: float = 2.0) -> dict[str, object]:
        y = self.body(self.bn(self.conv(x)))
        pooled = functional.adaptive_avg_pool2d(y, 1).flatten(1) * scale
        logits = self.head(pooled)
        return {
            "logits": logits,
            "parts": (y[:, :3, ..., None], [y.view(y.shape[0], -1)]),
            "no": None,
        }


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, 2, batch_first=True, bidirectional=True, dropout=0.1)
        self.gru = nn.GRU(12, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, add_bias_kv=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, (hidden, _) = self.lstm(x)
        z, _ = self.gru(y)
        return self.attention(z, z, z)[0], hidden


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.norm = nn.LayerNorm(6)
        self.layers = nn.ModuleList([self.norm, self.norm])
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("mask", torch.ones(6, dtype=torch.bool), persistent=False)
        self.register_buffer("shift", torch.arange(12.0).view(4, 3)[:2].t())

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens) * self.mask
        for layer in self.layers:
            x = layer(x)
        return functional.gelu(self.head(x), approximate="tanh").to(torch.float64)


def tokens() -> torch.Tensor:
    return torch.arange(10).view(2, 5)


def image() -> torch.Tensor:
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


MODELS: list[tuple[Callable[[], nn.Module], Callable[[], torch.Tensor]]] = [
    (Convolutional, image),
    (Recurrent, lambda: torch.linspace(-2, 2, 24).view(2, 3, 4)),
    (Tied, tokens),
]


def traced(model: Callable[[], nn.Module], seed: int = 0) -> fx.GraphModule:
    torch.manual_seed(seed)
    return fx.symbolic_trace(model().eval())


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def same_output(one: nn.Module, other: nn.Module, x: torch.Tensor) -> bool:
    mine, theirs = one(x), other(x)
    leaves = zip(pytree.tree_leaves(mine), pytree.tree_leaves(theirs), strict=True)
    equal = all(a is b or (a.dtype == b.dtype and torch.equal(a, b)) for a, b in leaves)
    return equal and pytree.tree_structure(mine) == pytree.tree_structure(theirs)


def body(module: fx.GraphModule) -> str:
    """The generated code without the head of `forward`, whose type annotations are not stored."""
    return module.code.partition("def forward")[2].partition("\n")[2]


def registered(value: torch.Tensor, **more: torch.Tensor) -> fx.GraphModule:
    """A GraphModule with the buffers `t` and `more`, which its graph uses."""
    module = nn.Module()
    graph = fx.Graph()
    nodes = []
    for name, tensor in {"t": value, **more}.items():
        module.register_buffer(name, tensor)
        nodes.append(graph.get_attr(name))
    graph.output(tuple(nodes))
    return fx.GraphModule(module, graph)


# -- the same model --------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "inputs"), MODELS)
def test_outputs_code_and_state_are_identical(model, inputs, tmp_path: Path) -> None:
    module = traced(model)
    loaded = load(save(module, tmp_path / "a")).module
    assert same_output(module, loaded, inputs())
    assert body(loaded) == body(module)
    assert list(loaded.state_dict()) == list(module.state_dict())
    for name, tensor in module.state_dict().items():
        assert bits(loaded.state_dict()[name]) == bits(tensor)
    assert [n.name for n in loaded.graph.nodes] == [n.name for n in module.graph.nodes]


@pytest.mark.parametrize(("model", "inputs"), MODELS)
def test_fresh_process_gives_identical_outputs(model, inputs, tmp_path: Path) -> None:
    module = traced(model)
    save(module, tmp_path / "a")
    torch.set_num_threads(1)
    expected = [t for t in pytree.tree_leaves(module(inputs())) if t is not None]
    safetensors.torch.save_file({"x": inputs()}, tmp_path / "x")
    program = (
        "import sys, torch, safetensors.torch as st\n"
        "from torch.utils import _pytree as pytree\n"
        "from lissom.rewrite.store import load\n"
        "torch.set_num_threads(1)\n"
        "seen = []\n"
        "def watch(event, _):\n"
        "    if event.startswith(('pickle.', 'marshal.', 'socket.', 'subprocess.', 'os.system')):\n"
        "        seen.append(event)\n"
        "torch.load = torch.jit.load = None\n"
        "sys.addaudithook(watch)\n"
        "module = load(sys.argv[1]).module\n"
        "assert not seen, seen\n"
        "leaves = pytree.tree_leaves(module(st.load_file(sys.argv[2])['x']))\n"
        "leaves = [t.contiguous() for t in leaves if t is not None]\n"
        "st.save_file({f'{i:03}': t.clone() for i, t in enumerate(leaves)}, sys.argv[3])\n"
    )
    arguments = [str(tmp_path / name) for name in ("a", "x", "y")]
    subprocess.run([sys.executable, "-W", "ignore", "-c", program, *arguments], check=True)
    found = safetensors.torch.load_file(tmp_path / "y")
    assert [bits(found[key]) for key in sorted(found)] == [bits(t) for t in expected]


def test_mode_flags_and_documents_come_back(tmp_path: Path) -> None:
    module = traced(Convolutional)
    module.get_parameter("head.weight").requires_grad_(False)
    module.get_submodule("bn").train()
    documents = {"program.lissom": b"\x00\xff", "plan.json": b"{}"}
    loaded = load(save(module, tmp_path / "a", documents))
    assert loaded.documents == documents
    modes = {name: sub.training for name, sub in loaded.module.named_modules()}
    assert modes["bn"]
    assert not modes[""]
    assert not modes["head"]
    wants = {name: p.requires_grad for name, p in loaded.module.named_parameters()}
    assert not wants["head.weight"]
    assert wants["head.bias"]
    assert loaded.manifest["torch"] == torch.__version__


def test_equal_modules_give_equal_bytes(tmp_path: Path) -> None:
    folders = [save(traced(Tied), tmp_path / name) for name in "ab"]
    save(load(folders[0]).module, tmp_path / "c")
    contents = [
        {p.name: p.read_bytes() for p in sorted((tmp_path / name).iterdir())} for name in "abc"
    ]
    assert contents[0] == contents[1] == contents[2]
    assert contents[0] != {
        p.name: p.read_bytes() for p in save(traced(Tied, 1), tmp_path / "d").iterdir()
    }


def test_file_bytes_counts_what_is_needed_to_run(tmp_path: Path) -> None:
    folder = save(traced(Tied), tmp_path / "a", {"journal.json": b"x" * 1000})
    total = sum(path.stat().st_size for path in folder.iterdir())
    assert file_bytes(folder) == total - 1000


# -- tensors ---------------------------------------------------------------------------------------


def test_tied_weights_are_one_object_and_stored_once(tmp_path: Path) -> None:
    module = fx.GraphModule(Tied().eval(), fx.Tracer().trace(Tied().eval()))
    folder = save(module, tmp_path / "a")
    loaded = load(folder).module
    embedding, head = loaded.get_submodule("embedding"), loaded.get_submodule("head")
    assert embedding.weight is head.weight
    stored = safetensors.torch.load_file(folder / "weights.safetensors")
    assert sum(t.numel() == 66 for t in stored.values()) == 1
    with torch.no_grad():
        embedding.weight.zero_()
    assert not head.weight.any()


def test_module_under_two_names_is_one_object(tmp_path: Path) -> None:
    module = traced(Convolutional)
    module.add_submodule("twin", module.get_submodule("bn"))
    loaded = load(save(module, tmp_path / "a")).module
    assert loaded.get_submodule("twin") is loaded.get_submodule("bn")


def test_unsaved_buffers_come_back_as_unsaved(tmp_path: Path) -> None:
    module = registered(torch.ones(2))
    module.register_buffer("t", torch.ones(2), persistent=False)
    loaded = load(save(module, tmp_path / "a")).module
    assert "t" in dict(loaded.named_buffers())
    assert "t" not in loaded.state_dict()


def every_kind() -> dict[str, torch.Tensor]:
    odd = torch.tensor([0x7FC00001, -1, 0x7F800001, -(2**31)], dtype=torch.int32)
    return {
        "nan": odd.view(torch.float32),
        "denormal": torch.tensor([1e-45, -0.0, float("inf")]),
        "bfloat16": odd.view(torch.bfloat16),
        "half": torch.randn(3).half(),
        "bool": torch.tensor([True, False]),
        "int8": torch.arange(-128, 127, dtype=torch.int8).view(5, 51),
        "double": torch.randn(2, 2, dtype=torch.float64),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 4),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "point": torch.randn(4, 3, 1, 1).to(memory_format=torch.channels_last),
        "transposed": torch.randn(3, 4).t(),
        "expanded": torch.randn(3, 1).expand(3, 1000),
        "sliced": torch.randn(6, 6)[1:5, 2:4],
        "stepped": torch.randn(20)[::3],
    }


@pytest.mark.parametrize("kind", every_kind())
def test_every_kind_of_tensor_is_bit_identical(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensor = every_kind()[kind]
    loaded = load(save(registered(tensor), tmp_path / "a")).module.t
    assert (loaded.dtype, loaded.shape) == (tensor.dtype, tensor.shape)
    assert bits(loaded) == bits(tensor)
    if kind not in ("sliced", "stepped"):
        assert loaded.stride() == tensor.stride()


def test_what_was_sliced_away_is_not_stored(tmp_path: Path) -> None:
    folder = save(registered(torch.randn(500, 500)[:, :2]), tmp_path / "a")
    assert (folder / "weights.safetensors").stat().st_size < 10_000


def test_views_of_one_memory_still_share_it(tmp_path: Path) -> None:
    base = torch.randn(4, 6)
    views = {"rows": base[1:3], "columns": base.t()[2:], "again": base.view(-1)[3:]}
    loaded = load(save(registered(base, **views), tmp_path / "a")).module
    for name, view in views.items():
        found = loaded.get_buffer(name)
        assert torch.equal(found, view)
        assert found.untyped_storage().data_ptr() == loaded.t.untyped_storage().data_ptr()
    loaded.t.fill_(7)
    assert loaded.rows.eq(7).all()


def test_separate_parts_of_one_memory_are_stored_apart(tmp_path: Path) -> None:
    base = torch.randn(1000)
    loaded = load(save(registered(base[:3], other=base[990:]), tmp_path / "a")).module
    assert torch.equal(loaded.other, base[990:])
    assert loaded.t.untyped_storage().nbytes() == 12


def tensors_refused() -> dict[str, torch.Tensor]:
    shared = torch.zeros(4)
    return {
        "meta": torch.empty(3, device="meta"),
        "sparse": torch.eye(3).to_sparse(),
        "complex": torch.zeros(2, dtype=torch.complex128),
        "parameter as buffer": nn.Parameter(torch.zeros(2)),
        "endless": torch.zeros(1).expand(10**6, 10**6),
        "one memory, two types": shared.view(torch.int32),
    }


@pytest.mark.parametrize("kind", tensors_refused())
def test_other_tensors_are_refused_by_path(kind: str, tmp_path: Path) -> None:
    tensor = tensors_refused()[kind]
    more = {"same": tensor.view(torch.float32)} if kind == "one memory, two types" else {}
    with pytest.raises(LissomError, match=r"A017(.|\n)*--> t\b"):
        save(registered(tensor, **more), tmp_path / "a")
    assert not (tmp_path / "a").exists()


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
    twin = build_layer(name, json.loads(json.dumps(arguments)), "layer")
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
    x = image()
    assert bits(loaded(x)) == bits(module(x))


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


def test_plain_tensor_attribute_is_refused_with_the_remedy(tmp_path: Path) -> None:
    module = registered(torch.ones(2))
    del module._buffers["t"]
    module.t = torch.ones(2)
    with pytest.raises(LissomError, match=r"A026(.|\n)*`t`(.|\n)*register_buffer"):
        save(module, tmp_path / "a")


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    value: object = 1
    for _ in range(70):
        value = [value]
    with pytest.raises(LissomError, match="A018"):
        save(calling(torch.add, value), tmp_path / "a")


def test_ten_thousand_nodes_in_a_row(tmp_path: Path) -> None:
    graph = fx.Graph()
    node = graph.placeholder("x")
    for _ in range(10_000):
        node = graph.call_function(torch.neg, (node,))
    graph.output(node)
    module = fx.GraphModule(nn.Module(), graph)
    assert load(save(module, tmp_path / "a")).module(torch.ones(1)).item() == 1.0
