"""Sizes and structures other than the example's: the captured module equals the model, or says what
it was captured for.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.rewrite.capture import axes
from lissom.rewrite.capture.capture import Captured, capture
from lissom.rewrite.graph.building import assertions

from .captured import codes, refusal, same

EXAMPLE = (3, 7, 4)


class Rows(nn.Module):
    """A layer on every row of [batch, length, 4], then something that depends on the length."""

    table: dict[int, float]

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)
        self.numbers = [1.5 * count for count in range(40)]
        self.named = {str(count): float(count) for count in range(40)}
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.layer(x))


def rows(function: Callable[..., Tensor]) -> tuple[Rows, Captured]:
    model = Rows(function).eval()
    return model, capture(model, (torch.randn(EXAMPLE),))


def by_loop(self: Rows, y: Tensor) -> Tensor:
    return sum(y[:, row] * (row + 1) for row in range(y.shape[1]))


def by_parts(self: Rows, y: Tensor) -> Tensor:
    return sum(part * (row + 1) for row, part in enumerate(y.unbind(1)))


FOLLOWED: dict[str, Callable[..., Tensor]] = {
    "square root": lambda self, y: y / math.sqrt(y.shape[1]),
    "logarithm": lambda self, y: y * math.log(y.size(1) + 1, 2),
    "product": lambda self, y: y * math.prod(y.shape[1:]),
    "numpy root": lambda self, y: y / np.sqrt(y.shape[1]),
    "numpy number": lambda self, y: y * (np.float64(0.3) * y.shape[1]),
    "quotient and remainder": lambda self, y: y[:, divmod(y.shape[1], 3)[1] :],
    "ceiling": lambda self, y: nn.functional.pad(y, (0, 0, 0, 4 * math.ceil(y.shape[1] / 4))),
}


@pytest.mark.parametrize("kind", FOLLOWED)
def test_arithmetic_on_a_length_stays_in_the_graph(kind: str) -> None:
    model, captured = rows(FOLLOWED[kind])
    for length in (2, 5, 7, 12):
        assert same(captured, model, torch.randn(2, length, 4))
    assert captured.notes == ()


NAMED: dict[str, tuple[Callable[..., Tensor], str]] = {
    "loop": (by_loop, "axis 1 of `x` is 7: looped over"),
    "parts": (by_parts, "axis 1 of `x` is 7: split into parts"),
    "integer": (lambda self, y: y[:, : int(y.shape[1] * 0.7)], "is 4: read by int()"),
    "text": (lambda self, y: y * self.named[f"{y.shape[1]}"], "written as text"),
    "key": (lambda self, y: y * {7: 2.0, 11: 4.0}[y.shape[1]], "used as a key"),
    "branch": (lambda self, y: -y if y.shape[1] > 8 else y, "gt(size(layer, 1), 8) is False"),
    "far branch": (lambda self, y: -y if y.shape[1] > 30 else y, "30) is False: branch"),
    "index": (lambda self, y: y * self.numbers[y.shape[1]], "a graph cannot follow"),
    "repeated": (lambda self, y: y + sum([0.5] * y.shape[1]), "repeats a list"),
    "numpy": (lambda self, y: y * float(np.arange(y.shape[1]).sum()), "axis 1 of `x` is 7"),
    "bits": (lambda self, y: y * y.shape[1].bit_length(), "read by bit_length()"),
    "made tensor": (lambda self, y: y * sum(torch.arange(y.shape[1]).tolist()), "tolist(arange("),
    "made flag": (lambda self, y: -y if torch.tensor(y.shape[1]) > 8 else y, "is False: branch"),
}


@pytest.mark.parametrize("kind", NAMED)
def test_what_python_takes_from_a_length_is_checked_in_every_call(kind: str) -> None:
    function, relation = NAMED[kind]
    model, captured = rows(function)
    assert same(captured, model, torch.randn(5, 7, 4))
    length = 40 if kind == "far branch" else 11
    with pytest.raises(AssertionError) as caught:
        captured.module(torch.randn(3, length, 4))
    text = str(caught.value)
    assert f"axis 1 of `x` is {length}, and was 7 in the example" in text
    assert relation in text
    assert "test_capture_sizes.py:" in text
    assert {guard.axis for guard in captured.guards if guard.axis is not None} == {1}


@pytest.mark.parametrize("kind", ["loop", "index"])
def test_a_contradicted_size_is_a_warning_with_its_line(kind: str) -> None:
    _, captured = rows(NAMED[kind][0])
    assert codes(captured)[0] == "M006"
    (label,) = captured.notes[0].labels
    assert label.where.startswith("test_capture_sizes.py:")
    assert "axis 1 of `x` is 7" in captured.notes[0].notes[0]


def test_a_decision_that_no_tried_size_contradicts_is_told() -> None:
    _, captured = rows(NAMED["far branch"][0])
    (note,) = captured.notes
    assert note.code == "M006"
    assert "on one side" in note.message
    assert "30) is False: branch" in note.notes[0]
    assert note.labels[0].where.startswith("test_capture_sizes.py:")


def test_the_batch_stays_what_the_graph_must_hold_for() -> None:
    class First(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return sum(x[row] * row for row in range(x.shape[0]))

    assert refusal(First().eval(), torch.rand(3, 2)).code == "M006"


def test_axes_that_belong_together_vary_together() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, words: Tensor, keep: Tensor) -> Tensor:
            y = self.layer(words) * keep[..., None]
            return y / 2 if words.shape[1] == 5 else y

    captured = capture(Masked().eval(), (torch.randn(2, 5, 6), torch.ones(2, 5)))
    label = "axis 1 of `words`, axis 1 of `keep` at 8"
    assert any(label in note.message for note in captured.notes)
    with pytest.raises(AssertionError, match="axis 1 of `words` is 9, and was 5"):
        captured.module(torch.randn(2, 9, 6), torch.ones(2, 9))


def test_an_axis_that_the_model_fixes_needs_no_check() -> None:
    captured = capture(nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval(), (torch.randn(2, 4),))
    assert captured.guards == ()
    assert not assertions(captured.module.graph)


def test_height_and_width_are_told_apart() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, image: Tensor) -> Tensor:
            return self.layer(image) * len(str(image.shape[3]))

    model = Wide().eval()
    captured = capture(model, (torch.rand(1, 3, 8, 8),))
    assert same(captured, model, torch.rand(1, 3, 40, 8))
    with pytest.raises(AssertionError, match="axis 3 of `image` is 40, and was 8"):
        captured.module(torch.rand(1, 3, 8, 40))


def test_one_image_given_twice() -> None:
    class Both(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return left + 2 * right

    image = torch.rand(1, 3, 8, 8)
    captured = capture(Both().eval(), (image, image))
    assert captured.proved[2] == "size 40x40"


def test_a_size_inside_the_network_is_checked_where_it_is() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv1d(2, 2, 3, stride=3)

        def forward(self, sound: Tensor) -> Tensor:
            y = self.layer(sound)
            return y.flip(-1) if y.shape[2] % 2 else y

    model = Small().eval()
    captured = capture(model, (torch.randn(2, 2, 24),))
    assert same(captured, model, torch.randn(2, 2, 30))
    with pytest.raises(AssertionError, match="axis 2 of `sound` is 21, and was 24"):
        captured.module(torch.randn(2, 2, 21))


def test_several_further_examples_are_proven_besides() -> None:
    model = Rows(lambda self, y: y.mean(1)).eval()
    second = [(torch.randn(2, 9, 4),), (torch.randn(1, 1, 4),)]
    captured = capture(model, (torch.randn(EXAMPLE),), second=second)
    assert captured.proved[:3] == ("the example", "the second example", "example 3")
    assert [case.label for case in captured.more] == list(captured.proved[1:])
    shapes = [tuple(case.args[0].shape) for case in captured.more]
    assert shapes[:2] == [(2, 9, 4), (1, 1, 4)]
    assert {size for _, size, _ in shapes[2:]} >= {7, 11}
    other = (torch.randn(2, 9, 4),)
    assert refusal(Rows(by_loop).eval(), torch.randn(EXAMPLE), second=other).code == "M006"


@pytest.mark.parametrize(("limit", "value"), [("_ATTEMPTS", 2), ("_SECONDS", -1.0)])
def test_axes_that_the_limits_cut_off_are_named(
    limit: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Flatten(2), nn.ReLU()).eval()
    x = torch.randn(2, 6, 7, 8, 9)
    assert capture(model, (x,)).notes == ()
    monkeypatch.setattr(axes, "_TIMES", -1.0)
    monkeypatch.setattr(axes, limit, value)
    (note,) = capture(model, (x,)).notes
    assert note.code == "M014"
    assert "axis 4 of `input` could not be tried at other sizes" in note.message
    assert "`second` in the model file" in note.helps[0]


# -- the structure of a call ---------------------------------------------------------------------


class Choosy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(
        self,
        x: Any,
        mask: Tensor | None = None,
        mode: str = "plain",
        twice: bool = False,
        power: int = 1,
    ) -> Tensor:
        parts = [x] if isinstance(x, Tensor) else list(x.values() if isinstance(x, dict) else x)
        y = sum(self.layer(part) for part in parts)
        y = y if mask is None else y * mask
        y = y.abs() if mode == "size" else y
        return (2 * y if twice else y) ** power


ROW, MASK = torch.ones(2, 4), torch.zeros(2, 4)
CALLS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a mask": (
        {"x": ROW},
        {"x": ROW, "mask": MASK},
        "`mask` is given, and the graph was captured w",
    ),
    "no mask": ({"x": ROW, "mask": MASK}, {"x": ROW}, "`mask` is missing"),
    "another word": ({"x": ROW}, {"x": ROW, "mode": "size"}, "`mode` is size, .* with 'plain'"),
    "another flag": ({"x": ROW, "twice": True}, {"x": ROW}, "`twice` is False, .* with True"),
    "a longer list": ({"x": [ROW]}, {"x": [ROW, ROW]}, "`x` has 2 items, .* with 1"),
    "a shorter list": ({"x": [ROW, ROW]}, {"x": [ROW]}, "`x` has 1 items, .* with 2"),
    "another key": ({"x": {"a": ROW}}, {"x": {"b": ROW}}, r"keys \['b'\], .* with \['a'\]"),
    "one more key": ({"x": {"a": ROW}}, {"x": {"a": ROW, "b": ROW}}, r"keys \['a', 'b'\], "),
    "a missing key": ({"x": {"a": ROW, "b": ROW}}, {"x": {"a": ROW}}, r"keys \['a'\], .* 'b'"),
}


@pytest.mark.parametrize("kind", CALLS)
def test_a_call_of_another_structure_raises(kind: str) -> None:
    example, call, text = CALLS[kind]
    captured = capture(Choosy().eval(), example)
    captured.module(**copy.deepcopy(example))
    with pytest.raises(AssertionError, match=text):
        captured.module(**call)


def test_words_inside_of_an_input_are_fixed_and_listed() -> None:
    class Batch(nn.Module):
        def forward(self, batch: dict[str, Any]) -> Tensor:
            return -batch["x"] if batch["names"][0] == "a" else batch["x"]

    found = capture(Batch().eval(), ({"x": ROW, "names": ["a", "b"], "none": None},))
    assert [about.why for about in found.specialised] == [
        "argument `batch['names'][0]` is fixed to 'a'",
        "argument `batch['names'][1]` is fixed to 'b'",
        "argument `batch['none']` is fixed to None",
    ]
    with pytest.raises(AssertionError, match=r"`batch\['names'\]\[0\]` is c, .* with 'a'"):
        found.module({"x": ROW, "names": ["c", "b"], "none": None})


def test_numbers_among_the_arguments_stay_free_until_a_branch() -> None:
    model = Choosy().eval()
    captured = capture(model, {"x": ROW, "power": 1})
    with torch.no_grad():
        assert torch.equal(captured.module(x=ROW, power=3), model(x=ROW, power=3))

    class Branch(nn.Module):
        def forward(self, x: Tensor, times: int) -> Tensor:
            return x if times == 1 else x * times

    branch = capture(Branch().eval(), (ROW, 1))
    with pytest.raises(AssertionError, match="`times` is 3, and was 1 in the example"):
        branch.module(ROW, 3)


def test_another_number_of_axes_raises_where_the_code_asked_for_it() -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.unsqueeze(0) if x.dim() == 1 else x

    captured = capture(Flat().eval(), (torch.rand(2, 3),))
    with pytest.raises(AssertionError, match="`x` has 1 axes, and the graph was captured with 2"):
        captured.module(torch.rand(3))


# -- after capture -------------------------------------------------------------------------------


class Normed(nn.Module):
    """Something to fold behind a branch on a length."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 1)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.norm(self.conv(x))
        return y.cumsum(2) if x.shape[2] < 9 else y


