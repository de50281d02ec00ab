"""Features at other sizes than the example's: sizes that a movement writes as numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.rewrite.capture.capture import capture
from lissom.rewrite.channels import other_sizes
from lissom.rewrite.channels.classes import DimClass, classes
from lissom.rewrite.channels.other_sizes import analyse_at
from lissom.rewrite.graph.index import GraphView
from lissom.rewrite.measure.samples import Example

HALVES = """
pipeline halves {
  data calib = sample("train", 1)
  budget drift(outputs) <= 1000%
  stage cut { once prune_l1(ratio = 50%) }
}
"""


class OneImage(nn.Module):
    """Takes larger batches, and mixes their images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 1, bias=False)
        self.head = nn.Conv1d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).reshape(1, 6, -1))


class EachChannelAlone(nn.Module):
    """Channels go into the batch, and come back."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 1)
        self.blur = nn.Conv2d(1, 1, 3, padding=1)
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        b, c, h, w = y.shape
        return self.head(self.blur(y.reshape(b * c, 1, h, w)).reshape(b, c, h, w))


class Numbers(OneImage):
    """Looks at numbers on the way, so that shapes alone do not tell what it does."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.nonzero(x).shape[1]


def dims(model: nn.Module, *sizes: tuple[int, ...]) -> dict[str, DimClass]:
    """The classes, as they hold for all these sizes of the input."""
    inputs = [torch.randn(size, generator=torch.Generator().manual_seed(0)) for size in sizes]
    captured = capture(model.eval(), (inputs[0],))
    others = [Example(f"batch {len(x)}", (x,)) for x in inputs[1:]]
    return {dim.name: dim for dim in classes(analyse_at(GraphView(captured.module), others))}


@pytest.mark.parametrize("model", [OneImage, Numbers])
def test_a_batch_that_is_written_as_a_number_is_a_barrier(model: Any) -> None:
    assert not dims(model(), (1, 4, 3, 2))["conv"].blocks
    (reason,) = dims(model(), (1, 4, 3, 2), (2, 4, 3, 2))["conv"].blocks
    assert reason.node == "reshape"
    assert reason.reason == "it lays features out in another way on batch 2"


def test_what_follows_the_batch_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    ran = other_sizes.interpret
    monkeypatch.setattr(other_sizes, "interpret", lambda *a: (asked.append(a), ran(*a))[1])
    assert not dims(EachChannelAlone(), (1, 4, 3, 2), (2, 4, 5, 2))["conv"].blocks
    assert asked, "nothing asked how it lies at the other size"


def test_the_compiler_leaves_it_and_says_where() -> None:
    x = torch.randn(1, 4, 3, 2)
    found = lissom.compile(OneImage().eval(), HALVES, inputs=(x,), data=lambda split: [(x, x)])
    assert not found.applied
    assert any("reshape: it lays features out in another way" in n.message for n in found.notes)


def test_the_compiler_cuts_what_follows_the_batch() -> None:
    x = torch.randn(1, 4, 3, 2)
    found = lissom.compile(
        EachChannelAlone().eval(), HALVES, inputs=(x,), data=lambda split: [(x, x)]
    )
    assert [one.rule for one in found.applied]
    assert found.model(torch.randn(3, 4, 3, 2)).shape == (3, 3, 3, 2)
