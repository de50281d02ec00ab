"""Inputs and data in every form that callers have them in."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lissom
from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.capture.capture import capture
from lissom.rewrite.measure.batches import Taken, batch_size, part

FOLD = "pipeline p { stage clean { fixpoint { fold_bn_linear } } }"
FACTOR = """pipeline p {
  data calib = sample("train", 6)
  stage factor { once low_rank_linear(energy = 30%, least = 1, budget = 99%) }
}"""


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)

    def forward(self, x: Tensor, scale: Tensor | None = None, *, gain: float = 1.0) -> Tensor:
        y = self.last(torch.relu(self.norm(self.first(x)))) * gain
        return y if scale is None else y * scale


class Passes(nn.Module):
    """A wrapper that knows no names, as many libraries put around models."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Scaled()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.inner(*args, **kwargs)


class Named(Passes):
    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return self.inner(x, **kwargs)


class Whole(Passes):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.inner(batch["x"], scale=batch.get("scale"))


def rows(count: int = 4) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(count))


def scales(count: int = 4) -> Tensor:
    return torch.rand(count, 1, generator=torch.Generator().manual_seed(count)) + 1


@pytest.mark.parametrize("kind", [Scaled, Passes, Named])
@pytest.mark.parametrize("scaled", [False, True], ids=["x", "x and scale"])
def test_inputs_by_name(kind: type[nn.Module], scaled: bool) -> None:
    def given(count: int) -> dict[str, Tensor]:
        return {"x": rows(count)} | ({"scale": scales(count)} if scaled else {})

    model = kind().eval()
    result = lissom.compile(model, FOLD, inputs=given(4))
    assert len(result.applied) == 1
    torch.testing.assert_close(result.model(**given(7)), model(**given(7)))
    with pytest.raises(TypeError, match="unexpected keyword argument 'mask'"):
        result.model(**given(4), mask=None)


def test_what_a_model_never_names_is_not_swallowed() -> None:
    module = capture(Passes().eval(), {"x": rows()}).module
    with pytest.raises(AssertionError, match=r"`by_position` is given, .* with `x` by name"):
        module(rows(), scales())


@pytest.mark.parametrize("kind", [Passes, Named])
def test_names_that_no_declaration_orders_have_no_place(
    kind: type[nn.Module], tmp_path: Any
) -> None:
    """In the example the names stand in another order than the model takes them by position."""
    model, given = kind().eval(), {"scale": scales(), "x": rows()}
    result = lissom.compile(model, FOLD, inputs=given)
    result.save(tmp_path / "model")
    for module in (result.model, lissom.load(tmp_path / "model")):
        torch.testing.assert_close(
            module(x=rows(7), scale=scales(7)), model(rows(7), scale=scales(7))
        )
        for call in ((scales(), rows()), (rows(), scales())):
            with pytest.raises(AssertionError, match=r"`scale`.* by name"):
                module(*call)
        with pytest.raises(AssertionError, match="`scale` is missing"):
            module(x=rows())


def test_what_takes_the_place_of_positions_gives_way_to_an_input_of_its_name() -> None:
    class Sum(nn.Module):
        def forward(self, **values: Tensor) -> Tensor:
            return values["by_position"] - values["other"]

    module = capture(Sum().eval(), {"other": rows(), "by_position": scales()}).module
    assert torch.equal(module(other=rows(), by_position=scales()), scales() - rows())
    with pytest.raises(AssertionError, match="`by_position_` is given"):
        module(rows(), scales())


def test_a_batch_by_position_of_a_model_shown_by_name_is_told() -> None:
    with pytest.raises(LissomError) as caught:
        lissom.compile(Passes().eval(), FACTOR, inputs={"x": rows()}, data=[(rows(), None)])
    (found,) = caught.value.diagnostics
    assert found.code == "D007"
    assert "by position, and the example gives x by name" in found.notes[0]


def test_an_input_that_no_parameter_can_be_called_is_refused() -> None:
    with pytest.raises(LissomError) as caught:
        capture(Passes().eval(), {"x": rows(), "class": scales()})
    assert caught.value.diagnostics[0].code == "M004"


