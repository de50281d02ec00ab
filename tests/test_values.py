"""Rules over values: `match value y ...`, ops between a value and all that reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.grammar.checks.check import check
from lissom.grammar.diagnostics import LissomError
from lissom.grammar.fmt.format import format_text
from lissom.grammar.library.vocabulary import library as declarations
from lissom.grammar.text.parse import parse
from lissom.rewrite.capture.capture import capture
from lissom.rewrite.explain.funnel import funnel
from lissom.rewrite.explain.sensitivity import effects
from lissom.rewrite.journal import Refused
from lissom.rewrite.store.folder import load
from lissom.rewrite.targets.values import EXACT_VALUE

from .cli_models import MODEL, as_json
from .support import digests, state_of, the_rule

CLAMP = """
approx rule clamp_idle(slack: frac = 0%) {
  match value y : f[...] at "*"
  let {
    (least, most) = seen_range(y)
    room = slack * (most - least)
  }
  perturb { y := clamp(y, min = least - room, max = most + room) }
  rewrite { y = clamp(y, min = least - room, max = most + room) }
  ensure { error(outputs) <= 0.1% on calib }
}
"""


class Net(nn.Module):
    """A value that three read, one of them the model's output; and one that is written to."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.rest = nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.stem(x)
        return self.head(self.rest(y) + y), y


def net() -> Net:
    torch.manual_seed(5)
    return Net().eval()


def given() -> tuple[Tensor]:
    torch.manual_seed(6)
    return (torch.randn(3, 4),)


def seen() -> list[Any]:
    torch.manual_seed(7)
    return [(torch.randn(16, 4), torch.zeros(16)) for _ in range(2)]


def compiled(rule: str = CLAMP, step: str = "", model: nn.Module | None = None) -> Any:
    step = step or "once " + rule.partition("rule ")[2].split("(")[0].split("{")[0]
    text = f'{rule}\npipeline p {{ data calib = sample("train", all)\n stage s {{ {step} }} }}'
    return lissom.compile(model or net(), text, inputs=given(), data=seen())


def other(moved: str, built: str, kind: str = "approx", budget: str = "900%") -> str:
    half = f"perturb {{ y := {moved} }}" if moved else ""
    claim = f"ensure {{ error(outputs) <= {budget} }}" if kind == "approx" else ""
    return (
        f'{kind} rule other {{ match value y : f[N, C] at "stem"\n {half}\n'
        f" rewrite {{ y = {built} }}\n {claim} }}"
    )


def reasons(result: Any) -> list[tuple[str, str, str]]:
    return [(e.site, e.code, e.reason) for e in result.journal.of(Refused)]


# -- what comes out --------------------------------------------------------------------------------


def test_what_is_idle_on_the_data_changes_nothing_there() -> None:
    model, before = net(), digests(net())
    result = compiled(model=model)
    assert [event.site for event in result.applied] == ["stem", "rest.1", "add", "head"]
    for x, _ in seen():
        for mine, wanted in zip(result.model(x), net()(x), strict=True):
            assert torch.equal(mine, wanted)
    assert {verdict.worst for event in result.applied for verdict in event.verdicts} == {0.0}
    assert digests(model) == before


def test_all_that_reads_it_sees_the_bounds() -> None:
    """Far away from the data; the model's output is one of the readers."""
    result = compiled(step='once clamp_idle at "stem"')
    (event,) = result.applied
    values = torch.cat([net().stem(x) for x, _ in seen()])
    x, least, most = 50 * given()[0], values.min(), values.max()
    model = net()
    y = model.stem(x).clamp(least, most)
    expected = model.head(model.rest(y) + y), y
    for mine, wanted in zip(result.model(x), expected, strict=True):
        torch.testing.assert_close(mine, wanted)
    assert event.verdicts[0].claim == EXACT_VALUE
    assert event.added == ("stem",)
    assert result.after.ops == result.before.ops + 1


def test_room_is_a_share_of_what_was_seen() -> None:
    result = compiled(step='once clamp_idle(slack = 50%) at "stem"')
    bound = result.model(1e6 * given()[0])[1]
    values = torch.cat([net().stem(x) for x, _ in seen()])
    extent = values.max() - values.min()
    torch.testing.assert_close(bound.max() - bound.min(), 2 * extent)


def test_it_ends() -> None:
    """A bounded value and its bound are left; so are they in a model that is compiled again."""
    result = compiled(step="fixpoint { clamp_idle }")
    assert len(result.applied) == 4
    assert {code for _, code, _ in reasons(result)} == {"L001", "R015"}
    found = compiled(model=compiled().model)
    assert not found.applied
    said = {reason for _, code, reason in reasons(found) if code == "R015"}
    assert {"it is made by the same clamp", "the same clamp is its only reader"} <= said


def test_it_is_stored_and_read_again(tmp_path: Path) -> None:
    result = compiled()
    result.save(tmp_path / "saved")
    again = load(tmp_path / "saved").module
    for x in (given()[0], 50 * given()[0]):
        for mine, wanted in zip(again(x), result.model(x), strict=True):
            assert torch.equal(mine, wanted)


def test_several_ops_and_a_smaller_model() -> None:
    """The bounds leave the least sensitive value first; other rules go on behind."""
    twice = other("mul(mul(y, 2.0), 3.0)", "mul(y, 6.0)")
    assert len(compiled(twice).applied) == 1
    steps = other("y * 0.5", "z").replace("y = z", "z = mul(y, 0.25); y = mul(z, 2)")
    (event,) = compiled(steps).applied
    assert len(event.added) == 2
    assert len(compiled(step="each clamp_idle order by sensitivity").applied) == 4


