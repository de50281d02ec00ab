"""Rules over dimensions through the whole compiler: guards, cuts, budgets, refusals, reload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.channels import masked as masked_module
from lissom.rewrite.journal import Applied, Refused
from lissom.rewrite.store.folder import load
from lissom.rewrite.targets import cuts
from lissom.rewrite.targets.cuts import EXACT_CUT

from .cutting import flow_of, randomised, shapes
from .support import library

PRUNE = library("prune")


def pipeline(step: str, budget: str = "drift(outputs) <= 1000%") -> str:
    return f"pipeline p {{ budget {budget}; stage s {{ {step} }} }}"


def net() -> nn.Module:
    """In float32: 3 -> 16 -> 24 -> 10, with a norm and a skip."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
            self.inner, self.back = nn.Conv2d(16, 24, 1), nn.Conv2d(24, 16, 1)
            self.head = nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.stem(x)).relu()
            x = x + self.back(self.inner(x).relu())
            return self.head(x.mean((2, 3)))

    return randomised(Net()).float()


IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def compiled(text: str, model: nn.Module | None = None, **options: Any) -> Any:
    return lissom.compile(model or net(), text, inputs=(IMAGES,), **options)


def applied(result: Any) -> dict[str, str]:
    return {event.site: event.bindings["D"] for event in result.journal.of(Applied)}


def test_each_dimension_is_cut_and_verified() -> None:
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = compiled(PRUNE + pipeline("once prune_l1(ratio = 50%)"), model)
    assert applied(result) == {"stem": "16 -> 8", "inner": "24 -> 12"}
    assert shapes(result.model)["back.weight"] == (8, 12, 1, 1)
    assert result.model.norm.num_features == 8
    for event in result.journal.of(Applied):
        assert event.verdicts[0].claim == EXACT_CUT
        assert event.verdicts[0].holds
        assert event.after.params < event.before.params
        assert event.after.macs < event.before.macs
    (refused,) = result.journal.of(Refused)
    assert (refused.site, refused.reason) == ("head", "it can be seen at output")
    assert all(torch.equal(model.state_dict()[name], old) for name, old in before.items())


def test_the_weakest_channels_go() -> None:
    model = net()
    with torch.no_grad():
        model.inner.weight[[3, 7, 11]] = 1e-4
        model.inner.bias[[3, 7, 11]] = 0.0
    result = compiled(PRUNE + pipeline('once prune_l1(ratio = 12.5%) at "inner"'), model)
    assert applied(result) == {"inner": "24 -> 21"}
    stay = [i for i in range(24) if i not in (3, 7, 11)]
    assert torch.equal(result.model.inner.weight, model.inner.weight[stay])
    torch.testing.assert_close(result.model(IMAGES), model(IMAGES), rtol=1e-2, atol=1e-2)


def test_a_multiple_is_kept_and_too_few_are_left() -> None:
    text = PRUNE + pipeline("once prune_l1(ratio = 30%, multiple = 8)")
    result = compiled(text)
    assert applied(result) == {}
    reasons = {event.site: event.reason for event in result.journal.of(Refused)}
    assert reasons["stem"] == "rounding up to a multiple of 8 keeps all 16"
    assert applied(compiled(PRUNE + pipeline("once prune_l1(ratio = 50%, multiple = 12)"))) == {
        "inner": "24 -> 12"
    }


def test_each_stops_at_its_target() -> None:
    step = "each prune_l1(ratio = 50%) order by saving until params(model) <= 70%"
    assert applied(compiled(PRUNE + pipeline(step))) == {"stem": "16 -> 8"}
    step = "each prune_l1(ratio = 50%) order by saving until params(model) <= 40%"
    assert set(applied(compiled(PRUNE + pipeline(step)))) == {"stem", "inner"}


def test_a_budget_takes_the_last_cut_back() -> None:
    text = PRUNE + pipeline("each prune_l1(ratio = 50%) order by saving", "drift(outputs) <= 0.1%")
    result = compiled(text)
    assert applied(result) == {}
    assert shapes(result.model) == shapes(net())
    assert any(event.code == "B002" for event in result.journal.of(Refused))