BATCHES: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "x and y": (Scaled, (rows(6), torch.zeros(6))),
    "x alone": (Scaled, rows(6)),
    "one-tuple": (Scaled, (rows(6),)),
    "positional": (Scaled, ((rows(6), scales(6)), torch.zeros(6))),
    "by name": (Scaled, ({"x": rows(6), "scale": scales(6)}, torch.zeros(6))),
    "one mapping": (Scaled, {"x": rows(6), "labels": torch.zeros(6)}),
    "no dict": (Passes, UserDict(x=rows(6), scale=scales(6))),
    "an input that is a dict": (Whole, ({"x": rows(6), "scale": scales(6)}, torch.zeros(6))),
}


@pytest.mark.parametrize("form", BATCHES)
@pytest.mark.parametrize("shown", [False, True], ids=["example from data", "example given"])
def test_a_batch_in_every_form(form: str, shown: bool) -> None:
    kind, batch = BATCHES[form]
    example = EXAMPLES.get(form, (rows(),)) if shown else None
    result = lissom.compile(kind().eval(), FACTOR, inputs=example, data=[batch, batch])
    assert result.applied
    assert result.compiled.samples.count([batch, batch]) == 12


EXAMPLES: dict[str, Any] = {
    "positional": (rows(), scales()),
    "by name": {"x": rows(), "scale": scales()},
    "no dict": {"x": rows(), "scale": scales()},
    "an input that is a dict": ({"x": rows(), "scale": scales()},),
}


def test_a_loader_and_a_function_give_the_same() -> None:
    data = TensorDataset(rows(6), torch.zeros(6))
    loader = DataLoader(data, batch_size=2)
    one = lissom.compile(Scaled().eval(), FACTOR, inputs=(rows(),), data=loader)
    two = lissom.compile(Scaled().eval(), FACTOR, inputs=(rows(),), data=lambda split: loader)
    assert one.certificate["model"] == two.certificate["model"]


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (({"x": rows(), "mask": scales()}, None), "'mask'"),
        (({"scale": scales()}, None), "no 'x'"),
        ((rows(), scales(), scales()), "of 3"),
    ],
)
def test_a_batch_that_does_not_fit_is_told(batch: Any, said: str) -> None:
    with pytest.raises(LissomError) as caught:
        lissom.compile(Scaled().eval(), FACTOR, inputs=(rows(),), data=[batch])
    (found,) = caught.value.diagnostics
    assert found.code == "D007"
    assert said in found.notes[0]


def test_gradients_are_of_the_targets_that_a_mapping_holds() -> None:
    program = """
    approx rule cut {
      match dim D in channels
      where {
        not boundary(D)
        sliceable(D)
      }
      let { keep = top(taylor_over(writers(D), gradients(writers(D))), D // 2) }
      perturb { zero(readers(D), outside = keep) }
      rewrite { D := keep }
    }
    pipeline p {
      data calib = sample("train", 6)
      budget drift(outputs) <= 100%
      stage cut { once cut }
    }"""
    classes = torch.tensor([0, 1, 2, 0, 1, 2])
    named = {"x": rows(6), "labels": classes}
    results = [
        lissom.compile(Scaled().eval(), program, inputs=(rows(),), data=[batch])
        for batch in (named, (rows(6), classes))
    ]
    assert results[0].applied
    assert results[0].certificate["model"] == results[1].certificate["model"]


def test_parts_of_a_batch() -> None:
    batch = ({"x": rows(6), "flag": True}, torch.arange(6))
    inputs, targets = part(batch, 6, 4, 1)
    assert torch.equal(inputs["x"], rows(6)[1:4])
    assert torch.equal(targets, torch.arange(1, 4))
    assert part(UserDict(x=rows(6)), 6, 2)["x"].shape == (2, 8)
    images = [torch.rand(3, 8, 8), torch.rand(3, 6, 7)]
    taken = Taken(("images",), {}, (images,))
    assert taken.args(images) == (images,)
    assert batch_size((images,)) == 1
