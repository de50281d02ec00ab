"""A saved result is what was verified: reloaded, rechecked, and refused where it was touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.rewrite.evidence.artifact import CERTIFICATE, check_plan, verify_artifact


@pytest.fixture(autouse=True)
def _reloads() -> None:
    """Here the process that loads a result is started for it, as for a user."""


PROGRAM = "pipeline clean { stage fold { fixpoint { fold_bn; drop_dropout } } }"


class Gated(nn.Module):
    """Takes an optional mask and a flag besides its tensor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.drop = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout()
        self.norm.running_mean.normal_()

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
        y = self.drop(self.norm(self.conv(x)))
        return y * scale if mask is None else y * mask


def compiled(**inputs: object) -> lissom.Result:
    given = inputs or {"x": torch.randn(2, 3, 8, 8)}
    return lissom.compile(Gated().eval(), PROGRAM, inputs=given)


def test_a_result_reloads_bit_for_bit(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 8, 8)
    result = compiled(x=x)
    assert [event.rule for event in result.applied] == ["fold_bn", "drop_dropout"]
    result.save(tmp_path / "out")
    assert torch.equal(lissom.load(tmp_path / "out")(x), result.model(x))


class Packed(nn.Module):
    """A recurrent layer that is given sequences without their padding."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        rnn = nn.utils.rnn
        packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return rnn.pad_packed_sequence(self.cells(packed)[0], batch_first=True)[0]


def test_packed_sequences_are_stored(tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = (torch.randn(3, 5, 3), torch.tensor([2, 5, 4]))
    result = lissom.compile(Packed().eval(), PROGRAM, inputs=given)
    result.save(tmp_path / "out")
    other = (torch.randn(3, 5, 3), torch.tensor([5, 1, 3]))
    assert torch.equal(lissom.load(tmp_path / "out")(*other), result.model(*other))


class Logged(nn.Sequential):
    """NaN wherever its layers give something negative."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).log()


def test_outputs_with_nan_are_the_same_outputs(tmp_path: Path) -> None:
    model, x = Logged(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval(), torch.randn(2, 3, 5, 5)
    result = lissom.compile(model, PROGRAM, inputs=(x,))
    assert result.model(x).isnan().any()
    result.save(tmp_path / "out")
    _, verdicts = verify_artifact(tmp_path / "out")
    assert all(verdict.holds for verdict in verdicts)
    assert verdicts[-1].detail.startswith("bit for bit")


def test_inputs_with_gaps_and_numbers_are_kept(tmp_path: Path) -> None:
    result = compiled(x=torch.randn(2, 3, 8, 8), scale=2.0)
    result.save(tmp_path / "out")
    _, verdicts = verify_artifact(tmp_path / "out")
    assert all(verdict.holds for verdict in verdicts)
    assert verdicts[-1].detail.startswith("bit for bit")


def test_the_same_work_gives_the_same_bytes(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 8, 8)
    folders = [compiled(x=x).save(tmp_path / name, check_reload=False) for name in ("a", "b")]
    names = sorted(path.name for path in folders[0].iterdir())
    assert "certificate.json" in names
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_a_model_that_was_changed_afterwards_is_not_certified(tmp_path: Path) -> None:
    result = compiled()
    with torch.no_grad():
        next(result.model.parameters()).add_(1)
    with pytest.raises(lissom.LissomError, match="A030"):
        result.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_plan_fits_its_own_model_only() -> None:
    x = torch.randn(2, 3, 8, 8)
    plan = json.loads(json.dumps(compiled(x=x).plan))
    check_plan(plan, compiled(x=x).compiled)
    other = Gated().eval()
    with torch.no_grad():
        other.conv.weight.mul_(2)
    changed = lissom.compile(other, PROGRAM, inputs={"x": x})
    with pytest.raises(lissom.LissomError, match="weights or graph changed"):
        check_plan(plan, changed.compiled)


def test_a_forged_certificate_is_found(tmp_path: Path) -> None:
    """The manifest guards against accidents; the certificate is checked against the model."""
    from lissom.rewrite.store.folder import load, save

    folder = compiled().save(tmp_path / "out", check_reload=False)
    loaded = load(folder)
    certificate = json.loads(loaded.documents[CERTIFICATE])
    certificate["model"]["result"] = "0" * 64
    forged = {**loaded.documents, CERTIFICATE: json.dumps(certificate).encode()}
    save(loaded.module, tmp_path / "forged", forged)
    _, verdicts = verify_artifact(tmp_path / "forged")
    assert [v.claim for v in verdicts if not v.holds] == [
        "graph and weights are those that were verified"
    ]


def test_the_callers_model_is_never_changed() -> None:
    """H24."""
    model = Gated().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lissom.compile(model, PROGRAM, inputs={"x": torch.randn(2, 3, 8, 8)})
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert isinstance(model.norm, nn.BatchNorm2d)


def test_the_result_trains_and_exports() -> None:
    """A plain module: gradients flow, it can be copied, torch.export takes it."""
    import copy

    result = compiled()
    x = torch.randn(2, 3, 8, 8)
    model = copy.deepcopy(result.model).train()
    model(x).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    exported = torch.export.export(result.model, (x,))
    assert torch.equal(exported.module()(x), result.model(x))
