"""Rules on six published, trained models: exact rules change nothing, nothing is lost at full
rank, and what breaks a budget is taken back.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lissom
from lissom.grammar.library.program import program_of
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.graph.digest import model_digest
from lissom.rewrite.journal import Applied, Note, Refused, StageEnd
from lissom.rewrite.pipeline.compile import Options, compile_checked

from .examples import example
from .support import apart, digests, leaves, library

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

SAMPLES = {
    "mnist_cnn": 4,
    "efficientnet_lite0": 2,
    "minilm": 2,
    "crnn": 2,
    "onet": 4,
    "crepe": 2,
}
"""How many batches of the valid split a test uses."""

EXACT = [
    name
    for file in ("tidy", "fold", "merge")
    for name in re.findall(r"^exact rule (\w+)", library(file), re.M)
]

SAVINGS = (
    "macs(after) < macs(before)",
    "params(after) < params(before)",
    "needs recover",
    "saves less than",
    "is past break-even",
    "are past break-even",
    "multiplies more",
    "cost more",
)
"""What marks the lines of a library rule that ask whether it pays."""


class Trained:
    """A published model with its example inputs and the first batches of its splits."""

    def __init__(self, name: str) -> None:
        self.example = example(name)
        self.count = SAMPLES[name]
        self.inputs = self.example.inputs()
        self.model: nn.Module = self.example.build()
        self.metric = next(iter(self.example.metrics))
        self.data = cache(self._data)

    def _data(self, split: str) -> list[Any]:
        return self.example.data(split)[: self.count]

    def run(self, program: str) -> lissom.Result:
        return lissom.compile(
            self.model, program, inputs=self.inputs, data=self.data, metrics=self.example.metrics
        )

    def measured(self, model: nn.Module) -> float:
        return self.example.metrics[self.metric](model, self.data("valid"))

    def difference(self, model: nn.Module) -> float:
        """The largest difference to the published model, relative to the largest output."""
        with torch.no_grad():
            before, after = leaves(self.model(*self.inputs)), leaves(model(*self.inputs))
        return max(apart(a, b) for a, b in zip(before, after, strict=True))


@cache
def _trained(name: str) -> Trained | str:
    try:
        return Trained(name)
    except (FileNotFoundError, ModuleNotFoundError) as error:
        return str(error).splitlines()[0]


def trained(name: str) -> Trained:
    """The model of an example; skips where its packages are not on this machine."""
    found = _trained(name)
    return found if isinstance(found, Trained) else pytest.skip(f"{name}: {found}")


def fired(result: lissom.Result) -> Counter[str]:
    """How often each rule was applied, rolled back or not."""
    return Counter(event.rule.partition("(")[0] for event in result.journal.of(Applied))


def ends(result: lissom.Result) -> list[StageEnd]:
    return result.journal.of(StageEnd)


# -- exact rules -----------------------------------------------------------------------------------

FIRES: dict[str, dict[str, int]] = {
    "mnist_cnn": {},
    "efficientnet_lite0": {"fold_bn": 49, "drop_dropout": 1},
    "minilm": {},
    "crnn": {"fold_bn": 2},
    "onet": {},
    "crepe": {"sink_bn": 6},
}


@cache
def exact(name: str) -> lissom.Result:
    return trained(name).run(
        f"pipeline p {{ stage clean {{ fixpoint {{ {'; '.join(EXACT)} }} }} }}"
    )


@pytest.mark.parametrize("name", FIRES)
def test_exact_rules_fire_at_every_site_there_is(name: str) -> None:
    assert fired(exact(name)) == FIRES[name]
    (end,) = ends(exact(name))
    assert end.kept
    assert all(verdict.holds for verdict in end.verdicts)


@pytest.mark.parametrize("name", FIRES)
def test_exact_rules_change_nothing_beyond_rounding(name: str) -> None:
    subject, result = trained(name), exact(name)
    assert subject.difference(result.model) <= (1e-5 if FIRES[name] else 0.0)
    assert subject.measured(result.model) == subject.measured(subject.model)


@pytest.mark.parametrize("name", FIRES)
def test_rules_that_fired_nowhere_are_named_with_the_reason(name: str) -> None:
    notes = {note.text.split()[0]: note for note in exact(name).journal.of(Note)}
    assert set(notes) == set(EXACT) - set(FIRES[name])
    assert {note.code for note in notes.values()} == {"W702"}
    if name == "mnist_cnn":
        assert "no candidate op in the model" in notes["fold_bn"].text


def test_no_batch_norm_of_efficientnet_is_left_and_none_was_changed_in_place() -> None:
    subject, result = trained("efficientnet_lite0"), exact("efficientnet_lite0")
    norms = [m for m in subject.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 49
    assert not [m for m in result.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert "batch_norm" not in result.model.code
    # Each site trained gain and shift of a channel, and has one bias instead.
    channels = sum(norm.num_features for norm in norms)
    assert result.before.params - result.after.params == channels
    assert result.before.macs == result.after.macs


# -- nothing is lost at full rank ------------------------------------------------------------------


def lossless(name: str, file: str) -> str:
    """A library rule that is also applied where it saves nothing: its savings guards are cut."""
    found = re.search(rf"^approx rule {name}\(.*?^}}$", library(file), re.M | re.S)
    assert found is not None
    lines = found[0].splitlines()
    kept = [line for line in lines if not any(mark in line for mark in SAVINGS)]
    assert len(kept) < len(lines)
    return re.sub(r"  where \{\s*\}\n", "", "\n".join(kept) + "\n")


def at_full_rank(subject: Trained, file: str, step: str) -> lissom.Result:
    """Runs one step in which every site may be off by a thousandth of a percent.

    Without its guards such a rule matches what it makes (L001), so the checker is left out: `once`
    ends all the same.
    """
    rule = lossless(step.partition("(")[0], file)
    data = 'data calib = sample("train", 8)'
    program = program_of(f"{rule}\npipeline p {{ {data}; stage full {{ once {step} }} }}")
    given = subject.inputs, subject.data, subject.example.metrics
    options = Options(functions=FUNCTIONS)
    return lissom.Result(compile_checked(subject.model, program, *given, options))


ALL = "energy = 100%, budget = 0.001%"
FULL = [
    ("mnist_cnn", "separable", "separable_conv(M = 9, budget = 0.001%)", 2),
    ("mnist_cnn", "lowrank", f"low_rank_linear({ALL}, least = 10)", 2),
    ("mnist_cnn", "lowrank", f"low_rank_conv({ALL}, least = 9)", 3),
    ("mnist_cnn", "lowrank", f"spatial_svd_conv({ALL})", 2),
    ("mnist_cnn", "lowrank", f"tucker2_conv({ALL})", 2),
    ("mnist_cnn", "lowrank", 'whitened_linear(rank = 10, budget = 0.001%, least = 10) at "*.2"', 1),
    ("efficientnet_lite0", "separable", "separable_conv(M = 9, least = 3, budget = 0.001%)", 1),
    ("efficientnet_lite0", "lowrank", f"spatial_svd_conv({ALL}, least = 3)", 1),
    ("efficientnet_lite0", "lowrank", f"tucker2_conv({ALL}, least = 3)", 1),
    ("efficientnet_lite0", "lowrank", f'low_rank_conv({ALL}, least = 16) at "_blocks.1.*"', 2),
    ("minilm", "lowrank", f'low_rank_linear({ALL}) at "layers.0.*"', 6),
    (
        "minilm",
        "lowrank",
        'whitened_linear(rank = 384, budget = 0.001%) at "layers.1.attention.*"',
        4,
    ),
]


@pytest.mark.parametrize(
    ("name", "file", "step", "count"), FULL, ids=[f"{n}-{s}" for n, _, s, _ in FULL]
)
def test_full_rank_loses_nothing(name: str, file: str, step: str, count: int) -> None:
    subject = trained(name)
    result = at_full_rank(subject, file, step)
    assert fired(result) == {step.partition("(")[0]: count}
    assert result.model.code != exact(name).compiled.original.code
    assert subject.difference(result.model) <= 1e-4


def test_library_refuses_full_rank_for_it_saves_nothing() -> None:
    steps = "separable_conv(M = 9); once low_rank_linear(energy = 100%)"
    data = 'data calib = sample("train", 8)'
    result = trained("mnist_cnn").run(f"pipeline p {{ {data}; stage full {{ once {steps} }} }}")
    assert fired(result) == {}
    reasons = [event.reason for event in result.journal.of(Refused) if not event.structural]
    assert sum(reason.startswith("saves less than") for reason in reasons) == 2
    assert "rank 256 is past break-even 209" in reasons


# -- budgets ---------------------------------------------------------------------------------------


def unchanged(subject: Trained, result: lissom.Result, stage: int = 0) -> bool:
    """Whether the model is what it was before the stage, to the bit."""
    same = digests(result.model) == digests(result.compiled.original)
    return (
        same
        and ends(result)[stage].before == result.after
        and subject.difference(result.model) == 0
    )


def test_stage_that_breaks_its_budget_is_rolled_back() -> None:
    subject = trained("mnist_cnn")
    result = subject.run("""pipeline p {
      data calib = sample("train", 16)
      data valid = sample("valid", 1000)
      budget drop(accuracy) <= 1% on valid
      stage ruin { once spatial_svd_conv(rank = 1, budget = 100%) }
    }""")
    (end,) = ends(result)
    assert fired(result) == {"spatial_svd_conv": 2}
    assert not end.kept
    assert "drop(accuracy)" in end.reason
    assert result.applied == []
    assert unchanged(subject, result)


def test_budget_that_holds_keeps_the_stage() -> None:
    subject = trained("mnist_cnn")
    result = subject.run("""pipeline p {
      data calib = sample("train", 16)
      data valid = sample("valid", 1000)
      budget drop(accuracy) <= 1% on valid
      stage factor { once spatial_svd_conv(energy = 90%, budget = 50%) }
    }""")
    assert [end.kept for end in ends(result)] == [True]
    assert len(result.applied) == 2
    assert subject.measured(subject.model) - subject.measured(result.model) <= 0.01
    assert result.after.params < result.before.params


def test_each_takes_back_the_site_that_breaks_the_budget() -> None:
    subject = trained("mnist_cnn")
    result = subject.run("""pipeline p {
      data calib = sample("train", 16)
      data valid = sample("valid", 1000)
      budget drop(accuracy) <= 1% on valid
      stage ruin { each spatial_svd_conv(rank = 1, budget = 100%) order by saving }
    }""")
    refused = [event for event in result.journal.of(Refused) if event.code == "B002"]
    assert [event.site for event in refused] == ["conv_layers.6"]
    assert fired(result) == {}
    assert unchanged(subject, result)


def test_site_past_its_own_budget_is_refused_before_it_is_changed() -> None:
    subject = trained("mnist_cnn")
    result = subject.run("""pipeline p {
      data calib = sample("train", 16)
      stage tight { once low_rank_linear(rank = 4, budget = 1%) }
    }""")
    refused = [event for event in result.journal.of(Refused) if event.code == "B001"]
    assert [event.site for event in refused] == ["fc_layers.0"]
    assert fired(result) == {}
    assert unchanged(subject, result)


def test_rollback_keeps_the_stages_before_it() -> None:
    subject = trained("efficientnet_lite0")
    result = subject.run("""pipeline p {
      data calib = sample("train", 2)
      data valid = sample("valid", 20)
      budget drop(top1) <= 10% on valid
      stage clean { fixpoint { drop_dropout; fold_bn } }
      stage ruin { once low_rank_conv(rank = 1, budget = 100%) at "_blocks.1.*" }
    }""")
    clean, ruin = ends(result)
    assert (clean.kept, ruin.kept) == (True, False)
    assert Counter(event.stage for event in result.applied) == {"clean": 50}
    assert result.after == ruin.before == clean.after
    folded = exact("efficientnet_lite0").model
    assert sorted(digests(result.model).values()) == sorted(digests(folded).values())


def test_drift_of_minilm_past_its_budget_is_rolled_back() -> None:
    subject = trained("minilm")
    result = subject.run("""pipeline p {
      data calib = sample("train", 2)
      budget drift(model) <= 1% on calib
      stage ruin { once low_rank_linear(rank = 2, budget = 100%) at "layers.5.up" }
    }""")
    assert fired(result) == {"low_rank_linear": 1}
    assert [end.kept for end in ends(result)] == [False]
    assert unchanged(subject, result)


# -- writing ---------------------------------------------------------------------------------------


def test_saved_minilm_has_the_digest_that_was_verified(tmp_path: Path) -> None:
    """Its `normalize(p = 2.0, dim = -1)` names keywords in an order that no file keeps."""
    trained("minilm")
    result = exact("minilm")
    back = lissom.load(result.save(tmp_path / "out", check_reload=False))
    assert model_digest(back) == result.compiled.digests["result"]
