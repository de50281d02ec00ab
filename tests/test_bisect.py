"""`lissom bisect` finds the rewrite that breaks a promise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from lissom.cli import cli
from lissom.grammar.library.program import program_of
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.apply import engine
from lissom.rewrite.apply.commit import commit
from lissom.rewrite.explain.bisect import Run, bisect
from lissom.rewrite.journal import Applied, Journal, StageEnd
from lissom.rewrite.pipeline.compile import Options, compile_model

from .support import random_norms

LOW_RANK = """
pipeline p {
  data calib = sample("train", 8)
  budget drift(outputs) <= LIMIT on calib
  stage low { once low_rank_linear(rank = 4, least = 4, budget = 100%) }
}
"""
FOLD = "pipeline p { stage clean { fixpoint { fold_bn } } }"


def linears() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    layers = [nn.Linear(16, 16) for _ in range(6)]
    for layer in layers:  # four strong directions; what a rank of four loses adds up
        nn.init.orthogonal_(layer.weight)
        layer.weight.data *= torch.tensor([1.0] * 4 + [0.1] * 12)
        layer.bias.data.zero_()
    return nn.Sequential(*layers).eval(), (torch.randn(8, 16),)


def convs() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    parts = [part for _ in range(5) for part in (nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))]
    return random_norms(nn.Sequential(*parts)).eval(), (torch.randn(2, 4, 6, 6),)


def runner(model: nn.Module, inputs: tuple[torch.Tensor, ...], text: str) -> Run:
    def run(fuel: int | None, journal: Journal, sites: Any = None) -> Any:
        options = Options(functions=FUNCTIONS, fuel=fuel, journal=journal)
        data = lambda split: [(inputs[0], None)]  # noqa: E731
        return compile_model(model, program_of(text), inputs, data, {}, options)

    return run


def drift(run: Run, fuel: int) -> float:
    journal = Journal()
    run(fuel, journal)
    (end,) = journal.of(StageEnd)
    return next(v.worst or 0.0 for v in end.verdicts if v.claim.startswith("budget drift"))


def test_fuel_stops_after_so_many_rewrites() -> None:
    run = runner(*convs(), FOLD)
    for fuel in (0, 1, 3, 5, 9):
        journal = Journal()
        run(fuel, journal)
        assert len(journal.of(Applied)) == min(fuel, 5)


def test_the_rewrite_that_breaks_a_budget() -> None:
    loose = runner(*linears(), LOW_RANK.replace("LIMIT", "1000%"))
    drifts = [0.0, *(drift(loose, fuel) for fuel in range(1, 7))]
    assert drifts == sorted(drifts)
    for number in range(1, 7):
        limit = (drifts[number - 1] + drifts[number]) / 2
        found = bisect(runner(*linears(), LOW_RANK.replace("LIMIT", f"{limit:.6f}")))
        assert found is not None
        assert (found.number, found.event.site) == (number, str(number - 1))
        assert "drift(outputs)" in found.after.broken
        assert found.before.broken == ""


def test_what_the_first_run_chose_by_time_is_chosen_again() -> None:
    """Each later run is given its rules and sites."""
    run, given = runner(*linears(), LOW_RANK.replace("LIMIT", "0.1%")), list[Any]()

    def noting(fuel: int | None, journal: Journal, sites: Any) -> Any:
        given.append(sites)
        return run(fuel, journal)

    assert bisect(noting) is not None
    first, *others = given
    assert first is None
    assert [site for _, site in others[0]] == [str(number) for number in range(6)]
    assert all(sites == others[0] for sites in others)


def test_nothing_breaks() -> None:
    assert bisect(runner(*convs(), FOLD)) is None


@pytest.mark.parametrize("broken", [1, 3, 5])
def test_the_rewrite_that_breaks_an_equality(broken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that spoils one weight after it was verified."""
    made = [0]

    def spoiling(state: Any, site: Any, *rest: Any) -> Any:
        made[0] = 1 + sum(isinstance(event, Applied) for event in state.journal.events)
        new = commit(state, site, *rest)
        if made[0] == broken:
            state.module.get_submodule(str(new[0].target)).bias.data += 1
        return new

    monkeypatch.setattr(engine, "commit", spoiling)
    found = bisect(runner(*convs(), FOLD))
    assert found is not None
    assert found.number == broken
    assert found.event.site == str(2 * (broken - 1))
    assert "whole model equals the one before the stage" in found.after.broken


def test_on_the_command_line(tmp_path: Path) -> None:
    model = tmp_path / "model.py"
    model.write_text(
        "import torch\nfrom torch import nn\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    layers = [nn.Linear(16, 16) for _ in range(6)]\n"
        "    for layer in layers: nn.init.orthogonal_(layer.weight)\n"
        "    return nn.Sequential(*layers).eval()\n"
        "def inputs(): return (torch.randn(8, 16),)\n"
        "def data(split):\n"
        "    torch.manual_seed(1)\n"
        "    return [(torch.randn(8, 16), torch.zeros(8))]\n"
    )
    program = tmp_path / "p.lissom"
    program.write_text(LOW_RANK.replace("LIMIT", "90%"))
    named = [f"{model}:build", str(program)]
    found = CliRunner().invoke(cli, ["bisect", *named])
    assert found.exit_code == 1, found.output
    assert "breaks it: low_rank_linear" in found.stdout
    assert "BROKEN" in found.stdout
    program.write_text(LOW_RANK.replace("LIMIT", "1000%"))
    found = CliRunner().invoke(cli, ["bisect", *named])
    assert (found.exit_code, found.stdout) == (0, "nothing breaks\n")
