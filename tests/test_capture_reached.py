"""Modules that a model reaches without registering them are found, and belong to the copy."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.rewrite.capture.capture import capture

FOLD = "pipeline p { stage clean { fixpoint { fold_bn } } }"


class Calls(nn.Module):
    """The body is a function among the attributes, which leads back to the layers."""

    def __init__(self, make: Callable[[Calls], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.last = nn.Conv2d(6, 2, 1)
        self.body = make(self)

    def forward(self, x: Tensor) -> Tensor:
        body = self.body
        for step in body if isinstance(body, list) else [body]:
            x = step(x)
        return self.last(x)


def _closure(model: Calls) -> Callable[[Tensor], Tensor]:
    def inner(x: Tensor) -> Tensor:
        return model.norm(model.first(x))

    def outer(x: Tensor) -> Tensor:
        return torch.relu(inner(x))

    return outer


def _scaled(model: Calls, x: Tensor, scale: float) -> Tensor:
    return model.norm(model.first(x)) * scale


REACHED: dict[str, Callable[[Calls], Any]] = {
    "lambda": lambda model: lambda x: model.norm(model.first(x)),
    "closure of a closure": _closure,
    "default": lambda model: lambda x, layers=(model.first, model.norm): layers[1](layers[0](x)),
    "partial": lambda model: functools.partial(_scaled, model, scale=0.5),
    "partial of a lambda": lambda model: functools.partial(
        lambda scale, x: model.norm(model.first(x)) * scale, 0.5
    ),
    "list": lambda model: [lambda x: model.first(x), model.norm, torch.relu],
    "list in a cell": lambda model: _run([model.first, model.norm]),
}


def _run(steps: list[nn.Module]) -> Callable[[Tensor], Tensor]:
    return lambda x: functools.reduce(lambda value, step: step(value), steps, x)


def images() -> Tensor:
    return torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("how", REACHED)
def test_registered_layers_are_reached_in_the_copy(how: str) -> None:
    model = Calls(REACHED[how]).eval()
    before, expected = copy.deepcopy(model.state_dict()), model(images()).detach()
    captured = capture(model, (images(),)).module
    called = [node.target for node in captured.graph.nodes if node.op == "call_module"]
    assert called == ["first", "norm", "last"]
    assert sum(p.numel() for p in captured.parameters()) == sum(
        p.numel() for p in model.parameters()
    )
    result = lissom.compile(model, FOLD, inputs=(images(),))
    assert [event.rule for event in result.applied] == ["fold_bn"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        model.first.weight.mul_(3)
    torch.testing.assert_close(captured(images()), expected)


class Hidden(nn.Module):
    """Layers that are registered nowhere: in a list, in a dict, in a cell."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6).eval()]
        self.how, self.last = how, nn.Conv2d(6, 2, 1)
        if how == "list":
            self.steps = layers
        elif how == "dict":
            self.steps = {"conv": layers[0], "norm": layers[1]}
        else:
            self.steps = _run(layers)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "cell":
            return self.last(self.steps(x))
        steps = self.steps.values() if self.how == "dict" else self.steps
        return self.last(_run(list(steps))(x))


@pytest.mark.parametrize("how", ["list", "dict", "cell"])
def test_layers_that_nobody_registered_become_layers(how: str) -> None:
    model = Hidden(how).eval()
    expected = model(images()).detach()
    result = lissom.compile(model, FOLD, inputs=(images(),))
    called = [n.target for n in capture(model, (images(),)).module.graph.nodes]
    assert "steps_0" in called
    assert "steps_1" in called
    assert [event.rule for event in result.applied] == ["fold_bn"]
    assert result.before.params == 3 * 6 * 9 + 2 * 6 + 6 * 2 + 2
    torch.testing.assert_close(result.model(images()), expected)
    assert not any(name.startswith("steps") for name, _ in model.named_modules())


SCALE = nn.Parameter(torch.tensor(2.0))


class Global(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * SCALE


def test_a_parameter_of_nobody_stays_a_parameter() -> None:
    module = capture(Global().eval(), (images(),)).module
    assert [name for name, _ in module.named_parameters()] == ["parameter_0"]
    assert not list(module.buffers())


def test_a_structure_that_holds_itself_ends() -> None:
    model = Calls(REACHED["lambda"]).eval()
    held: list[Any] = [1]
    held.append(held)
    model.notes = held
    model.again = lambda: model.again
    assert capture(model, (images(),)).how == "trace"
