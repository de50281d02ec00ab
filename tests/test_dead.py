"""Dead channels, branches and features: removed exactly, and never where they count."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.rewrite.journal import Applied, Refused

from .cutting import randomised
from .support import Fn, library

PROGRAM = (
    library("fold", "dead")
    + """
pipeline clean {
  stage fold { fixpoint { fold_bn } }
  stage settle { fixpoint { settle_silent; settle_silent_linear; drop_dead_branch } }
  stage drop { once drop_unread }
}"""
)


def cleaned(model: nn.Module, *inputs: Tensor) -> Any:
    return lissom.compile(model, PROGRAM, inputs=inputs)


def plain(site: str) -> str:
    """A layer's name before rules made another of it."""
    return re.sub(r"\.(fold_bn|settle_silent\w*?)_\d+", "", site)


def sites(result: Any, rule: str) -> list[str]:
    return [plain(event.site) for event in result.journal.of(Applied) if event.rule == rule]


def reasons(result: Any, rule: str) -> dict[str, str]:
    return {plain(e.site): e.reason for e in result.journal.of(Refused) if e.rule == rule}


def layers(result: Any) -> dict[str, Any]:
    """The layers that the result calls."""
    paths = [str(node.target) for node in result.model.graph.nodes if node.op == "call_module"]
    return {plain(path): result.model.get_submodule(path) for path in paths}


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Chain(nn.Module):
    """Convolution, norm, relu, convolution, pooled, two linear layers."""

    def __init__(self, padding: int = 0) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 6, 3, padding=padding)
        self.hidden, self.head = nn.Linear(6, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(torch.relu(self.norm(self.first(x)))).mean((2, 3))
        return self.head(torch.relu(self.hidden(x)))


def chain(padding: int = 0, beta: float = 0.7) -> Chain:
    """Two filters of zeros, which the norm makes constants; two neurons without weights."""
    model = randomised(Chain(padding))
    with torch.no_grad():
        model.first.weight[[2, 5]] = 0.0
        model.norm.running_mean[[2, 5]] = 0.0
        model.first.bias[[2, 5]] = 0.0
        model.norm.bias[[2, 5]] = torch.tensor([beta, -0.4], dtype=torch.float64)
        model.hidden.weight[[0, 9]] = 0.0
        model.hidden.bias[[0, 9]] = torch.tensor([0.3, -0.3], dtype=torch.float64)
    return model


def test_a_silent_channel_goes_with_its_constant_in_the_next_bias() -> None:
    """S12: behind the norm a filter of zeros is a constant; the result is the same, and smaller."""
    model, x = chain(), images(2, 3, 9, 9)
    result = cleaned(model, x)
    assert sites(result, "settle_silent") == ["first"]
    assert sites(result, "settle_silent_linear") == ["hidden"]
    assert sites(result, "drop_unread") == ["first", "hidden"]
    assert layers(result)["first"].out_channels == 6
    assert layers(result)["second"].in_channels == 6
    assert layers(result)["hidden"].out_features == 8
    for other in (x, images(1, 3, 12, 10), 100 * images(3, 3, 7, 7)):
        torch.testing.assert_close(result.model(other), model(other), rtol=1e-12, atol=1e-12)
    moved = layers(result)["second"].bias - model.second.bias
    assert moved.abs().max() > 0.01, "the constant is in the bias"


def test_across_zero_padding_only_a_constant_of_zero_is_settled() -> None:
    """S13: the border of the reader would see zeros, not the constant."""
    x = images(2, 3, 9, 9)
    result = cleaned(chain(padding=1), x)
    assert sites(result, "settle_silent") == []
    assert "pads with zeros" in reasons(result, "settle_silent")["first"]
    assert "first" not in sites(result, "drop_unread")
    model = chain(padding=1, beta=-0.7)
    result = cleaned(model, x)
    assert sites(result, "settle_silent") == ["first"]
    assert layers(result)["first"].out_channels == 6
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-12, atol=1e-12)


def test_a_reader_that_runs_twice_is_left() -> None:
    model = chain()
    twice = Fn(lambda m, x: m.net(x) + m.net.second(x.repeat(1, 3, 1, 1)[:, :8]).mean(), net=model)
    result = cleaned(twice, images(2, 3, 9, 9))
    assert sites(result, "settle_silent") == []
    assert "runs 2 times" in reasons(result, "settle_silent")["net.first"]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner, self.last = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 1, bias=False)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.norm(self.last(torch.relu(self.inner(x))))
        return self.head(torch.relu(x).mean((2, 3)))


def residual(gamma: float, beta: float) -> Residual:
    model = randomised(Residual())
    with torch.no_grad():
        model.norm.weight.fill_(gamma)
        model.norm.bias.fill_(beta)
    return model


def test_a_branch_whose_norm_is_zero_is_removed() -> None:
    """As zero-initialised residual branches that training never used."""
    model, x = residual(0.0, 0.0), images(2, 3, 6, 6)
    result = cleaned(model, x)
    assert sites(result, "drop_dead_branch") == ["last"]
    assert layers(result).keys() == {"stem", "head"}
    assert not any(name.startswith(("inner", "last")) for name in result.model.state_dict())
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("gamma", "beta"), [(1e-9, 0.0), (0.0, 1e-9)])
def test_a_branch_that_gives_anything_stays(gamma: float, beta: float) -> None:
    result = cleaned(residual(gamma, beta), images(2, 3, 6, 6))
    assert sites(result, "drop_dead_branch") == []
    assert "gives something" in reasons(result, "drop_dead_branch")["last"]


def test_a_recurrent_feature_that_only_time_reads_stays() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.head = nn.LSTM(3, 6, batch_first=True), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.net(x)[0])

    model, x = randomised(Reader()), images(2, 5, 3)
    with torch.no_grad():
        model.head.weight[:, [1, 4]] = 0.0
        model.net.weight_hh_l0[:, 4] = 0.0
    result = cleaned(model, x)
    assert layers(result)["net"].hidden_size == 5
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-12, atol=1e-12)