def test_checks_outlive_rules_files_and_copies(tmp_path: Path) -> None:
    model, x = Normed().eval(), torch.randn(2, 3, 6)
    result = lissom.compile(model, "pipeline p { stage s { once fold_bn } }", inputs=(x,))
    assert result.before.ops - result.after.ops == 1
    assert result.before.ops == 3
    result.save(tmp_path / "model")
    modules = [result.model, lissom.load(tmp_path / "model"), copy.deepcopy(result.model)]
    for module in modules:
        assert module(x).shape == (2, 4, 6)
        with pytest.raises(AssertionError, match="axis 2 of `x` is 12, and was 6"):
            module(torch.randn(2, 3, 12))
        with pytest.raises(AssertionError, match="`mask` is given"):
            module(x, torch.ones(2))


def test_checks_outlive_a_cut() -> None:
    cut = "pipeline p { budget drift(outputs) <= 100% \n stage s { once prune_l1(ratio = 50%) } }"
    model = nn.Sequential(nn.Conv1d(3, 8, 1), nn.ReLU(), Normed().eval())
    model[2].conv = nn.Conv1d(8, 4, 1)
    result = lissom.compile(model.eval(), cut, inputs=(torch.randn(2, 3, 6),))
    assert result.after.params < result.before.params
    with pytest.raises(AssertionError, match="axis 2 of `input` is 12, and was 6"):
        result.model(torch.randn(2, 3, 12))


