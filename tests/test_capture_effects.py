"""Writes, hooks and odd inputs: nothing a forward does may be lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lissom.rewrite.capture.capture import capture
from lissom.rewrite.graph.building import assertions
from lissom.rewrite.graph.writes import written

from .captured import Lambda, codes, same


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# ----------------------------------------------------------------------------------------


def _unused_results(self: Any, x: torch.Tensor) -> torch.Tensor:
    y = x + 1
    y.mul_(2)
    y[:, 0] = 7
    self.relu(y)
    view = y.view(-1)
    view.sub_(0.5)
    torch.add(y, 1, out=y)
    F.hardtanh(y, -1, 1, inplace=True)
    y += x
    return y


def test_writes_whose_results_nobody_reads_survive() -> None:
    """S08, H05."""
    model = Lambda(_unused_results, relu=nn.ReLU(inplace=True)).eval()
    captured = capture(model, (torch.randn(2, 3),))
    assert same(captured, model, torch.randn(5, 3))
    writers = [node for node in captured.module.graph.nodes if written(node)]
    assert len(writers) == 7


def test_a_write_to_the_input_is_kept_and_the_given_tensor_is_not_touched() -> None:
    model = Lambda(lambda self, x: x.add_(1).mul(2)).eval()
    x = torch.zeros(2, 2)
    captured = capture(model, (x,))
    assert x.sum() == 0
    captured.module(x)
    assert x.sum() == 4


def test_reading_before_and_after_a_write() -> None:
    """H05."""

    def forward(self: Any, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = x * 1
        negative = -y
        same_object = y.contiguous()
        y.add_(1)
        return negative, same_object, y.neg().neg()

    model = Lambda(forward).eval()
    assert same(capture(model, (torch.rand(2, 2),)), model, torch.rand(3, 2))


def test_dead_code_goes() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        self.unused(x)
        x.exp()
        return self.used(x)

    model = Lambda(forward, used=nn.Linear(2, 2), unused=nn.Linear(2, 2)).eval()
    captured = capture(model, (torch.rand(2, 2),))
    checks = assertions(captured.module.graph)
    left = [node.op for node in captured.module.graph.nodes if node not in checks]
    assert left[1:] == [
        "call_function",
        "call_module",
        "output",
    ]
    assert "unused.weight" not in dict(captured.module.named_parameters())


def test_hooks_keep_running() -> None:
    """S26, H17."""
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Sequential(nn.ReLU()))
    calls: list[str] = []
    model[0].register_forward_hook(lambda module, args, output: output + 1)
    model[2].register_forward_pre_hook(lambda module, args: calls.append("pre"))
    model.eval()
    captured = capture(model, (torch.rand(2, 2, 4, 4),))
    assert codes(captured) == ["M007", "M007"]
    assert [path.partition(":")[0] for path in captured.opaque] == ["0", "2"]
    assert [note.labels[0].where for note in captured.notes] == ["0", "2"]
    calls.clear()
    assert same(captured, model, torch.rand(3, 2, 4, 4))
    assert calls == ["pre", "pre"]


def test_a_hook_that_only_looks_is_not_dead_code() -> None:
    seen: list[int] = []

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        self.probe(x)
        return x + 1

    model = Lambda(forward, probe=nn.Identity())
    model.probe.register_forward_hook(lambda *_: seen.append(1))
    captured = capture(model.eval(), (torch.rand(2),))
    seen.clear()
    captured.module(torch.rand(2))
    assert seen == [1]


def test_hooks_of_the_model_itself_move_to_the_captured_module() -> None:
    model = nn.Sequential(nn.Linear(2, 2)).eval()
    model.register_forward_hook(lambda module, args, output: output * 3)
    captured = capture(model, (torch.rand(2, 2),))
    assert codes(captured) == ["M007"]
    assert same(captured, model, torch.rand(4, 2))


def test_nan_equals_nan() -> None:
    model = Lambda(lambda self, x: torch.log(x - 1)).eval()
    assert capture(model, (torch.rand(2, 2),)).notes == ()


def test_empty_and_scalar_inputs() -> None:
    """H13."""
    model = Lambda(lambda self, x, s: x * s + x.sum()).eval()
    captured = capture(model, (torch.rand(0, 3), torch.tensor(2.0)))
    assert same(captured, model, torch.rand(2, 3), torch.tensor(3.0))


def test_inference_tensors_as_inputs() -> None:
    with torch.inference_mode():
        x = torch.rand(2, 3)
        captured = capture(nn.Sequential(nn.Linear(3, 3)).eval(), (x,))
    assert captured.how == "trace"
