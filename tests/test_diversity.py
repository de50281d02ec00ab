"""Networks that NNSmith draws through the whole compiler; the judge that shares no code with it."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.journal import Verdict, VerdictKind
from lissom.rewrite.measure.compare import EQUALITY

FOLDER = Path(__file__).parent.parent / "benchmarks"

has_nnsmith = pytest.mark.skipif(
    importlib.util.find_spec("nnsmith") is None,
    reason="NNSmith draws the networks: pip install 'lissom[diversity]'",
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def diversity(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Benchmarks import each other as scripts do: from their own folder."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("diversity")


@pytest.fixture
def judging(diversity: ModuleType) -> ModuleType:
    return importlib.import_module("diversity_judge")


@pytest.fixture
def drawing(diversity: ModuleType) -> ModuleType:
    return importlib.import_module("diversity_models")


# -- the judge -------------------------------------------------------------------------------------


def net(judging: ModuleType, *steps: nn.Module | Callable[..., Any]) -> Any:
    """A chain of layers and functions; functions are called by their own names."""
    layers = [step for step in steps if isinstance(step, nn.Module)]
    found, value = [], "x"
    for number, step in enumerate(steps):
        args, out = (value,), f"v{number}"
        if isinstance(step, nn.Module):
            found.append(judging.Step("Layer", args, out, layer=layers.index(step)))
        else:
            kind = str(getattr(step, "__name__", "")).capitalize()
            found.append(judging.Step(kind, args, out, call=step))
        value = out
    return judging.OfOne(layers, found, ["x"], [value]).eval().requires_grad_(False)


def scaled(model: nn.Module, factor: float) -> nn.Module:
    """The model with every weight a little larger."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor)
    return model


