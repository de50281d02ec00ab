"""Constants that disappear into layers, beside what tests/rewrites/constants.lissom shows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from .support import Fn, library, run

RULES = library("fold", "absorb")
X = torch.randn(2, 6, 7, 9, generator=torch.Generator().manual_seed(0))


def numbers(*shape: int) -> Tensor:
    """Of both signs, none near zero."""
    generator = torch.Generator().manual_seed(1)
    sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return sign * (torch.rand(shape, generator=generator) + 0.5)


def test_the_new_weights_are_rounded_once() -> None:
    torch.manual_seed(0)
    layer, k = nn.Conv2d(6, 8, 3), numbers(8, 1, 1)
    driven = run(Fn(lambda m, x: m.c(x) / m.k, c=layer, k=k), X, RULES).check()
    wanted = (layer.weight.double() / k.double()[..., None]).float()
    (found,) = (p for p in driven.module.parameters() if p.ndim == 4)
    assert bool(((found - wanted).abs() <= wanted.abs() * 2**-23).all())
    assert float((found == wanted).float().mean()) > 0.99


@pytest.mark.parametrize("sign", [1, -1])
def test_a_summand_before_padding_that_has_a_name_stays(sign: int) -> None:
    layer = nn.Conv2d(6, 8, 3, padding="same")
    driven = run(Fn(lambda m, x: m.c(x + sign * m.k), c=layer, k=numbers(6, 1, 1)), X, RULES)
    assert driven.check().applied == 0
    assert any("the border would miss the shift" in reason for reason in driven.reasons())
