"""Weights that layers compute anew in each call: norms of weights, masks, parametrizations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from lissom.rewrite.capture.capture import Captured, capture

from .captured import codes, same

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
X = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(0))


def masked(layer: nn.Conv1d) -> nn.Module:
    prune.ln_structured(layer, "weight", 0.5, 2, 0)
    return prune.l1_unstructured(layer, "weight", 0.3)


def triangular(layer: nn.Module) -> nn.Module:
    class Lower(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight.tril()

    return parametrize.register_parametrization(layer, "weight", Lower())


KINDS: dict[str, tuple[Callable[..., nn.Module], str]] = {
    "weight norm": (nn.utils.weight_norm, "remove_weight_norm"),
    "spectral norm": (nn.utils.spectral_norm, "remove_spectral_norm"),
    "two masks": (masked, "prune.remove"),
    "new weight norm": (parametrizations.weight_norm, "remove_parametrizations"),
    "new spectral norm": (parametrizations.spectral_norm, "remove_parametrizations"),
    "orthogonal": (parametrizations.orthogonal, "remove_parametrizations"),
    "own": (triangular, "remove_parametrizations"),
}


def build(kind: Callable[..., nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(kind(nn.Conv1d(6, 6, 1)), nn.ReLU(), nn.Conv1d(6, 2, 1)).eval()


def states(captured: Captured) -> set[str]:
    return set(captured.module.state_dict())


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("called", [False, True])
def test_a_computed_weight_is_stored(name: str, called: bool) -> None:
    """H17."""
    kind, remedy = KINDS[name]
    model = build(kind)
    if called:
        model(X)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    captured = capture(model, (X,))
    assert codes(captured) == ["M012"]
    assert remedy in captured.notes[0].helps[0]
    assert captured.notes[0].labels[0].where == "0.weight"
    assert captured.opaque == ()
    assert states(captured) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert isinstance(captured.module.get_submodule("0").weight, nn.Parameter)
    assert same(captured, model, torch.rand(3, 6, 4))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_many_weights_are_one_note() -> None:
    torch.manual_seed(0)
    layers = [nn.utils.weight_norm(nn.Conv1d(6, 6, 1)) for _ in range(3)]
    (note,) = capture(nn.Sequential(*layers).eval(), (X,)).notes
    assert [label.where for label in note.labels] == ["0.weight", "1.weight", "2.weight"]
    assert "3 weights" in note.message


def test_a_parameter_that_others_hold_keeps_its_values() -> None:
    """A mask is stored in the parameter that it covers, which another layer may use without it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(6, 6, 1), nn.ReLU(), nn.Conv1d(6, 6, 1)).eval()
    model[2].weight = model[0].weight
    prune.l1_unstructured(model[0], "weight", 0.5)
    captured = capture(model, (X,))
    assert same(captured, model, torch.rand(3, 6, 4))
    layer = captured.module.get_submodule("0")
    assert not torch.equal(layer.weight, captured.module.get_submodule("2").weight)


def test_a_hook_of_the_users_beside_a_norm_keeps_running() -> None:
    model = build(nn.utils.weight_norm)
    model[0].register_forward_hook(lambda module, args, output: output + 1)
    captured = capture(model, (X,))
    assert codes(captured) == ["M012", "M007"]
    assert same(captured, model, torch.rand(3, 6, 4))
