"""A release of torch that reports a call otherwise is named; no rule stays silent."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.__main__ import main
from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.capture.capture import capture
from lissom.rewrite.capture.instruments import check_instruments
from lissom.rewrite.ops import read_back
from lissom.rewrite.ops.example_calls import examples
from lissom.rewrite.ops.read_back import hidden_ops, lost_spellings
from lissom.rewrite.ops.vocabulary import Vocabulary
from lissom.rewrite.torch_internals import FUSED_ENCODER, silent

LIBRARY = Vocabulary.library()


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(read_back, "_CHECKED", set())
    check_instruments.cache_clear()
    yield
    monkeypatch.undo()
    check_instruments.cache_clear()


def unreported(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method as a release would have it that does not report it."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with silent():
            return method(*args, **kwargs)

    return call


def test_every_op_is_read_back_from_every_spelling() -> None:
    assert list(hidden_ops(LIBRARY)) == []


def test_a_spelling_stands_for_what_follows_from_it() -> None:
    op = LIBRARY["sub"]
    names = [example.name for each in op.signatures for example in examples(op, each)]
    for name in ("operator.sub", "operator.sub of a number", "operator.isub", "torch.sub"):
        assert name in names
    assert {"Tensor.sub", "Tensor.sub_"} <= set(names)


@pytest.mark.parametrize(
    ("op", "method", "spelling"),
    [
        ("mul", "__mul__", "operator.mul"),
        ("sub", "__rsub__", "operator.sub of a number"),
        ("div", "__itruediv__", "operator.itruediv"),
        ("sigmoid", "sigmoid", "Tensor.sigmoid"),
        ("sigmoid", "sigmoid_", "Tensor.sigmoid_"),
    ],
)
def test_what_is_not_reported_is_named(
    op: str, method: str, spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tensor, method, unreported(getattr(Tensor, method)))
    assert lost_spellings(LIBRARY[op], LIBRARY)[spelling] == "torch does not report it"


def test_what_arrives_under_another_name_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "relu", lambda x: x.clamp_min_(0))
    assert lost_spellings(LIBRARY["relu"], LIBRARY) == {"Tensor.relu": "it arrives as clamp_min_"}


def test_an_argument_of_another_name_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "softmax", lambda x, axis: torch.softmax(x, axis))
    (reason,) = lost_spellings(LIBRARY["softmax"], LIBRARY).values()
    assert "unexpected keyword argument" in reason


def test_a_setting_of_a_layer_under_another_name_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Renamed(nn.LeakyReLU):
        def __init__(self) -> None:
            super().__init__()
            del self.negative_slope

    monkeypatch.setattr(
        "lissom.rewrite.ops.example_calls._Maker._layer", lambda self, kind: Renamed()
    )
    lost = lost_spellings(LIBRARY["leaky_relu"], LIBRARY)
    assert lost == {"torch.nn.LeakyReLU": "the module has no `negative_slope`"}


PROGRAM = "pipeline p { stage s { once fold_shift } }"


def test_a_rule_that_looks_for_a_hidden_op_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "__add__", unreported(Tensor.__add__))
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU()).eval()
    with pytest.raises(LissomError) as caught:
        lissom.compile(model, PROGRAM, inputs=torch.ones(1, 2, 3, 3))
    found = caught.value.diagnostics[0]
    assert (found.code, "operator.add" in found.message) == ("T008", True)
    assert torch.__version__ in found.message


@pytest.mark.parametrize("opaque", [False, True])
def test_a_cut_asks_for_every_op_that_the_model_may_have(
    opaque: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An op that is not read keeps features from being cut: it may be the one that is hidden."""
    monkeypatch.setattr(Tensor, "cosh", unreported(Tensor.cosh))
    layers = [nn.Linear(3, 8), Sorts() if opaque else nn.Tanh(), nn.Linear(8, 2)]
    text = "pipeline p { budget drift(outputs) <= 200%; stage s { once prune_l1 } }"
    if not opaque:
        assert lissom.compile(nn.Sequential(*layers).eval(), text, inputs=torch.ones(1, 3)).applied
        return
    with pytest.raises(LissomError, match="T008"):
        lissom.compile(nn.Sequential(*layers).eval(), text, inputs=torch.ones(1, 3))


class Sorts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.msort(x)


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2


class Applies(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Twice.apply(x) + 1


@pytest.mark.parametrize("broken", ["raises", "hides"])
def test_a_capture_that_cannot_hear_says_so(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not: falls back to another way of capturing, in whose graph no rule fits."""

    def recording(recorder: Any) -> Any:
        if broken == "raises":
            raise AttributeError("no such entry point")
        return silent()

    monkeypatch.setattr("lissom.rewrite.capture.tracer.recording", recording)
    with pytest.raises(LissomError) as caught:
        capture(Applies().eval(), (torch.ones(2),))
    (found,) = caught.value.diagnostics
    assert found.code == "T008"
    assert ("no such entry point" in found.notes[0]) == (broken == "raises")


def test_a_name_that_is_gone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, FUSED_ENCODER)
    with pytest.raises(LissomError) as caught:
        capture(Applies().eval(), (torch.ones(2),))
    assert f"module.{FUSED_ENCODER} is not there" in caught.value.diagnostics[0].notes[0]


@pytest.mark.parametrize("hides", [False, True])
def test_doctor_asks_for_every_spelling(
    hides: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if hides:
        monkeypatch.setattr(Tensor, "cosh", unreported(Tensor.cosh))
    assert main(["doctor", "--format", "json"]) == (2 if hides else 0)
    document = json.loads(capsys.readouterr().out)
    codes = [found["code"] for found in document["diagnostics"]]
    assert codes == (["T008"] if hides else [])
    assert document["found"]["ops"].endswith(
        "1 hidden by this torch" if hides else "0 hidden by this torch"
    )
