"""Rules over parameters: `match param w of ...`, other numbers in the place of a weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.grammar.checks.check import check
from lissom.grammar.diagnostics import LissomError
from lissom.grammar.library.vocabulary import library as declarations
from lissom.grammar.text.parse import parse
from lissom.rewrite.capture.capture import capture
from lissom.rewrite.explain.funnel import funnel
from lissom.rewrite.explain.sensitivity import effects
from lissom.rewrite.graph.snapshot import finish, snapshot
from lissom.rewrite.journal import Refused
from lissom.rewrite.pipeline.strategy import Runner
from lissom.rewrite.store.folder import load
from lissom.rewrite.targets.params import EXACT_NUMBERS

from .cli_models import MODEL, as_json
from .support import digests, library, state_of, the_rule

ROUND = library("round")
LOOSE = ROUND.replace("error(outputs) <= 2% on calib", "error(outputs) <= 50%")
ALL = LOOSE.replace("(conv1d | conv2d | linear)", "_")


class Mixed(nn.Module):
    """A tied table, an LSTM, attention, a functional layer, and a layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.table, self.scores = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
        self.scores.weight = self.table.weight
        self.mix, self.look = nn.LSTM(8, 8, batch_first=True), nn.MultiheadAttention(8, 2)
        self.free, self.again = nn.Parameter(torch.randn(5, 8)), nn.Linear(8, 8)

    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        read = self.mix(self.again(self.again(self.table(ids))))[0]
        read = self.look(read, read, read, need_weights=False)[0]
        return self.stem(x), self.scores(read), nn.functional.linear(read, self.free)


def mixed() -> Mixed:
    torch.manual_seed(3)
    return Mixed().eval()


def given() -> tuple[Tensor, Tensor]:
    torch.manual_seed(4)
    return torch.randn(2, 3, 6, 6), torch.randint(0, 11, (2, 4))


def compiled(model: nn.Module, inputs: Any, rule: str = LOOSE, step: str = "") -> Any:
    name = step or "once " + rule.partition("rule ")[2].split("(")[0].split("{")[0]
    return lissom.compile(model, f"{rule}\npipeline p {{ stage s {{ {name} }} }}", inputs=inputs)


def one(numbers: str, stored: str = "", ops: str = "linear", budget: str = "500%") -> str:
    half = f"rewrite {{ w := {stored} }}" if stored else ""
    return (
        f"approx rule other {{ match param w of {ops}\n perturb {{ w := {numbers} }} {half}\n"
        f" ensure {{ error(outputs) <= {budget} }} }}"
    )


def on_grid(tensor: Tensor) -> bool:
    return torch.equal(tensor.bfloat16().to(tensor.dtype), tensor)


def reasons(result: Any) -> dict[str, tuple[str, str]]:
    return {e.site: (e.code, e.reason) for e in result.journal.of(Refused)}


# -- what comes out --------------------------------------------------------------------------------


def test_every_weight_is_rounded_where_it_is_read() -> None:
    """Recurrent layers keep lists of their weights, attention has a layer inside of it."""
    model, before = mixed(), digests(mixed())
    result = compiled(model, given(), ALL)
    sites = [event.site for event in result.applied]
    assert sites == [
        "table.weight", "again.weight", "mix.weight_ih_l0", "mix.weight_hh_l0",
        "look.in_proj_weight", "look.out_proj.weight", "stem.weight", "free",
    ]  # fmt: skip
    expected = mixed()
    for name, held in expected.named_parameters():
        if "bias" not in name:
            held.data = held.data.bfloat16().float()
    for mine, wanted in zip(result.model(*given()), expected(*given()), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-6)
    assert digests(model) == before
    assert result.after == result.before


def test_a_tied_weight_stays_one(tmp_path: Path) -> None:
    model = mixed()
    result = compiled(model, given())
    found = dict(result.model.named_parameters(remove_duplicate=False))
    assert found["table.weight"] is found["scores.weight"]
    assert model.table.weight is model.scores.weight
    (event,) = [e for e in result.applied if "scores" in e.site]
    assert event.bindings == {"w": "table.weight, scores.weight"}
    assert set(event.renewed) == {"table.weight", "scores.weight"}
    result.save(tmp_path / "saved")
    again = load(tmp_path / "saved").module
    for mine, wanted in zip(again(*given()), result.model(*given()), strict=True):
        assert torch.equal(mine, wanted)


def test_type_format_and_gradient_stay() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last).double().eval()
    layer.weight.requires_grad_(False)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    (new,) = [
        held
        for name, held in compiled(nn.Sequential(layer).eval(), (x,)).model.named_parameters()
        if name.endswith("weight")
    ]
    assert type(new) is nn.Parameter
    assert (new.dtype, new.stride()) == (torch.float64, layer.weight.stride())
    assert not new.requires_grad
    assert on_grid(new)
    assert not on_grid(layer.weight)