def a_little_off(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with a result that is larger by a thousandth; an absent bias stays absent."""

    def off(*args: Any, **keywords: Any) -> Any:
        result = function(*args, **keywords)
        return result if result is None else result * 1.001

    return off


@pytest.fixture
def conv_bn(judging: ModuleType) -> Any:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(5)
    norm.load_state_dict({**norm.state_dict(), "running_mean": torch.randn(5)})
    return net(judging, nn.Conv2d(3, 5, 3), norm, nn.ReLU(), nn.Conv2d(5, 4, 1))


IMAGES = (torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1)),)


def test_another_rounding_is_no_difference(
    diversity: ModuleType, judging: ModuleType, conv_bn: Any
) -> None:
    result = lissom.compile(conv_bn, diversity.program(), inputs=IMAGES)
    assert [event.rule for event in result.applied] == ["fold_bn"]
    assert not torch.equal(result.model(*IMAGES)[0], conv_bn(*IMAGES)[0])
    assert judging.judge(conv_bn, result.model, IMAGES) == judging.Judgement()


@pytest.mark.parametrize("factor", [1.001, 0.999, 1.00003])
def test_weights_a_little_off_are_a_difference(
    judging: ModuleType, conv_bn: Any, factor: float
) -> None:
    other = scaled(judging.copy.deepcopy(conv_bn), factor)
    assert "where rounding gives" in judging.judge(conv_bn, other, IMAGES).wrong


def test_a_fold_that_is_wrong_is_seen_without_the_engines_checks(
    diversity: ModuleType,
    judging: ModuleType,
    conv_bn: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(FUNCTIONS, "scale", a_little_off(FUNCTIONS["scale"]))
    result = lissom.compile(conv_bn, diversity.program(), inputs=IMAGES, verify=False)
    assert result.applied
    assert judging.judge(conv_bn, result.model, IMAGES).wrong
    with pytest.raises(lissom.LissomError, match="V1"):
        lissom.compile(conv_bn, diversity.program(), inputs=IMAGES)


def test_one_channel_that_is_off_is_seen_beside_large_ones(
    judging: ModuleType, conv_bn: Any
) -> None:
    """A norm over all of the result would not see it."""
    with torch.no_grad():
        conv_bn.layers[3].weight[0] *= 1e6
        conv_bn.layers[3].bias[1:] *= 1e-3
        other = judging.copy.deepcopy(conv_bn)
        other.layers[3].weight[2] *= 1.001
    expected, found = conv_bn(*IMAGES)[0], other(*IMAGES)[0]
    assert float((expected - found).norm() / expected.norm()) < 1e-7
    assert judging.judge(conv_bn, other, IMAGES).wrong


def test_what_a_floor_makes_of_rounding_is_no_difference(judging: ModuleType) -> None:
    """0.01 x + 0.99 x is x but for its last bit, and its floor one less where x is whole."""
    model = net(judging, lambda x: x * 0.01 + x * 0.99, torch.floor)
    other = net(judging, lambda x: x * 1.0, torch.floor)
    wrong = net(judging, lambda x: x * 1.0001, torch.floor)
    x = (torch.arange(-20_000.0, 20_000.0),)
    assert not torch.equal(model(*x)[0], other(*x)[0])
    assert judging.judge(model, other, x) == judging.Judgement()
    assert judging.judge(model, wrong, x).wrong


def test_nan_and_infinity_keep_their_places(judging: ModuleType) -> None:
    model = net(judging, torch.reciprocal)
    x = (torch.tensor([0.0, -0.0, 1.0, torch.nan]),)
    for wrong in (torch.inf, torch.nan, 0.0):
        other = net(judging, lambda x, wrong=wrong: torch.where(x == 1, wrong, 1 / x))
        assert judging.judge(model, other, x).wrong
    assert judging.judge(model, net(judging, lambda x: -1 / -x), x).wrong == ""
    assert judging.judge(model, net(judging, lambda x: (1 / x).abs()), x).wrong


def test_form_and_whole_numbers_are_compared(judging: ModuleType) -> None:
    model = net(judging, lambda x: x.argmax(0))
    x = (torch.tensor([[1.0, 2.0], [3.0, 1.0]]),)
    assert judging.judge(model, net(judging, lambda x: x.argmin(0)), x).wrong
    assert judging.judge(model, net(judging, lambda x: x.argmax(0).int()), x).wrong
    assert judging.judge(model, net(judging, lambda x: x.argmax(0)[None]), x).wrong


def test_bits_are_asked_of_a_network_that_nothing_rewrote(
    judging: ModuleType, conv_bn: Any
) -> None:
    other = scaled(judging.copy.deepcopy(conv_bn), 1 + 2.0**-22)
    assert judging.judge(conv_bn, other, IMAGES).wrong == ""
    assert judging.judge(conv_bn, other, IMAGES, bits=True).wrong


# -- networks that NNSmith draws -------------------------------------------------------------------


@has_nnsmith
def test_five_networks_compute_the_same(diversity: ModuleType) -> None:
    found = diversity.run(5, seed=1)
    assert found.wrong == []
    assert found.tried == 5
    assert found.captured + found.refused.total() + found.invalid == 5
    assert found.rewrites.total() > 0
    assert "| mistakes | 0 |" in diversity.table(found)


@has_nnsmith
def test_a_seed_gives_one_network_alone_or_after_others(drawing: ModuleType) -> None:
    first = drawing.draw("same/1")
    drawing.draw("same/2")
    again = drawing.draw("same/1")
    assert first.text == again.text
    assert [*first.net.state_dict()] == [*again.net.state_dict()]
    for one, other in zip(first.net.parameters(), again.net.parameters(), strict=True):
        assert torch.equal(one, other)
    agree: list[tuple[Tensor, Tensor]] = list(zip(first.inputs(3), again.inputs(3), strict=True))
    assert all(torch.equal(one, other) for one, other in agree)


@has_nnsmith
def test_a_wrong_rule_is_found_in_drawn_networks(
    diversity: ModuleType, drawing: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the engine's own checks switched off, only the judge can see it."""
    for name in ("scale", "scale_inputs", "einsum"):
        monkeypatch.setitem(FUNCTIONS, name, a_little_off(FUNCTIONS[name]))
    monkeypatch.setattr(
        diversity,
        "model_equality",
        lambda *args: Verdict(EQUALITY, "", True, kind=VerdictKind.EQUALITY),
    )
    found = diversity.Found()
    number = 0
    while not found.wrong and number < 60:
        diversity.tried(f"wrong/{number}", found, verify=False)
        number += 1
    assert "where rounding gives" in found.wrong[0][1]


# -- without NNSmith -------------------------------------------------------------------------------


def test_without_nnsmith_the_extra_is_named(
    diversity: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(diversity, "NEEDED", ("nnsmith_that_is_nowhere",))
    monkeypatch.setattr("sys.argv", ["diversity.py", "--graphs", "1"])
    assert diversity.main() == 4
    assert "pip install 'lissom[diversity]'" in capsys.readouterr().err
    with pytest.raises(diversity.NeedsNNSmith, match="nowhere"):
        diversity.run(1)