def test_a_captured_module_exports_and_is_captured_again() -> None:
    captured = capture(Normed().eval(), (torch.randn(2, 3, 6),))
    program = torch.export.export(captured.module, (torch.randn(2, 3, 6),))
    assert program.module()(torch.ones(2, 3, 6)).shape == (2, 4, 6)
    again = capture(captured.module, (torch.randn(2, 3, 6),))
    assert again.module(torch.ones(2, 3, 8)).shape == (2, 4, 8)
    with pytest.raises(AssertionError, match="axis 2 of `x` is 12"):
        again.module(torch.randn(2, 3, 12))


class Reads(nn.Module):
    """What Python is told of the numbers in its inputs."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(4, 4), function

    def forward(self, x: Tensor, marks: Tensor) -> Tensor:
        return self.function(self.layer(x), marks)


READ: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "longest": lambda y, marks: y[:, : int(marks.max())],
    "none missing": lambda y, marks: y if bool((marks > 0).all()) else y * marks[:, None, None],
}


@pytest.mark.parametrize("kind", READ)
def test_what_was_read_from_data_is_checked_in_every_call(kind: str) -> None:
    """Both are the same for the example in another order."""
    torch.manual_seed(0)
    model, x = Reads(READ[kind]).eval(), torch.randn(2, 5, 4)
    captured = capture(model, (x, torch.tensor([3, 4])))
    for marks in ([4, 3], [4, 1]):
        given = (torch.randn(2, 5, 4), torch.tensor(marks))
        assert torch.equal(captured.module(*given), model(*given))
    with pytest.raises(AssertionError, match="`marks` holds other values than in the example"):
        captured.module(x, torch.tensor([0, 2]))


def test_a_mean_that_was_read_is_checked() -> None:
    """It is the same for the doubled batch, whose second half holds the same numbers again."""
    model, x = Reads(lambda y, marks: y * float(marks.float().mean())).eval(), torch.randn(2, 5, 4)
    captured = capture(model, (x, torch.tensor([3, 5])))
    with pytest.raises(AssertionError, match=r"float\(mean\(float\(marks\)\)\) is 4.0"):
        captured.module(x, torch.tensor([3, 4]))
