"""Edges of rules that generated models found: no axes, no features, guards that are arrays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lissom.grammar.diagnostics import LissomError

from .support import Fn, library, run


def test_a_reshape_of_a_number_is_left() -> None:
    """There is no first axis to be open."""
    driven = run(Fn(lambda m, x: x.sum().reshape(())), torch.randn(3), library("tidy")).check()
    assert driven.ops() == ["sum", "reshape"]
    assert "the first axis is not open: other batches would not fit" in driven.reasons()


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_a_layer_without_inputs_keeps_its_bias() -> None:
    """A subtrahend before a layer that reads nothing: the response to it is zero."""
    layer = nn.Linear(0, 5)
    model = Fn(lambda m, x: m.layer(x - m.k), layer=layer, k=torch.tensor(2.0))
    driven = run(model, torch.randn(3, 0), library("absorb")).check()
    assert driven.sites("absorb_subtract_linear") == ["sub"]
    assert driven.ops() == ["linear"]


ARRAY = """
exact rule drop_neg {
  match { h = linear(x) as c
          y = neg(h) }
  where { c.weight }
  rewrite { y = c(x) }
}
"""


def test_a_guard_that_is_an_array_is_a_clear_error() -> None:
    model = Fn(lambda m, x: -m.layer(x), layer=nn.Linear(3, 4))
    with pytest.raises(LissomError) as caught:
        run(model, torch.randn(2, 3), ARRAY)
    (found,) = caught.value.diagnostics
    assert (found.code, found.message) == ("T001", "a guard is true or false, and this is an array")
    assert found.labels[0].text == "[4, 3] numbers"
