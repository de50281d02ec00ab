"""Captured graphs: structure, values, signatures, sizes."""

from __future__ import annotations

import time
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from lissom.rewrite.capture.capture import Captured, capture
from lissom.rewrite.capture.equality import first_difference
from lissom.rewrite.graph.building import assertions
from lissom.rewrite.ops.spec import TensorSpec


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def same(captured: Captured, model: nn.Module, *args: Any, **kwargs: Any) -> bool:
    with torch.no_grad():
        return first_difference(model(*args, **kwargs), captured.module(*args, **kwargs)) is None


def targets(captured: Captured, op: str = "call_module") -> list[Any]:
    return [node.target for node in captured.module.graph.nodes if node.op == op]


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.spare = nn.Linear(100, 100)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        batch, channels = x.shape[:2]
        return self.head(x.view(batch, channels, -1).mean(-1))


def test_small_network() -> None:
    model = Small().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    captured = capture(model, (torch.rand(2, 3, 8, 8),))
    assert captured.how == "trace"
    assert targets(captured) == ["stem.0", "stem.1", "stem.2", "head"]
    assert captured.proved[:3] == ("the example", "batch 4", "size 40x40")
    shapes = [tuple(case.args[0].shape) for case in captured.more]
    assert shapes == [(4, 3, 8, 8), (2, 3, 40, 40), (2, 3, 5, 7)]
    assert captured.notes == ()
    for shape in ((1, 3, 8, 8), (5, 3, 11, 7)):
        assert same(captured, model, torch.rand(shape))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_graph_owns_its_weights_and_nothing_else() -> None:
    model = Small().eval()
    captured = capture(model, (torch.rand(2, 3, 8, 8),))
    names = dict(captured.module.named_parameters())
    assert "spare.weight" not in names
    assert names["head.weight"] is not model.head.weight
    assert not hasattr(captured.module, "spare")


def test_every_node_knows_its_value_site_and_source() -> None:
    captured = capture(Small().eval(), (torch.rand(2, 3, 8, 8),))
    nodes = {node.name: node for node in captured.module.graph.nodes}
    assert nodes["stem_0"].meta["val"] == TensorSpec((2, 8, 6, 6), torch.float32)
    assert nodes["stem_0"].meta["site"] == "stem.0"
    assert nodes["reshape"].meta["site"] == ""
    assert nodes["reshape"].meta["source"].startswith("test_capture.py:")
    sizes = [node for node in nodes.values() if node.target == "size"]
    assert sorted(node.meta["val"] for node in sizes) == [2, 8]
    assert all({"val", "site", "source", "mutates"} <= set(n.meta) for n in nodes.values())


def test_values_are_specifications_not_tensors() -> None:
    captured = capture(Small().eval(), (torch.rand(2, 3, 8, 8),))
    checks = assertions(captured.module.graph)
    for node in captured.module.graph.nodes:
        assert not isinstance(node.meta["val"], torch.Tensor)
        assert node in checks or type(node.meta["val"]) in (TensorSpec, int)


@dataclass
class Answer:
    logits: torch.Tensor
    hidden: torch.Tensor | None = None


class Structured(nn.Module):
    def __init__(self, shape: str) -> None:
        super().__init__()
        self.shape = shape
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.linear(x)
        return {
            "tuple": lambda: (y, None, x),
            "list": lambda: [y, [y + 1]],
            "dict": lambda: {"out": y, "size": x.shape[0]},
            "ordered": lambda: OrderedDict(out=y, aux=y * 2),
            "dataclass": lambda: Answer(y),
            "named": lambda: torch.return_types.max((y, y.argmax(1))),
            "input": lambda: x,
            "state": lambda: self.linear.weight,
        }[self.shape]()


@pytest.mark.parametrize(
    "shape", ["tuple", "list", "dict", "ordered", "dataclass", "named", "input", "state"]
)
def test_output_structure(shape: str) -> None:
    """H15."""
    model = Structured(shape).eval()
    captured = capture(model, (torch.rand(3, 4),))
    x = torch.rand(5, 4)
    assert type(captured.module(x)) is type(model(x))
    assert same(captured, model, x)


