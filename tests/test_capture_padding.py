"""`padding="same"` that differs at both ends: written as the padding and convolution it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lissom.rewrite.capture.capture import capture
from lissom.rewrite.graph.index import GraphView

from .captured import Lambda, same
from .support import library, random_norms, run

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

WEIGHT = torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(1))
GENERATOR = torch.Generator().manual_seed(0)
LINE = torch.randn(2, 3, 11, generator=GENERATOR)
IMAGE = torch.randn(2, 3, 9, 12, generator=GENERATOR)
VOLUME = torch.randn(2, 3, 5, 6, 7, generator=GENERATOR)


def called(**settings: Any) -> nn.Module:
    return Lambda(lambda m, x: F.conv1d(x, m.weight, **settings), weight=nn.Parameter(WEIGHT))


CASES: dict[str, tuple[Callable[[], nn.Module], torch.Tensor, list[int]]] = {
    "line": (lambda: nn.Conv1d(3, 4, 4, padding="same", dilation=3), LINE, [0, 1]),
    "rows": (lambda: nn.Conv2d(3, 4, (2, 3), padding="same"), IMAGE, [0, 0, 0, 1]),
    "columns": (lambda: nn.Conv2d(3, 4, (3, 4), padding="same"), IMAGE, [0, 1, 0, 0]),
    "both": (lambda: nn.Conv2d(3, 6, 2, padding="same", groups=3), IMAGE, [0, 1, 0, 1]),
    "volume": (lambda: nn.Conv3d(3, 4, (2, 3, 4), padding="same"), VOLUME, [0, 1, 0, 0, 0, 1]),
    "by name": (lambda: called(padding="same", dilation=(1,)), LINE, [0, 1]),
    "by position": (lambda: called(bias=None, stride=1, padding="same"), LINE, [0, 1]),
}


@pytest.mark.parametrize("name", CASES)
def test_the_odd_zero_is_a_node_of_its_own(name: str) -> None:
    build, x, ends = CASES[name]
    torch.manual_seed(0)
    model = build().eval()
    captured = capture(model, (x,))
    view = GraphView(captured.module)
    found = [call for node in captured.module.graph.nodes if (call := view.call(node))]
    assert [call.op.name for call in found] == ["pad", f"conv{x.dim() - 2}d"]
    assert list(found[0].attrs["pad"]) == ends
    assert found[1].input_specs()["x"].shape[2:] == tuple(
        size + extra for size, extra in zip(x.shape[2:], reversed(ends[1::2]), strict=True)
    )
    assert same(captured, model, torch.cat([x, x], -1))


EVEN: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "odd kernel": (lambda: nn.Conv1d(3, 4, 3, padding="same"), LINE),
    "even dilation": (lambda: nn.Conv2d(3, 4, (1, 2), padding="same", dilation=(5, 4)), IMAGE),
    "mirrored": (lambda: nn.Conv1d(3, 4, 4, padding="same", padding_mode="reflect"), LINE),
}


@pytest.mark.parametrize("name", EVEN)
def test_what_splits_in_halves_or_pads_no_zeros_stays_as_it_is(name: str) -> None:
    build, x = EVEN[name]
    model = nn.Sequential(build()).eval()
    captured = capture(model, (x,))
    assert [node.op for node in captured.module.graph.nodes][1:-1] == ["call_module"]
    assert captured.module.get_submodule("0").padding == "same"


def test_a_layer_that_runs_twice_is_opened_once() -> None:
    torch.manual_seed(0)
    layer = nn.Conv1d(3, 3, 2, padding="same")
    model = Lambda(lambda m, x: m.layer(m.layer(x)), layer=layer).eval()
    captured = capture(model, (LINE,))
    targets = [str(node.target) for node in captured.module.graph.nodes]
    assert targets.count("layer") == 2
    assert layer.padding == "same"
    assert same(captured, model, LINE)


def test_rules_fire_and_channels_can_be_cut() -> None:
    torch.manual_seed(0)
    first = nn.Conv2d(3, 8, (2, 4), padding="same")
    second = nn.Conv2d(8, 4, 2, padding="same")
    model = random_norms(nn.Sequential(first, nn.BatchNorm2d(8), nn.ReLU(), second))
    folded = run(model, IMAGE, library("fold")).check()
    assert folded.sites("fold_bn") == ["0"]
    cut = run(model, IMAGE, library("prune"), "once", ratio=0.5)
    assert cut.module.get_submodule("0").weight.shape[0] == 4
    assert cut.module.get_submodule("3").weight.shape[1] == 4
