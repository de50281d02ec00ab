"""Features that a linear reads become alike in size: `smooth.lissom`, and the observer it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.grammar.diagnostics import LissomError
from lissom.passes.equalization import migration
from lissom.passes.observers import channel_peaks
from lissom.rewrite.journal import Refused

from .support import Fn, library

SMOOTH = "once watch_peaks; calibrate calib; once smooth_linear"
SNAP = "once watch; calibrate calib; once int8_linear"


class Block(nn.Module):
    """A norm with a few large features, two linears, and something that is no layer between."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.up, self.down = norm, nn.Linear(32, 48), nn.Linear(48, 8)
        with torch.no_grad():
            self.norm.weight[::9] *= 60  # type: ignore[index, operator]
            self.up.weight[:, ::9] /= 20

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(self.norm(x))))


def block(norm: type[nn.Module] = nn.LayerNorm) -> nn.Module:
    torch.manual_seed(0)
    return Block(norm(32)).eval()


def given(count: int = 4) -> Tensor:
    return torch.randn(count, 5, 32, generator=torch.Generator().manual_seed(count))


def compiled(steps: str, model: nn.Module | None = None, data: Any = None) -> Any:
    text = library("smooth", "quant").replace("budget: frac = 5%", "budget: frac = 100%")
    text += f'pipeline p {{ data calib = sample("train", all)\n stage s {{ {steps} }} }}'
    data = [(given(32), torch.zeros(32))] if data is None else data
    return lissom.compile(model or block(), text, inputs=(given(),), data=data)


def ops(result: Any) -> list[str]:
    return [str(node.target) for node in result.model.graph.nodes if node.op != "get_attr"]


def reasons(result: Any, rule: str) -> list[str]:
    return [e.reason for e in result.journal.of(Refused) if e.rule.partition("(")[0] == rule]


def test_no_bit_changes_and_factors_stand_before_the_layers(tmp_path: Path) -> None:
    result = compiled(SMOOTH)
    assert [event.site for event in result.applied][-2:] == ["up", "down"]
    assert sum("mul" in op for op in ops(result)) == 2
    assert torch.equal(result.model(given()), block()(given()))
    result.save(tmp_path / "out")
    assert torch.equal(lissom.load(tmp_path / "out")(given()), block()(given()))
    assert reasons(compiled(f"{SMOOTH}; once smooth_linear"), "smooth_linear") != []


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_a_norm_takes_the_factors_in(norm: type[nn.Module]) -> None:
    result = compiled(f"{SMOOTH}; fixpoint {{ smooth_norm; smooth_rms_norm }}", block(norm))
    assert sum("mul" in op for op in ops(result)) == 1, "that of `down` stays"
    assert torch.equal(result.model(given()), block(norm)(given()))


def test_a_norm_that_others_read_keeps_its_numbers() -> None:
    model = Fn(lambda m, x: m.a(h := m.n(x)) + h, n=nn.LayerNorm(32), a=nn.Linear(32, 32))
    with torch.no_grad():
        model.n.weight[3] = 50  # type: ignore[union-attr, index, operator]
    result = compiled(f"{SMOOTH}; fixpoint {{ smooth_norm }}", model)
    assert any("is also read by" in text for text in reasons(result, "smooth_norm"))
    assert torch.equal(result.model(given()), model(given()))


def test_integer_layers_lose_less() -> None:
    want, errors = block()(given()), []
    for steps in (SNAP, f"{SMOOTH}; {SNAP}"):
        found = compiled(steps).model(given())
        errors.append(((found - want).norm() / want.norm()).item())
    assert errors[1] < errors[0] / 2


def test_what_is_not_known_stays() -> None:
    never = compiled("once watch; calibrate calib; once smooth_linear")
    assert reasons(never, "smooth_linear")[0].startswith("no observer saw the features")
    layer = nn.Linear(32, 32)
    shared = Fn(lambda m, x: m.a(m.a(x * torch.arange(1.0, 33))), a=layer)
    assert "is shared with" in reasons(compiled(SMOOTH, shared), "smooth_linear")[0]
    bad = given(32)
    bad[3, 2, 1] = float("nan")
    result = compiled(SMOOTH, data=[(bad, torch.zeros(32))])
    assert all("infinite or nan" in text for text in reasons(result, "smooth_linear"))
    assert torch.equal(result.model(given()), block()(given()))


# -- numbers ---------------------------------------------------------------------------------------


def test_size_moves_by_its_share() -> None:
    peaks, w = torch.tensor([16.0, 1.0, 4.0, 0.0, 2.0]), torch.tensor([[1.0, 4.0, 0.25, 1.0, 0.0]])
    assert migration(peaks, w, 0.5).tolist() == [4.0, 0.5, 4.0, 1.0, 1.0]
    assert migration(peaks, w, 1.0).tolist() == [16.0, 1.0, 4.0, 1.0, 1.0]
    assert migration(peaks, w, 0.0).tolist() == [1.0, 0.25, 4.0, 1.0, 1.0]
    s = migration(torch.rand(50) * 9, torch.randn(7, 50), 0.75)
    assert torch.equal(s.log2(), s.log2().round())
    for wrong in (-peaks, peaks[:4]):
        with pytest.raises(LissomError):
            migration(wrong, w)
    with pytest.raises(LissomError, match=r"outside 0\.\.1"):
        migration(peaks, w, 2.0)


@pytest.mark.parametrize("axis", [1, -1, 0])
def test_peaks_are_those_of_all_batches(axis: int) -> None:
    summary, parts = channel_peaks(axis).begin(), torch.randn(3, 4, 5, 6)
    assert summary.result() is None
    for part in parts:
        summary.update(part)
    want = parts.abs().movedim(axis if axis < 0 else axis + 1, 0).flatten(1).amax(1)
    assert torch.equal(summary.result(), want.double())