class Signature(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(
        self,
        x: torch.Tensor,
        scale: float = 2.0,
        *more: torch.Tensor,
        mask: torch.Tensor | None = None,
        **named: torch.Tensor,
    ) -> torch.Tensor:
        y = self.linear(x) * scale
        for extra in more:
            y = y + extra
        if mask is not None:
            y = y.masked_fill(mask, 0.0)
        return y - named["bias"] if "bias" in named else y


def test_signature_survives() -> None:
    """H15."""
    model = Signature().eval()
    captured = capture(model, (torch.rand(2, 4),))
    x = torch.rand(3, 4)
    assert same(captured, model, x, 3.0)
    assert same(captured, model, x, scale=0.5)
    assert "argument `mask` is left at None" in [about.why for about in captured.specialised]


def test_arguments_of_every_kind() -> None:
    """H15."""
    model = Signature().eval()
    x, mask = torch.rand(2, 4), torch.tensor([[True, False, False, True]] * 2)
    inputs = {"x": x, "mask": mask, "bias": x + 1}
    captured = capture(model, inputs)
    assert captured.kwargs.keys() == inputs.keys()
    assert same(captured, model, torch.rand(3, 4), mask=mask[:1], bias=torch.rand(4))
    captured = capture(model, (x, 2.0, x, x + 1))
    assert same(captured, model, x, 1.0, x * 2, x * 3)


Pair = namedtuple("Pair", "first second")


def test_containers_handed_to_an_opaque_module_keep_their_class() -> None:
    class Takes(nn.Module):
        def forward(self, pair: Any, answer: Answer) -> torch.Tensor:
            return pair.first * pair.second + answer.logits

    class Gives(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.takes = Takes()
            self.takes.register_forward_hook(lambda *_: None)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.takes(Pair(x, x + 1), Answer(x * 2))

    model = Gives().eval()
    captured = capture(model, (torch.rand(2, 3),))
    assert targets(captured) == ["takes"]
    assert same(captured, model, torch.rand(4, 3))


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        first, second = batch["pair"]
        return self.linear(first) + second * batch["weight"]


def test_nested_inputs() -> None:
    model = Nested().eval()
    make = lambda n: {"pair": (torch.rand(n, 4), torch.rand(n, 4)), "weight": torch.rand(n, 1)}  # noqa: E731
    captured = capture(model, (make(2),))
    assert same(captured, model, make(7))


def test_a_required_name_after_a_default() -> None:
    class Late(nn.Module):
        def forward(self, x: torch.Tensor, k: float = 2.0, *, y: torch.Tensor) -> torch.Tensor:
            return x * k + y

    model = Late().eval()
    captured = capture(model, {"x": torch.rand(2, 3), "y": torch.rand(2, 3)})
    assert same(captured, model, torch.rand(4, 3), 3.0, y=torch.rand(4, 3))


def test_branches_on_shapes_are_recorded() -> None:
    """H14."""

    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.ndim == 3 and len(x) < 100 and isinstance(x.shape[1], int):
                return x.sum(tuple(range(1, x.dim())))
            return x

    captured = capture(Branch().eval(), (torch.rand(2, 3, 4),))
    (about,) = captured.specialised
    assert "lt(size(x, 0), 100) is True" in about.why
    assert about.source.startswith("test_capture.py:")


def test_size_arithmetic_stays_in_the_graph() -> None:
    class Halves(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            half = x.size(1) // 2
            grid = torch.arange(x.shape[-1], dtype=x.dtype) / max(x.shape[-1] - 1, 1)
            return torch.cat([x[:, half:], x[:, :half]], 1) * grid + round(x.numel() / 2)

    model = Halves().eval()
    captured = capture(model, (torch.rand(2, 4, 4),))
    for shape in ((1, 6, 3), (4, 5, 9)):
        assert same(captured, model, torch.rand(shape))


def test_integers_in_the_input() -> None:
    class Count(nn.Module):
        def forward(self, x: torch.Tensor, times: int) -> torch.Tensor:
            return x.repeat(1, times) * times

    model = Count().eval()
    captured = capture(model, (torch.rand(2, 3), 2))
    assert same(captured, model, torch.rand(2, 3), 5)


def test_second_example_is_what_the_graph_must_hold_for() -> None:
    model = Small().eval()
    second = (torch.rand(3, 3, 12, 10),)
    captured = capture(model, (torch.rand(2, 3, 8, 8),), second=second)
    assert captured.proved[:2] == ("the example", "the second example")


def test_a_function_of_autograd_is_one_node() -> None:
    """H18."""

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    class Uses(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Double.apply(x) + Double.apply(x + 1)

    model = Uses().eval()
    captured = capture(model, (torch.rand(2, 3),))
    calls = [n.target for n in captured.module.graph.nodes if n.name.startswith("double")]
    assert len(calls) == 2
    assert calls[0] is calls[1]
    assert same(captured, model, torch.rand(4, 3))


def test_a_class_method_of_c_is_recorded_like_one_of_python(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Newer releases write `apply` in C, where it has no `__func__`."""
    written_in_c = vars(torch.autograd.Function.__mro__[2])["apply"]
    assert not hasattr(written_in_c, "__func__")
    monkeypatch.setattr(torch.autograd.Function, "apply", written_in_c)
    test_a_function_of_autograd_is_one_node()


@torch.jit.script
def scripted(x: torch.Tensor, times: int) -> torch.Tensor:
    return x.sigmoid() * times


def test_a_scripted_function_is_one_node() -> None:
    class Uses(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return scripted(x, x.shape[0])

    model = Uses().eval()
    captured = capture(model, (torch.rand(2, 3),))
    assert same(captured, model, torch.rand(5, 3))


def test_a_captured_module_can_be_captured_again() -> None:
    model = Small().eval()
    captured = capture(model, (torch.rand(2, 3, 8, 8),))
    again = capture(captured.module, (torch.rand(2, 3, 8, 8),))
    assert targets(again) == targets(captured)
    assert same(again, model, torch.rand(3, 3, 9, 9))


class _Deep(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_chain_of_5000_modules_costs_linear_time() -> None:
    """H25."""
    times = []
    for depth in (500, 5000):
        model = _Deep(depth).eval()
        start = time.process_time()
        captured = capture(model, (torch.rand(2, 2),))
        times.append(time.process_time() - start)
        assert len(targets(captured)) == depth
    assert times[1] < 30 * times[0]


class Positions(nn.Module):
    """Reads positions from a mask, so that a mask with zeros in front is out of range."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 4)

    def forward(self, mask: torch.Tensor) -> torch.Tensor:
        return self.table(mask.cumsum(1) - 1)


def test_a_batch_that_cannot_be_varied_is_repeated() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    captured = capture(Positions().eval(), (mask,))
    assert "batch 4" in captured.proved
    assert not any(note.code == "M009" for note in captured.notes)


def test_without_proof_only_the_example_is_compared() -> None:
    captured = capture(nn.Linear(4, 4).eval(), (torch.randn(2, 4),), prove=False)
    assert captured.proved == ("the example",)


class Packed(nn.Module):
    """Sequences of several lengths, without the padding between them."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.narrow, self.cells = nn.Linear(3, 4), kind(4, 5, batch_first=True)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, Any]:
        rnn = nn.utils.rnn
        x = torch.relu(self.narrow(x))
        packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, _ = self.cells(packed)
        padded, _ = rnn.pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])
        return padded, out.data.sum()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_packed_sequences_are_packed_anew_in_each_call(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    model = Packed(kind).eval()
    captured = capture(model, (torch.rand(3, 6, 3), torch.tensor([2, 6, 4])))
    assert captured.how == "trace"
    assert {"narrow", "cells"} <= set(targets(captured))
    assert same(captured, model, torch.rand(3, 6, 3), torch.tensor([6, 1, 3]))
    assert same(captured, model, torch.rand(2, 9, 3), torch.tensor([9, 5]))
