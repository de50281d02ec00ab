"""What happens where a trace fails: export, then an opaque module, then a refusal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.capture.capture import capture
from lissom.rewrite.capture.equality import first_difference


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.mix = nn.Linear(4, 4)
        self.register_buffer("basis", torch.rand(4, 4))

    def forward(self, x: torch.Tensor, *, scale: float = 2.0) -> dict[str, Any]:
        y = self.act(self.norm(self.conv(self.conv(x))))
        tokens = self.mix(y.flatten(2).transpose(1, 2))
        tokens = torch.vmap(lambda one: one @ self.basis)(tokens) + torch.tensor([1.0, 2, 3, 4])
        return {"tokens": tokens * scale, "maps": (y, None)}


def test_vmap_goes_through_export_and_back_to_modules() -> None:
    model = Block().eval()
    captured = capture(model, (torch.rand(2, 4, 6, 6),))
    assert captured.how == "export"
    nodes = captured.module.graph.nodes
    calls = [node.target for node in nodes if node.op == "call_module"]
    assert calls == ["conv", "conv", "norm", "act", "mix"]
    assert all({"val", "site", "source", "mutates"} <= set(node.meta) for node in nodes)
    assert "argument `scale` is fixed to 2.0" in [about.why for about in captured.specialised]
    x = torch.rand(3, 4, 9, 5)
    with torch.no_grad():
        assert first_difference(model(x), captured.module(x)) is None
    state = dict(captured.module.named_parameters())
    assert "conv.weight" in state
    assert torch.equal(state["conv.weight"], model.conv.weight)


class Part(nn.Module):
    """Neither traced nor exported: its result leaves torch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(x.numpy() * 2)


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.part = nn.Sequential(Part())
        self.last = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.part(self.first(x)) + 1)


def test_the_offending_module_stays_whole() -> None:
    model = Whole().eval()
    captured = capture(model, (torch.rand(2, 4),))
    assert captured.how == "trace with opaque leaves"
    assert [o.partition(":")[0] for o in captured.opaque] == ["part.0"]
    calls = [node.target for node in captured.module.graph.nodes if node.op == "call_module"]
    assert calls == ["first", "part.0", "last"]
    x = torch.rand(5, 4)
    with torch.no_grad():
        assert first_difference(model(x), captured.module(x)) is None


def test_a_model_that_is_the_offender_is_refused_with_its_line() -> None:
    with pytest.raises(LissomError) as caught:
        capture(Part().eval(), (torch.rand(2, 4),))
    text = str(caught.value)
    assert "M004" in text or "M006" in text
    assert "test_capture_export.py:" in text
    assert "torch.export does not help" in text
