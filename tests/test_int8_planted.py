"""Mistakes that others made in integer networks, planted into rules that hold: each is found."""

from __future__ import annotations

from functools import cache

import pytest
from torch import Tensor

from lissom.grammar.text.parse import parse
from lissom.grammar.tree import tree as t
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.ops.vocabulary import Vocabulary
from lissom.rewrite.proving.prove import Explored, explore
from lissom.rewrite.proving.subject import Subject
from lissom.rewrite.proving.trial import UNSOUND, WRONG

from .support import library

MODELS = 100

ROUNDED_FIRST = """
exact rule rounded_first {
  match { r = quantize(x, scale = t, zero = u) }
  rewrite { r = quantize(round(x * (1 / t)), scale = 1, zero = u) }
}
"""


def neighbour(scale: Tensor) -> Tensor:
    return scale.roll(1)


def rescaled(bias: Tensor | None, scale: float) -> Tensor | None:
    return None if bias is None else bias * scale


@cache
def rules() -> dict[str, str]:
    return {rule.name.text: rule.span.text for rule in parse(library("codes")).all(t.Rule)}


def explored(text: str) -> Explored:
    (rule,) = parse(text).all(t.Rule)
    functions = {**FUNCTIONS, "neighbour": neighbour, "rescaled": rescaled}
    return explore(Subject(rule, Vocabulary.library(), functions), MODELS)


PLANTED = {
    "the zero point is dropped": (
        "int8_conv2d_to_codes", "bias = c.bias, zero = z", "bias = c.bias, zero = 0"),
    "the zero point of what goes out is dropped": (
        "int8_linear_to_codes", "output_zero = u", "output_zero = 0"),
    "the scale is that of the neighbour": (
        "int8_linear_to_codes", "scale = c.scale", "scale = neighbour(c.scale)"),
    "the bias is rescaled where it is not to be": (
        "int8_linear_to_codes", "bias = c.bias", "bias = rescaled(c.bias, t)"),
    "the border is the code 0": ("pad_codes", "value = u", "value = 0"),
    "the end of the codes stands in for that of relu6": ("int8_relu6", '"relu6"', '"relu"'),
    "the activation comes after the sum": ("int8_add", '(q, activation = "none")', "(q)"),
    "what is added keeps another scale": ("int8_add", "other_scale = t", "other_scale = 1"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", PLANTED)
def test_a_planted_mistake_is_found(mistake: str) -> None:
    name, old, new = PLANTED[mistake]
    text = rules()[name]
    assert text.count(old) == 1
    failure = explored(text.replace(old, new)).failure
    assert failure is not None
    assert failure.outcome.kind in (WRONG, UNSOUND)


def test_rounding_before_the_zero_point_is_found() -> None:
    """It differs at ties alone, where the zero point is odd."""
    failure = explored(ROUNDED_FIRST).failure
    assert failure is not None
    assert failure.outcome.kind in (WRONG, UNSOUND)
