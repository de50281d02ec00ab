"""Pipelines: data, budgets, strategies that choose, rollback, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.rewrite.journal import Note, Refused, StageEnd, VerdictKind

Batches = list[tuple[Tensor, Tensor]]


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(48, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 64), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 4)).eval()


def data(split: str) -> Batches:
    """Samples labelled by the untouched network, so that its accuracy is 1."""
    if split not in ("train", "valid"):
        raise ValueError(f"known: train, valid; not {split}")
    generator = torch.Generator().manual_seed(len(split))
    batches = [torch.randn(32, 48, generator=generator) for _ in range(4)]
    with torch.no_grad():
        return [(x, network()(x).argmax(1)) for x in batches]


def accuracy(model: nn.Module, batches: Batches) -> float:
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)
    return right / sum(len(y) for _, y in batches)


def compiled(body: str, **more: Any) -> lissom.Result:
    program = f'pipeline p {{\n data calib = sample("train", 64)\n{body}\n}}'
    metrics: dict[str, Callable[..., float]] = {"accuracy": accuracy}
    settings = {"inputs": (torch.randn(2, 48),), "data": data, "metrics": metrics, **more}
    return lissom.compile(network(), program, **settings)


def stages(result: lissom.Result) -> dict[str, bool]:
    return {end.stage: end.kept for end in result.journal.of(StageEnd)}


SHRINK = "low_rank_linear(rank = 8, budget = 100%)"


def test_a_broken_budget_rolls_the_stage_back_and_the_next_goes_on() -> None:
    result = compiled(f"""
 data valid = sample("valid", all)
 budget drop(accuracy) <= 0.0% on valid
 stage harsh {{ once {SHRINK} }}
 stage clean {{ fixpoint {{ drop_dropout }} }}""")
    assert stages(result) == {"harsh": False, "clean": True}
    assert [event.rule for event in result.applied] == ["drop_dropout"]
    x = torch.randn(8, 48)
    assert torch.equal(result.model(x), network()(x))
    (end, _) = result.journal.of(StageEnd)
    assert "drop(accuracy)" in end.reason


def test_on_fail_stop_raises() -> None:
    with pytest.raises(lissom.LissomError, match="V102"):
        compiled(f"""
 data valid = sample("valid", all)
 budget drop(accuracy) <= 0.0% on valid
 stage harsh {{ once {SHRINK} }}
 on_fail stop""")


def test_each_takes_back_the_site_that_breaks_the_budget() -> None:
    result = compiled(f"""
 data valid = sample("valid", all)
 budget drop(accuracy) <= 25% on valid
 stage shrink {{ each {SHRINK} order by saving }}""")
    refused = [event for event in result.journal.of(Refused) if event.code == "B002"]
    assert len(result.applied) == 1
    assert len(refused) == 1
    assert stages(result) == {"shrink": True}
    drop = 1 - accuracy(result.model, data("valid"))
    assert 0 < drop <= 0.25


def test_each_stops_at_its_goal() -> None:
    body = "stage shrink {{ each low_rank_linear(rank = 8, budget = 100%) order by {} until {} }}"
    half = compiled(body.format("saving", "params(model) <= 80%"))
    assert len(half.applied) == 1
    assert half.after.params <= 0.8 * half.before.params
    done = compiled(body.format("sensitivity", "params(model) <= 100%"))
    assert done.applied == []


def test_first_takes_the_first_step_that_changes_something() -> None:
    result = compiled(f"stage s {{ first {{ once fold_bn; once drop_dropout; once {SHRINK} }} }}")
    assert [event.rule for event in result.applied] == ["drop_dropout"]


def test_try_is_all_or_nothing() -> None:
    nothing = compiled(f"stage s {{ try {{ once {SHRINK}; once fold_bn }} }}")
    assert nothing.applied == []
    x = torch.randn(8, 48)
    assert torch.equal(nothing.model(x), network()(x))
    everything = compiled("stage s { try { once drop_dropout; once merge_linear } }")
    assert everything.applied == [], "two linear layers with a relu between them do not merge"
    both = compiled(f"stage s {{ try {{ once drop_dropout; once {SHRINK} }} }}")
    assert len(both.applied) == 3


def test_verify_is_reported_and_forbids_what_it_names() -> None:
    result = compiled("stage s { once drop_dropout }\n verify { forbids dropout, relu }")
    assert {v.claim: v.holds for v in result.verdicts} == {
        "forbids dropout": True,
        "forbids relu": False,
    }
    assert not result.compiled.verified


def test_arguments_of_the_pipeline() -> None:
    program = """
