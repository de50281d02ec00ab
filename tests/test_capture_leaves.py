"""Captured graphs: which modules are one node, and what becomes of the others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lissom.rewrite.capture.capture import Captured, capture
from lissom.rewrite.capture.equality import first_difference

from .support import library, run


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def same(captured: Captured, model: nn.Module, *args: Any, **kwargs: Any) -> bool:
    with torch.no_grad():
        return first_difference(model(*args, **kwargs), captured.module(*args, **kwargs)) is None


def targets(captured: Captured, op: str = "call_module") -> list[Any]:
    return [node.target for node in captured.module.graph.nodes if node.op == op]


class Pad(nn.Conv2d):
    """Same padding computed from the input's size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        down = max((-(-height // 2) - 1) * 2 + 3 - height, 0)
        right = max((-(-width // 2) - 1) * 2 + 3 - width, 0)
        x = F.pad(x, [right // 2, right - right // 2, down // 2, down - down // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride)


class Renamed(nn.Conv2d):
    """A subclass that changes nothing."""


def test_subclasses_of_convolution() -> None:
    model = nn.Sequential(Pad(3, 4, 3, stride=2), Renamed(4, 4, 1), nn.Flatten(2)).eval()
    captured = capture(model, (torch.rand(2, 3, 9, 8),))
    assert targets(captured) == ["1", "2"]
    (conv,) = (n for n in captured.module.graph.nodes if n.target is torch.conv2d)
    assert [arg.target for arg in conv.args[1:3]] == ["0.weight", "0.bias"]
    assert conv.meta["site"] == "0"
    for size in ((8, 9), (16, 31)):
        assert same(captured, model, torch.rand(1, 3, *size))


def test_weights_given_by_name_are_written_by_position() -> None:
    class Named(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(input=x, weight=self.weight, bias=self.bias)

    captured = capture(nn.Sequential(Named(3, 4)).eval(), (torch.rand(2, 3),))
    (linear,) = captured.module.graph.find_nodes(op="call_function", target=F.linear)
    assert [arg.name for arg in linear.args] == ["input_1", "_0_weight", "_0_bias"]
    assert linear.kwargs == {}


def test_a_subclass_that_overrides_a_method_of_forward_is_no_leaf() -> None:
    class Doubled(nn.Conv2d):
        def _conv_forward(self, x: Any, weight: Any, bias: Any) -> torch.Tensor:
            return super()._conv_forward(x, weight, bias) * 2

    captured = capture(nn.Sequential(Doubled(3, 4, 1)).eval(), (torch.rand(2, 3, 4, 4),))
    assert targets(captured) == []


def harmless(base: type[nn.Module]) -> type[nn.Module]:
    """A subclass that overrides what a user's subclasses do override and forward does not use."""

    class Kept(base):  # type: ignore[misc, valid-type]
        in_features = 0

        def train(self, mode: bool = True) -> Any:
            return super().train(False)

        def reset_parameters(self) -> None:
            super().reset_parameters()

        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return super().state_dict(*args, **kwargs)

        def _load_from_state_dict(self, *args: Any) -> None:
            super()._load_from_state_dict(*args)

    return Kept


@pytest.mark.parametrize("base", [nn.Conv2d, nn.BatchNorm2d])
def test_a_leaf_of_the_capture_is_an_op_for_the_rules(base: type[nn.Module]) -> None:
    kinds = {kind: harmless(kind) if kind is base else kind for kind in (nn.Conv2d, nn.BatchNorm2d)}
    model = nn.Sequential(kinds[nn.Conv2d](3, 4, 1), kinds[nn.BatchNorm2d](4)).eval()
    driven = run(model, torch.rand(2, 3, 4, 4), library("fold")).check()
    assert driven.sites() == ["0"]


def test_leaves_of_torch_stay_whole() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 8, batch_first=True)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y, (hidden, _) = self.lstm(x)
            z, _ = self.attention(y, y, y, need_weights=False)
            return z + hidden[0].unsqueeze(1)

    model = Mixed().eval()
    captured = capture(model, (torch.rand(2, 5, 4),))
    assert targets(captured) == ["lstm", "attention"]
    assert same(captured, model, torch.rand(3, 9, 4))


def test_shared_calls_and_tied_weights() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(10, 4)
            self.block = nn.Linear(4, 4)
            self.again = self.block
            self.head = nn.Linear(4, 10, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.again(self.block(self.embed(ids))))

    model = Tied().eval()
    captured = capture(model, (torch.randint(0, 10, (2, 6)),))
    assert targets(captured) == ["embed", "block", "block", "head"]
    module = captured.module
    assert module.head.weight is module.embed.weight
    assert same(captured, model, torch.randint(0, 10, (3, 4)))
