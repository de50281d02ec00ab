"""The advice of messages about saving is followed, word by word, and works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom

PROGRAM = "pipeline p { stage s { fixpoint { fold_bn } } }"
X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Twice.apply(x)


def doubled(module: nn.Module, args: Any, result: Tensor) -> Tensor:
    return result * 2


def network(last: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), last).eval()


def refused(result: lissom.Result, folder: Path) -> tuple[str, str]:
    with pytest.raises(lissom.LissomError) as caught:
        result.save(folder)
    (found,) = caught.value.diagnostics
    return found.code, found.helps[-1]


def compiled(model: nn.Module) -> lissom.Result:
    return lissom.compile(model, PROGRAM, inputs=(X,))


def test_a_hook_is_removed_before_or_kept_whole(tmp_path: Path) -> None:
    model = network(nn.ReLU())
    handle = model[1].register_forward_hook(doubled)
    result = compiled(model)
    code, help = refused(result, tmp_path / "out")
    assert code == "A012"
    assert "call .remove() of its handle before compiling" in help
    assert "torch.save(result.model, FILE)" in help
    torch.save(result.model, tmp_path / "whole.pt")
    kept = torch.load(tmp_path / "whole.pt", weights_only=False)
    assert torch.equal(kept(X), model(X))
    handle.remove()
    compiled(model).save(tmp_path / "out")


def test_a_function_without_a_name_is_compiled_again(tmp_path: Path) -> None:
    """`apply` of an autograd function: `torch.save` cannot hold it either, and is not advised."""
    model = network(Double())
    result = compiled(model)
    code, help = refused(result, tmp_path / "out")
    assert code == "A013"
    assert "result.model, FILE" not in help
    assert "result.model.state_dict()" in help
    torch.save(result.model.state_dict(), tmp_path / "numbers.pt")
    with torch.no_grad():
        model[0].weight.zero_()
    again = compiled(model).model
    again.load_state_dict(torch.load(tmp_path / "numbers.pt"))
    assert torch.equal(again(X), result.model(X))
    assert not torch.equal(again(X), model(X))


def exported(model: nn.Module) -> nn.Module:
    return torch.export.export(model, (X,)).module()


def test_a_program_without_a_mode_is_exported_again() -> None:
    """It refuses `eval()`, so that nobody is told to call it."""
    noisy = exported(network(nn.Dropout()).train())
    with pytest.raises(lissom.LissomError, match="M002") as caught:
        compiled(noisy)
    (found,) = caught.value.diagnostics
    assert "torch.export.export(model.eval(), args).module()" in found.helps[0]
    compiled(exported(network(nn.Dropout()).eval()))


class Always(nn.Module):
    def __init__(self, training: bool | None) -> None:
        super().__init__()
        self.always = training

    def forward(self, x: Tensor) -> Tensor:
        training = self.training if self.always is None else self.always
        return nn.functional.dropout(x, 0.5, training=training)


def test_noise_in_eval_mode_is_not_blamed_on_the_mode() -> None:
    with pytest.raises(lissom.LissomError, match="M002") as caught:
        compiled(network(Always(True)))
    (found,) = caught.value.diagnostics
    assert "eval()" not in found.helps[0]
    assert "F.dropout(x, p, training=self.training)" in found.helps[0]
    compiled(network(Always(None)))