pipeline p(least: frac = 100%) {
  data calib = sample("train", 64)
  stage s { each low_rank_linear(rank = 8, budget = 100%) until params(model) <= least }
}"""
    assert lissom.compile(network(), program, data=data).applied == []
    smaller = lissom.compile(network(), program, data=data, args={"least": 0.5})
    assert smaller.after.params <= 0.5 * smaller.before.params


def test_rules_without_a_pipeline_run_exact_first() -> None:
    program = """
approx rule soft { match { y = relu(x) } rewrite { y = silu(x) } ensure { error(y) <= 100% } }
exact rule drop { match { y = dropout(x) as d } where { mode(d) == eval } rewrite { y = x } }
"""
    result = lissom.compile(network(), program, inputs=(torch.randn(2, 48),))
    assert [event.rule for event in result.applied] == ["drop", "soft", "soft"]


def test_a_kind_that_is_not_allowed_is_said() -> None:
    result = compiled(f"stage s {{ once drop_dropout, {SHRINK} }}", allow=("exact",))
    assert [event.rule for event in result.applied] == ["drop_dropout"]
    assert any(note.code == "W701" for note in result.journal.of(Note))


def test_a_rule_that_matches_nothing_is_said() -> None:
    result = compiled("stage s { once fold_bn }")
    (note,) = [note for note in result.journal.of(Note) if note.code == "W702"]
    assert "fold_bn" in note.text


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ('data odd = sample("holdout", 5)\n stage s { once drop_dropout }', "D001"),
        ("budget drop(accuracy) <= 1% on nowhere\n stage s { once drop_dropout }", "N001"),
        ("budget drop(top5) <= 1% on calib\n stage s { once drop_dropout }", "D004"),
        ("data odd = 5\n stage s { once drop_dropout }", "D005"),
        ("stage s { each low_rank_linear(rank = 8) order by beauty }", "R009"),
        ("stage s { once no_such_rule }", "N001"),
        ("stage s { once low_rank_linear(rnk = 8) }", "T004"),
        ("stage s { once drop_dropout }\n recover tune { epochs = 3 }", "F001"),
        ("recover tune { data = calib; epoch = 3 }", "F004"),
        ('data t = sample("test", 5)\n recover tune { data = t; epochs = 3 }', "F003"),
        ("stage s { each low_rank_linear(rank = 8) order by -saving }", "R009"),
        ("stage s { calibrate calib }", "F001"),
    ],
)
def test_what_cannot_be_run_is_named(body: str, code: str) -> None:
    with pytest.raises(lissom.LissomError) as caught:
        compiled(body)
    assert caught.value.diagnostics[0].code == code
    assert caught.value.diagnostics[0].labels


def test_a_budget_without_data_says_how_to_give_it() -> None:
    body = "budget drop(accuracy) <= 1% on calib\n stage s { once drop_dropout }"
    with pytest.raises(lissom.LissomError, match="D002"):
        compiled(body, data=None)


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ("approx rule r { match { y = relu(x) } rewrite { y = tanh(x) } }", "X002"),
        (
            "exact rule r { match { y = linear(x) as l } "
            "perturb { l.weight := l.weight * 0.5 } "
            "rewrite { y = l(x, weight = l.weight * 0.5) } }",
            "X001",
        ),
        (
            "exact rule r { match { y = relu(x) } rewrite { y = tanh(x) } "
            "ensure { error(y) <= 90% } }",
            "X001",
        ),
    ],
)
def test_a_rule_cannot_promise_what_nothing_checks(rule: str, code: str) -> None:
    with pytest.raises(lissom.LissomError) as caught:
        lissom.compile(network(), rule, inputs=(torch.randn(2, 48),))
    assert caught.value.diagnostics[0].code == code


BOUNDED = """
approx rule bounded {
  match { y = relu(x) }
  rewrite { y = clamp(x, min = 0, max = 1) }
  ensure { CLAIM }
}
pipeline p {
  budget drift(outputs) <= 1000%
  stage s { each bounded order by sensitivity }
}
"""


@pytest.mark.parametrize("claim", ["error(y) <= 90%", "90% >= error(y)", "(error(y)) < 90%"])
def test_sensitivity_is_the_error_wherever_the_claim_names_it(claim: str) -> None:
    """The second activation is clamped far less than the first."""
    layers = [nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()]
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        for layer, scale in ((model[0], 2.0), (model[2], 0.6)):
            layer.weight.copy_(scale * torch.eye(8))
            layer.bias.zero_()
    x = torch.rand(32, 8, generator=torch.Generator().manual_seed(0))
    result = lissom.compile(model, BOUNDED.replace("CLAIM", claim), inputs=(x,))
    assert [event.site for event in result.applied] == ["3", "1"]
    asked = [v for event in result.applied for v in event.verdicts if v.kind is VerdictKind.ERROR]
    assert [(v.clause, v.tolerance, v.claim) for v in asked] == [(0, 0.9, claim)] * 2
    assert 0 < asked[0].worst < asked[1].worst < 0.9
