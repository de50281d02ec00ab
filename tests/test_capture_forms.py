"""What a model asks of its inputs besides numbers and sizes: a call must give the same answer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.rewrite.capture.capture import Captured, capture
from lissom.rewrite.ops import allowed

from .captured import codes, same

LAST = torch.channels_last


class Asks(nn.Module):
    """A layer, then something that depends on what is asked of the input."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.layer(x.float()))
        return y if self.function(x) else -y


def images(kind: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, 4, 5).to(kind)


def captured(function: Callable[[Tensor], Any], x: Tensor | None = None) -> tuple[Asks, Captured]:
    model = Asks(function).eval()
    return model, capture(model, (images() if x is None else x,))


CHECKED: dict[str, tuple[Callable[[Tensor], Any], Callable[[], Tensor], str]] = {
    "order": (
        lambda x: x.is_contiguous(),
        lambda: images().to(memory_format=LAST),
        "`x` is not contiguous, and the graph was captured contiguous",
    ),
    "order inside": (
        lambda x: (x + 1).transpose(2, 3).is_contiguous(),
        lambda: images().to(memory_format=LAST),
        "`x` is not contiguous",
    ),
    "last stride": (
        lambda x: x.stride()[-1] == 1,
        lambda: images().to(memory_format=LAST),
        "`x` is not contiguous",
    ),
    "offset": (
        lambda x: x.storage_offset() == 0,
        lambda: torch.randn(3, 3, 4, 5)[1:],
        "`x` lies inside of a larger one",
    ),
    "type": (
        lambda x: x.dtype == torch.float32,
        lambda: images(torch.float64),
        r"`x` is torch\.float64, and the graph was captured with torch\.float32",
    ),
    "type of a product": (
        lambda x: torch.finfo((x * 2).dtype).bits == 32,
        lambda: images(torch.float64),
        r"`x` is torch\.float64",
    ),
    "type by a function": (
        lambda x: torch.is_floating_point(x),
        lambda: images(torch.int64),
        r"`x` is torch\.int64",
    ),
}


@pytest.mark.parametrize("kind", CHECKED)
def test_a_call_with_another_answer_raises_with_the_line(kind: str) -> None:
    function, other, text = CHECKED[kind]
    model, found = captured(function)
    assert same(found, model, torch.randn(5, 3, 7, 4))
    with pytest.raises(AssertionError, match=text) as caught:
        found.module(other())
    assert "(asked at test_capture_forms.py:" in str(caught.value)
    assert any(guard.source for guard in found.guards)
    assert found.notes == ()


def test_an_example_in_another_order_is_proven_in_that_order() -> None:
    model, found = captured(
        lambda x: x.is_contiguous(memory_format=LAST), images().to(memory_format=LAST)
    )
    assert found.notes == ()
    assert all(case.args[0].is_contiguous(memory_format=LAST) for case in found.more)
    assert same(found, model, torch.randn(3, 3, 8, 6).to(memory_format=LAST))
    with pytest.raises(AssertionError, match=r"is not in torch\.channels_last"):
        found.module(images())


def test_an_answer_that_follows_from_weights_binds_no_input() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, 4)

        def forward(self, words: Tensor, keep: Tensor) -> Tensor:
            y = self.table(words)
            return (y * keep.to(y.dtype)).to(y.dtype)

    model = Words().eval()
    found = capture(model, (torch.arange(6).view(2, 3), torch.ones(2, 3, 1)))
    assert found.guards == ()
    assert same(found, model, torch.arange(6).view(2, 3), torch.ones(2, 3, 1, dtype=torch.bool))


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("is_grad_enabled", lambda x: not torch.is_grad_enabled()),
        ("is_autocast_enabled", lambda x: not torch.is_autocast_enabled("cpu")),
        ("requires_grad", lambda x: not x.requires_grad),
        ("data_ptr", lambda x: x.data_ptr() > 0),
    ],
)
def test_what_no_call_can_be_held_to_is_told(name: str, function: Any) -> None:
    _, found = captured(function)
    (note,) = found.notes
    assert note.code == "M013"
    assert f"`{name}`" in note.message
    (label,) = note.labels
    assert label.where.startswith("test_capture_forms.py:")


def test_torchs_own_questions_of_gradients_are_not_told() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    assert "M013" not in codes(capture(model, (torch.randn(2, 3, 8),)))


def test_checks_of_types_outlive_rules_files_and_copies(tmp_path: Path) -> None:
    model = Asks(lambda x: x.dtype == torch.float32 and x.is_contiguous()).eval()
    fold = "pipeline p { stage s { once fold_bn } }"
    result = lissom.compile(model, fold, inputs=(images(),))
    assert result.applied
    result.save(tmp_path / "model")
    for module in (result.model, lissom.load(tmp_path / "model"), copy.deepcopy(result.model)):
        torch.testing.assert_close(module(images() * 0), model(images() * 0))
        with pytest.raises(AssertionError, match=r"captured with torch\.float32"):
            module(images(torch.float64))
        with pytest.raises(AssertionError, match="is not contiguous"):
            module(images().to(memory_format=LAST))


def test_an_exported_graph_keeps_the_types_it_was_exported_for() -> None:
    class Mapped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.vmap(lambda row: row * (2 if x.dtype == torch.float32 else 3))(x)

    found = capture(Mapped().eval(), (torch.randn(3, 4),))
    assert found.how == "export"
    with pytest.raises(AssertionError, match=r"captured with torch\.float32"):
        found.module(torch.randn(3, 4, dtype=torch.float64))


class Sums(nn.Module):
    """Asks for the length of a list, and whether there is a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, xs: list[Tensor], factor: Tensor | None = None) -> Tensor:
        y = self.layer(xs[0])
        for x in xs[1:]:
            y = y + x
        return y if factor is None else y * factor


@pytest.mark.parametrize("stored", [False, True])
def test_what_checks_a_call_can_be_pickled(stored: bool, tmp_path: Path) -> None:
    """torch.fx keeps the code of a graph and traces it to read it: `len(xs)` would run then."""
    model, xs = Sums().eval(), [torch.randn(2, 4)] * 3
    result = lissom.compile(model, "pipeline p { stage s { once fold_bn } }", inputs=(xs,))
    if stored:
        result.save(tmp_path / "artifact")
    torch.save(
        lissom.load(tmp_path / "artifact") if stored else result.model, tmp_path / "model.pt"
    )
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(again(xs), model(xs))
    with pytest.raises(AssertionError, match="captured with 3"):
        again(xs[:2])


def test_what_may_be_stored_is_not_what_stands_in_for_it_in_a_capture() -> None:
    """While a model is captured `len` is another one, and the table may be made first then."""

    class Looks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            allowed.functions()
            return x * 2

    allowed.functions.cache_clear()
    allowed.names_by_identity.cache_clear()
    capture(Looks().eval(), (torch.randn(2, 4),))
    assert allowed.functions()["len"] is len
    assert allowed.functions()["math.sqrt"] is math.sqrt
    assert allowed.names_by_identity()[id(len)] == "len"
