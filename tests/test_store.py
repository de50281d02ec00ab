"""An artifact gives back the same model: bit for bit, ties and views included, in any process."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import fx, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.store.folder import file_bytes, load, save

from . import fresh


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
        "from lissom.rewrite.store.folder import load\n"
        "torch.set_num_threads(1)\n"
        "seen = []\n"
        "def watch(event, _):\n"
        "    if event.startswith(('pickle.', 'socket.', 'subprocess.', 'os.system')):\n"
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
    fresh.run([sys.executable, "-c", program, *arguments], check=True)
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


def test_documents_are_bytes(tmp_path: Path) -> None:
    with pytest.raises(LissomError, match=r"A004(.|\n)*encode"):
        save(traced(Tied), tmp_path / "a", {"plan.json": "{}"})  # type: ignore[dict-item]


@pytest.mark.parametrize(("model", "inputs"), MODELS)
def test_loaded_module_is_plain_and_trains_and_copies(model, inputs, tmp_path: Path) -> None:
    module = load(save(traced(model), tmp_path / "a")).module
    again = copy.deepcopy(module)
    loss = sum(t.double().sum() for t in pytree.tree_leaves(module(inputs())) if t is not None)
    loss.backward()
    torch.optim.SGD(module.parameters(), 0.1).step()
    assert not same_output(module, again, inputs())
    names = {type(part).__module__.partition(".")[0] for part in module.modules()}
    assert names == {"torch"}


def test_loaded_module_exports(tmp_path: Path) -> None:
    module = load(save(traced(Convolutional), tmp_path / "a")).module
    exported = torch.export.export(module, (image(),)).module()
    torch.testing.assert_close(exported(image())["logits"], module(image())["logits"])


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
    """H02."""
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
    """I44."""
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
    """I38."""
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
        "endless": torch.zeros(1).expand(10**6, 10**6),
        "one memory, two types": shared.view(torch.int32),
    }


@pytest.mark.parametrize("kind", tensors_refused())
def test_other_tensors_are_refused_by_path(kind: str, tmp_path: Path) -> None:
    """I37, I39, I40, I41."""
    tensor = tensors_refused()[kind]
    more = {"same": tensor.view(torch.float32)} if kind == "one memory, two types" else {}
    with pytest.raises(LissomError, match=r"A017(.|\n)*--> t\b"):
        save(registered(tensor, **more), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_plain_tensor_attribute_is_refused_with_the_remedy(tmp_path: Path) -> None:
    module = registered(torch.ones(2))
    del module._buffers["t"]
    module.t = torch.ones(2)
    with pytest.raises(LissomError, match=r"A026(.|\n)*`t`(.|\n)*register_buffer"):
        save(module, tmp_path / "a")