def test_a_fixpoint_of_cuts_ends() -> None:
    rule = PRUNE.replace("D >= 2 * multiple", "D > 5")
    result = compiled(rule + pipeline("fixpoint { prune_l1(ratio = 25%) }"))
    assert result.model.inner.out_channels <= 5
    assert result.model.stem.out_channels <= 5


def test_ops_and_dimensions_in_one_fixpoint_are_refused() -> None:
    text = PRUNE + library("tidy") + pipeline("fixpoint { drop_dropout; prune_l1 }")
    with pytest.raises(LissomError, match=r"R002.*repeat by themselves"):
        compiled(text)


def test_folds_and_cuts_in_one_pipeline() -> None:
    text = (
        PRUNE
        + library("fold")
        + (
            "pipeline p { budget drift(outputs) <= 1000%; stage a { fixpoint { fold_bn } }"
            " stage b { once prune_l1(ratio = 50%) } stage c { once prune_l1(ratio = 25%) } }"
        )
    )
    result = compiled(text)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in result.model.modules())
    assert result.model.inner.out_channels == 9


def test_a_cut_model_is_saved_and_loaded(tmp_path: Path) -> None:
    result = compiled(PRUNE + pipeline("once prune_l1(ratio = 50%)"))
    result.save(tmp_path / "small")
    again = load(tmp_path / "small")
    assert torch.equal(again.module(IMAGES), result.model(IMAGES))


def test_the_rule_of_the_language_page() -> None:
    """`forall w in params(D)`, `size(D) mod multiple`, a budget of its own on the outputs."""
    rule = (Path(__file__).parent / "programs" / "prune_low_l1.lissom").read_text()
    rule = rule.replace("needs recover", "").replace("<= 50% on calib", "<= 500%")
    result = compiled(rule + "pipeline p { stage s { once prune_low_l1(ratio = 50%) } }")
    assert applied(result) == {"stem": "16 -> 8", "inner": "24 -> 16"}
    claims = {v.claim for event in result.journal.of(Applied) for v in event.verdicts}
    assert {"size(D) mod multiple == 0", "error(outputs) <= 500%"} <= claims


# -- rules that are wrong --------------------------------------------------------------------------

EXACT = """
exact rule drop_dead {
  match dim D in channels
  where { sliceable(D) and not boundary(D) }
  let { score = l1_over(params(D)); keep = top(score, D - 1) }
  rewrite { D := keep }
}
"""


def test_an_exact_rule_that_changes_the_model_is_found() -> None:
    with pytest.raises(LissomError, match="V101"):
        compiled(EXACT + "pipeline p { stage s { once drop_dead } }")


def test_an_exact_rule_that_changes_nothing_passes() -> None:
    model = net()
    with torch.no_grad():
        model.back.weight[:, 5] = 0
        model.inner.weight[5], model.inner.bias[5] = 1e-9, 1e-9
    result = compiled(EXACT + 'pipeline p { stage s { once drop_dead at "inner" } }', model)
    assert applied(result) == {"inner": "24 -> 23"}
    assert all(v.holds for event in result.journal.of(Applied) for v in event.verdicts)


def test_masking_something_else_than_is_cut() -> None:
    text = PRUNE.replace("outside = keep", "outside = top(l1_over(writers(D)), N - 1)")
    with pytest.raises(LissomError, match="a cut must be the one that was masked"):
        compiled(text + pipeline("once prune_l1(ratio = 50%)"))


def test_positions_that_do_not_exist() -> None:
    text = PRUNE.replace("D := keep", "D := keep + 100").replace(
        "outside = keep", "outside = keep + 100"
    )
    with pytest.raises(LissomError, match="this is no choice of positions"):
        compiled(text + pipeline("once prune_l1(ratio = 50%)"))