def test_a_checkpoint_keeps_the_old_numbers() -> None:
    """Layers are shared with snapshots: they are copied before they get other numbers."""
    model, inputs = mixed(), given()
    state = state_of(capture(model, inputs).module, inputs)
    finish(state.module)
    entry = snapshot(state.module)
    before = [out.clone() for out in entry(*inputs)]
    assert Runner(state, "s").once([the_rule(ALL)]) == 8
    finish(state.module)
    assert all(torch.equal(a, b) for a, b in zip(entry(*inputs), before, strict=True))
    now = state.module(*inputs)
    assert not any(torch.equal(a, b) for a, b in zip(now, before, strict=True))


def test_it_ends_and_is_not_repeated() -> None:
    """What lies on the grid stays; what would go on changing is changed once."""
    result = compiled(mixed(), given(), step="fixpoint { round_bfloat16 }")
    assert {reason for _, reason in reasons(result).values()} == {"the rule keeps every number"}
    halved = compiled(mixed(), given(), one("0.5 * w", "0.5 * w"), "fixpoint { other }")
    assert len(halved.applied) == 3
    code, reason = reasons(halved)["free"]
    assert (code, reason.partition(";")[0]) == ("L001", "this rule gave it its numbers")


def test_other_rules_go_on_behind_it() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    net[1].running_mean.uniform_(-1, 1)
    text = LOOSE + library("fold", "prune")
    stages = (
        "budget drift(outputs) <= 1000%; stage a { once round_bfloat16 } "
        "stage b { fixpoint { fold_bn } } stage c { once round_bfloat16 } "
        "stage d { once prune_l1(ratio = 50%) }"
    )
    x = torch.randn(2, 3, 8, 8)
    result = lissom.compile(net, f"{text} pipeline p {{ {stages} }}", inputs=(x,))
    names = [event.rule.partition("(")[0] for event in result.applied]
    rounded = "round_bfloat16"
    assert names == [rounded, rounded, "fold_bn", rounded, "prune_l1"]


def test_at_names_layers_and_parameters() -> None:
    for at in ("scores", "table.*", "scores.weight"):
        result = compiled(mixed(), given(), step=f'once round_bfloat16 at "{at}"')
        assert [event.site for event in result.applied] == ["scores.weight"]


# -- the two halves --------------------------------------------------------------------------------


def test_what_is_stored_must_compute_what_was_perturbed() -> None:
    wrong = one('round_to(w, "bfloat16")', 'round_to(w, "float8_e5m2")')
    with pytest.raises(LissomError) as caught:
        compiled(mixed(), given(), wrong)
    (found,) = caught.value.diagnostics
    assert found.code == "V101"
    assert EXACT_NUMBERS in found.notes[0]


def test_halves_that_differ_in_rounding_alone_are_compared() -> None:
    text = one("3 * w", "2.9999999999 * w + 0.0000000001 * w", budget="1000%")
    torch.manual_seed(0)
    layer = nn.Linear(6, 4).double().eval()
    (event,) = compiled(layer, (torch.randn(2, 6).double(),), text).applied
    assert event.verdicts[0].claim == EXACT_NUMBERS
    assert event.verdicts[0].how == "tested"


def test_one_half_says_both() -> None:
    """The budget measures it; without `perturb` there is no exact half to compare."""
    same = compiled(mixed(), given(), one("0.9 * w")).applied
    assert {e.verdicts[0].how for e in same} == {"proved"}
    unsplit = one("0.9 * w").replace("perturb", "rewrite")
    found = compiled(mixed(), given(), unsplit).applied
    assert {e.verdicts[0].how for e in found} == {"not checked"}


def test_an_exact_rule_that_changes_what_is_computed() -> None:
    text = "exact rule other { match param w of linear; rewrite { w := 0.5 * w } }"
    with pytest.raises(LissomError, match="V101"):
        compiled(mixed(), given(), text)


# -- refusals --------------------------------------------------------------------------------------


def test_a_budget_of_the_rule() -> None:
    result = compiled(mixed(), given(), LOOSE.replace("50%", "0.0001%"))
    assert not result.applied
    assert {code for code, _ in reasons(result).values()} == {"B001"}


def test_a_guard_speaks_of_the_parameter() -> None:
    said = "{w} {shape(w)} {dtype(w)} {params(w)}: also {sharers(w)}"
    text = one("0.5 * w").replace("perturb", f'where {{ owned(w) else "{said}" }} perturb')
    found = reasons(compiled(mixed(), given(), text))
    assert found["scores.weight"][1] == "scores.weight 11, 8 float32 88: also table"


