"""Rewriting beside ops that overwrite their inputs."""

from __future__ import annotations

import torch
from torch import nn

from .support import Fn, Fn2, library, run

X = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))


def rule(match: str, rewrite: str, more: str = "") -> str:
    return f"exact rule r {{ {more}\nmatch {{\n{match}\n}}\nrewrite {{\n{rewrite}\n}} }}"


# -- in-place ops ----------------------------------------------------------------------------------

DROP_COPY = rule("y = mul(x, 1)", "y = x")


def test_a_copy_that_is_written_later_is_not_dropped() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        a = x + 1
        b = a * 1
        return b.relu_() + a

    driven = run(Fn(forward), X, DROP_COPY).check()
    assert driven.applied == 0
    assert "computes in place" in driven.reasons()[0]


def test_a_copy_of_what_is_written_later_is_not_dropped() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        a = x + 1
        b = a * 1
        a.relu_()
        return b + a

    driven = run(Fn(forward), X, DROP_COPY).check()
    assert driven.applied == 0


def test_a_copy_of_a_view_is_not_dropped_if_the_base_is_written() -> None:
    """H05."""

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        a = x + 1
        b = a.view(2, 8, 36) * 1
        a.relu_()
        return b + a.view(2, 8, 36)

    assert run(Fn(forward), X, DROP_COPY).check().applied == 0


def test_a_copy_is_dropped_where_nothing_near_is_written() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        a = (x + 1) * 1
        return a + (x + 2).relu_()

    assert run(Fn(forward), X, DROP_COPY).check().applied == 1


def test_no_motion_across_a_write() -> None:
    """H05, S09: neg(neg(x)) with x overwritten between."""

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        a = x + 1
        b = -a
        a.relu_()
        return -b + a

    driven = run(Fn(forward), X, library("tidy")).check()
    assert driven.sites("drop_double_neg") == []
    assert any("in place between" in reason for reason in driven.reasons("drop_double_neg"))


def test_in_place_ops_survive_though_nothing_reads_them() -> None:
    """S08."""

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        a = m.i(x + 1)
        a.mul_(2)
        m.r(a)
        return m.i(a)

    driven = run(Fn(forward, i=nn.Identity(), r=nn.ReLU(inplace=True)), X, library("tidy")).check()
    assert driven.difference() == 0


def test_matched_in_place_ops_are_no_obstacle() -> None:
    text = rule(
        "h = conv2d(x) as c\nk = relu(h)\ny = mul(k, 2)",
        "g = c(x, weight = c.weight * 2, bias = c.bias * 2) from c\ny = relu(g)",
    )
    model = Fn(lambda m, x: m.r(m.c(x)) * 2, c=nn.Conv2d(8, 8, 1), r=nn.ReLU(inplace=True))
    assert run(model, X, text).check().applied == 1


def test_two_inputs_of_which_one_is_written() -> None:
    """H05."""

    def forward(m: nn.Module, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        a = x * 1
        z = z + 1
        z.add_(a)
        return a + z

    assert run(Fn2(forward), (X, X + 1), DROP_COPY).check().applied == 1