def test_blocked_dimensions_are_left_without_any_guard() -> None:
    text = PRUNE.replace("not boundary(D)", "D > 0").replace("sliceable(D)", "D > 1")
    result = compiled(text + pipeline("once prune_l1(ratio = 50%)"))
    (refused,) = result.journal.of(Refused)
    assert refused.code == "R012"
    assert "output: the model returns it" in refused.reason


def test_what_a_rule_over_dimensions_cannot_hold() -> None:
    text = PRUNE.replace("rewrite { D := keep }", "rewrite { D := keep; D := keep }")
    with pytest.raises(LissomError, match=r"R002|N00"):
        compiled(text + pipeline("once prune_l1"))


def test_a_wrong_cut_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine compares: a mask that forgets an op is no reference for the cut."""
    masked = masked_module.masked

    def forgetful(flow: Any, removed: Any) -> Any:
        for node in list(flow.contracted)[:1]:
            del flow.contracted[node]
        return masked(flow, removed)

    monkeypatch.setattr(cuts, "masked", forgetful)
    with pytest.raises(LissomError, match="V101"):
        compiled(PRUNE + pipeline("once prune_l1(ratio = 50%)"))


def test_a_free_part_of_an_axis_is_cut_beside_a_blocked_one() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.head(y + torch.cat([y[:, :9].sigmoid(), x], 1))

    result = compiled(PRUNE + pipeline("once prune_l1(ratio = 50%)"), randomised(Half()).float())
    assert applied(result) == {"a": "9 -> 5"}


def test_what_makes_reads_and_passes() -> None:
    net = randomised(
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8),
                      nn.Flatten(), nn.Linear(8 * 36, 6), nn.Linear(6, 5))
    )  # fmt: skip
    roles = flow_of(net, IMAGES.double()).roles
    assert {roles["0.weight", 0], roles["0.bias", 0], roles["4.bias", 0]} == {"writes"}
    assert {roles["1.weight", 0], roles["1.bias", 0], roles["2.weight", 0]} == {"rides"}
    assert {roles["4.weight", 1], roles["5.weight", 1]} == {"reads"}


@pytest.mark.parametrize(("ratio", "reason"), [("0%", "keeps all 16"), ("100%", "keeps nothing")])
def test_everything_or_nothing(ratio: str, reason: str) -> None:
    """H23: shares of 0 % and 100 % are refused at each dimension."""
    result = compiled(PRUNE + pipeline(f"once prune_l1(ratio = {ratio})"))
    assert applied(result) == {}
    assert any(reason in event.reason for event in result.journal.of(Refused))


@pytest.mark.parametrize("keep", ["1", "D"])
def test_a_number_is_no_choice_of_positions(keep: str) -> None:
    text = PRUNE.replace("D := keep", f"D := {keep}").replace("outside = keep", f"outside = {keep}")
    with pytest.raises(LissomError, match=r"R001.*this is no choice of positions"):
        compiled(text + pipeline("once prune_l1(ratio = 50%)"))


def test_only_what_reads_is_masked() -> None:
    with pytest.raises(LissomError, match="R002"):
        compiled(PRUNE.replace("zero(readers(D)", "zero(writers(D)") + pipeline("once prune_l1"))


def test_what_is_left_must_run() -> None:
    """A group norm refuses groups of a single number: the dimension is left as it is."""
    layers = (nn.Linear(3, 8), nn.GroupNorm(4, 8), nn.ReLU(), nn.Linear(8, 5))
    model = randomised(nn.Sequential(*layers)).float()
    text = PRUNE + pipeline("once prune_l1(ratio = 50%)")
    result = lissom.compile(model, text, inputs=(torch.randn(1, 3),))
    codes = {event.bindings["D"] for event in result.journal.of(Applied)}
    refused = {event.code: event.reason for event in result.journal.of(Refused)}
    assert codes == {"4 -> 2"}  # groups may go
    assert "what is left cannot run: Expected more than 1 value" in refused["R013"]