def test_a_memory_that_the_model_writes_to() -> None:
    """No model that does is captured; a graph may all the same."""
    inputs = given()
    module = capture(mixed(), inputs).module
    (held,) = [node for node in module.graph.nodes if node.target == "free"]
    with module.graph.inserting_after(held):
        module.graph.call_method("mul_", (held, 1)).meta.update(val=held.meta["val"])
    state = state_of(module, inputs)
    assert Runner(state, "s").once([the_rule(one("0.9 * w"))]) == 2
    (left,) = state.journal.of(Refused)
    assert (left.site, left.code) == ("free", "R015")
    assert left.reason == "`mul_` writes into it when the model runs"


class Views(nn.Module):
    """A matrix and its transpose are one memory."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 6, bias=False)
        self.down = nn.Linear(6, 4, bias=False)
        self.down.weight = nn.Parameter(self.up.weight.detach().t())

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x))


def test_a_memory_that_is_seen_in_two_shapes() -> None:
    result = compiled(Views().eval(), (torch.randn(2, 4),), one("0.9 * w"))
    assert reasons(result)["up.weight"] == ("R015", "`down.weight` sees its memory in another way")


def test_numbers_that_overflow() -> None:
    net = nn.Linear(4, 4).half().eval()
    net.weight.data[0, 0] = 60000.0
    found = reasons(compiled(net, (torch.zeros(2, 4).half(),), one("2 * w")))
    assert found["weight"] == ("K002", "1 of its 16 numbers would no longer be finite")


def test_another_shape_is_an_error_of_the_rule() -> None:
    with pytest.raises(LissomError, match="R003"):
        compiled(mixed(), given(), one("transpose(w)"))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("perturb { w := 0.5 * w }", "", "does more than give a parameter other numbers"),
        ("{ w := 0.5 * w }", "{ w := 0.5 * w; w := w }", ""),
        ("error(outputs)", "error(w)", "measures something else than the model's outputs"),
        ("match param w of linear", "match param w of linear\n match { y = relu(x) }", "does more"),
        ("ensure {", "rewrite { y = relu(w) } ensure {", "does more than give"),
    ],
)
def test_what_such_a_rule_cannot_hold(old: str, new: str, said: str) -> None:
    text = one("0.5 * w")
    assert old in text
    found = check(parse(text.replace(old, new)), declarations())
    messages = [d.message for d in found if d.code == "R002"]
    assert any(said in message for message in messages) == bool(said)
    assert bool(messages) == bool(said)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (one("0.5 * w", ops="(conv2d | lineer)"), "T003"),
        (one("0.5 * w", ops="relu"), "P004"),
        (one("w", "relu(w)"), "T001"),
        (one("w", "v"), "N001"),
    ],
)
def test_what_the_checker_says(text: str, code: str) -> None:
    assert code in {d.code for d in check(parse(text), declarations()) if d.severity == "error"}


# -- telling ---------------------------------------------------------------------------------------


def test_the_funnel_counts_parameters() -> None:
    inputs = given()
    state = state_of(capture(mixed(), inputs).module, inputs)
    found = funnel(state, the_rule(LOOSE, least=50))
    assert found.anchor == "weight of conv1d or conv2d or linear"
    assert [(level.kind, level.came, level.passed) for level in found.levels] == [
        ("guard", 4, 3), ("memory", 3, 3), ("numbers", 3, 3), ("plan", 3, 3),
    ]  # fmt: skip
    (near,) = found.nearest
    assert (near.site, near.reason) == ("free", "it holds 40 numbers only")
    assert funnel(state, the_rule(LOOSE), at="free").candidates == 1
    with pytest.raises(LissomError, match="U008"):
        funnel(state, the_rule(LOOSE), at="mix")


def test_a_model_without_such_parameters() -> None:
    x = torch.randn(2, 4)
    state = state_of(capture(nn.ReLU().eval(), (x,)).module, (x,))
    found = funnel(state, the_rule(LOOSE))
    assert (found.candidates, found.sites) == (0, ())


def test_sensitivity_goes_parameter_by_parameter() -> None:
    inputs = given()
    state = state_of(capture(mixed(), inputs).module, inputs)
    before = [out.clone() for out in state.module(*inputs)]
    found = {cost.site: cost.drift for cost in effects(state, the_rule(ALL), None)}
    assert len(found) == 8
    assert all(0 < moved < 0.01 for moved in found.values())
    assert all(torch.equal(a, b) for a, b in zip(state.module(*inputs), before, strict=True))
    state.module.free.data.mul_(100)
    assert effects(state, the_rule(ALL), None)[-1].drift != found["free"]


def test_each_takes_the_least_sensitive_first() -> None:
    step = "each round_bfloat16 order by sensitivity"
    events = compiled(mixed(), given(), step=step).applied
    assert len(events) == 4


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model.py"
    model.write_text(MODEL)
    for command in ("plan", "why", "sensitivity"):
        code, found = as_json(capsys, command, f"{model}:build", "round_bfloat16")
        assert code == 0
        text = str(found)
        assert "conv.weight" in text
        assert "head.weight" in text