# -- the two halves --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moved", "built"),
    [
        ("mul(y, 0.5)", "mul(y, 0.4)"),
        ("clamp(y, min = -9000.0)", "clamp(y, min = -8000.0)"),  # idle wherever data is
        ("clamp(y, max = 9000.0)", "clamp(y, min = -9000.0, max = 9000.0)"),
    ],
)
def test_what_is_built_must_compute_what_was_perturbed(moved: str, built: str) -> None:
    with pytest.raises(LissomError, match="V101") as caught:
        compiled(other(moved, built))
    assert EXACT_VALUE in caught.value.diagnostics[0].notes[0]


def test_an_exact_rule_changes_no_number() -> None:
    """Bounds that no data reaches are bounds all the same."""
    assert compiled(other("", "add(y, 0.0)", "exact")).applied
    with pytest.raises(LissomError, match="V101"):
        compiled(other("", "clamp(y, min = -9000.0)", "exact"))


def test_without_perturb_only_the_error_is_known() -> None:
    (event,) = compiled(other("", "mul(y, 0.5)")).applied
    assert event.verdicts[0].how == "not checked"
    assert event.verdicts[1].worst is not None
    assert event.verdicts[1].worst > 0


# -- refusals --------------------------------------------------------------------------------------


def test_what_is_written_to_afterwards() -> None:
    assert ("rest.0", "R015", "`rest_1` writes into its memory afterwards") in reasons(compiled())


def test_a_budget_of_the_rule() -> None:
    found = compiled(other("mul(y, 0.5)", "mul(y, 0.5)", budget="1%"))
    assert [code for _, code, _ in reasons(found)] == ["B001"]


def test_numbers_that_are_not_finite() -> None:
    model = net()
    model.stem.weight.data[0] = torch.inf
    found = compiled(step='once clamp_idle at "stem"', model=model)
    ((site, _, reason),) = reasons(found)
    assert site == "stem"
    assert "it is not finite on the data" in reason


@pytest.mark.parametrize(
    ("built", "code"),
    [("flatten(y, start_dim = 0)", "R003"), ('cast(y, dtype = "float64")', "R003")],
)
def test_another_shape_is_an_error_of_the_rule(built: str, code: str) -> None:
    with pytest.raises(LissomError, match=code):
        compiled(other(built, built))


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("perturb {", "match { z = relu(x) } perturb {", "R002"),
        ("rewrite { y = mul(y, 0.5) }", "", "R002"),
        ("y = mul(y, 0.5)", "z = mul(y, 0.5)", "R002"),
        ("error(outputs)", "error(y)", "R002"),
        ("y := mul(y, 0.5)", "y := mull(y, 0.5)", "N001"),
        ("y := mul(y, 0.5)", "y := mul(y)", "T004"),
        ("y := mul(y, 0.5)", "y := clamp(y, mim = 0.0)", "T003"),
        ("y = mul(y, 0.5)", "y = mul(z, 0.5)", "N001"),
    ],
)
def test_what_the_checker_says(old: str, new: str, code: str) -> None:
    text = other("mul(y, 0.5)", "mul(y, 0.5)")
    assert not check(parse(text), declarations())
    assert old in text
    assert code in {d.code for d in check(parse(text.replace(old, new)), declarations())}


# -- telling ---------------------------------------------------------------------------------------


def test_the_funnel_counts_values() -> None:
    state = state_of(capture(net(), given()).module, given())
    found = funnel(state, the_rule(CLAMP))
    assert found.anchor == "value at *"
    assert [(level.kind, level.came, level.passed) for level in found.levels] == [
        ("memory", 5, 4), ("ops", 4, 4), ("plan", 4, 4),
    ]  # fmt: skip
    (near,) = found.nearest
    assert near.site == "rest.0"
    assert funnel(state, the_rule(CLAMP), at="head").candidates == 1
    nowhere = funnel(state, the_rule(CLAMP.replace('at "*"', 'at "layers.*"')))
    assert (nowhere.candidates, nowhere.sites) == (0, ())
    assert not funnel(state, the_rule(CLAMP.replace("f[...]", "f[A, B, C]"))).candidates


def test_sensitivity_goes_value_by_value() -> None:
    state = state_of(capture(net(), given()).module, given())
    half = other("mul(y, 0.5)", "mul(y, 0.5)").replace('"stem"', '"stem", "head"')
    found = {cost.site: cost.drift for cost in effects(state, the_rule(half), None)}
    assert found.keys() == {"stem", "head"}
    assert all(moved and moved > 0.01 for moved in found.values())
    assert not any("mul" in node.name for node in state.module.graph.nodes)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, rule = tmp_path / "model.py", tmp_path / "clamp.lissom"
    model.write_text(MODEL)
    data = 'data calib = sample("train", 8)'
    rule.write_text(f"{CLAMP}\npipeline p {{ {data}\n stage s {{ once clamp_idle }} }}\n")
    named = ("clamp_idle", "--program", str(rule))
    for command, *asked in (("plan", str(rule)), ("why", *named), ("sensitivity", *named)):
        code, found = as_json(capsys, command, f"{model}:build", *asked)
        assert code == 0
        assert "head" in str(found)
    assert 'match value y : f[...] at "*"' in format_text(CLAMP)
