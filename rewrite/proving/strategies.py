"""Generated models for property tests with Hypothesis.

@given(models(subject))
def test_something(grown): ...
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from hypothesis import reject
from hypothesis import strategies as st

from .choices.source import ChoiceSource, Unsuitable
from .models.grown import Grown
from .subject import Subject
from .trial import model


class Drawn(ChoiceSource):
    """Choices made by Hypothesis, through the `draw` of a composite strategy."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self._draw = draw

    def integer(self, low: int, high: int) -> int:
        return self._draw(_integers(low, high))


@cache
def _integers(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(low, high)


@st.composite
def models(draw: Callable[[Any], Any], subject: Subject) -> Grown:
    """Models with instances of a rule's left side. They are built as they are drawn, and shrink."""
    try:
        return model(Drawn(draw), subject)
    except Unsuitable:
        reject()
