"""The proof of rules over parameters: what it shows, and planted mistakes that it must find."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from lissom.grammar.library.program import program_of
from lissom.grammar.tree import tree as t
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.graph import exchange as exchange_module
from lissom.rewrite.graph.exchange import exchange, like
from lissom.rewrite.ops.vocabulary import Vocabulary
from lissom.rewrite.proving import halves
from lissom.rewrite.proving.choices.source import Rolled
from lissom.rewrite.proving.params.mutants import param_score, param_specimens
from lissom.rewrite.proving.params.near import EDITS, param_near
from lissom.rewrite.proving.params.trial import param_outcomes
from lissom.rewrite.proving.prove import Explored, Proof, explore
from lissom.rewrite.proving.report import report_of
from lissom.rewrite.proving.reproduce import replay
from lissom.rewrite.proving.subject import Subject
from lissom.rewrite.proving.trial import BAD
from lissom.rewrite.proving.wide import prove_wide
from lissom.rewrite.targets import check, params

from .support import library

ROUND = library("round")
STORED = 'rewrite { w := round_to(w, "float8_e5m2") }'
MODELS = 12

pytestmark = pytest.mark.usefixtures("one_thread")


def subject_of(text: str) -> Subject:
    program = program_of(text)
    (rule,) = program.file.all(t.Rule)
    return Subject(rule, Vocabulary(program.declarations), FUNCTIONS)


def explored(text: str, models: int = MODELS) -> Explored:
    return explore(subject_of(text), models, 0, param_outcomes, any)


def changed(old: str, new: str) -> str:
    assert old in ROUND
    return ROUND.replace(old, new)


WRONG = changed("rewrite { w := r }", STORED)


@cache
def proof() -> Proof:
    return prove_wide(subject_of(ROUND), MODELS)


# -- a rule that is right --------------------------------------------------------------------------


def test_round_bfloat16_is_verified() -> None:
    found = report_of(proof(), subject_of(ROUND).source)
    assert (found.verdict, found.weak, found.failures) == ("verified", (), ())
    assert found.fired >= 50
    assert found.confidence is not None
    assert found.elsewhere["other sizes"] > found.fired / 2
    assert json.dumps(found.as_json())


def test_what_else_sees_the_memory_decides() -> None:
    near = {result.near.name: result for result in proof().near}
    (guard,) = proof().guards
    assert near[guard].silent >= 5
    for name, _, fires in EDITS:
        found = near[name]
        assert (found.equal if fires else found.silent) >= 5
        assert not (found.silent if fires else found.equal)
        assert fires or set(found.conditions) == {"R015"}


def test_every_mutant_is_killed() -> None:
    """Rounding to float16 what bfloat16 has says the same numbers, and is no mistake."""
    fates = proof().mutants.fates
    assert len(fates) >= 10
    assert all(fate.killed for fate in fates)
    names = {fate.mutant.name for fate in fates}
    assert {"stored: nothing", "perturbed: nothing", "stored: the sign lost"} <= names
    assert "stored: rounded to bfloat16" not in names


def test_a_mutant_that_the_engine_lets_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the words mean is compared apart from the engine."""
    chosen = subject_of(ROUND)
    specimens = param_specimens(chosen, proof().explored.tapes[:3])
    monkeypatch.setattr(check, "judged", lambda trial: ())
    found = param_score(chosen, specimens)
    assert "model" in {fate.by for fate in found.fates}
    assert not found.survivors
    monkeypatch.setattr(halves, "AGREES", 1e9)
    assert param_score(chosen, specimens).survivors


# -- rules that are wrong, or show nothing ---------------------------------------------------------


def test_halves_that_say_different_things_are_unsound() -> None:
    tape = explored(WRONG).failure
    assert tape is not None
    assert (tape.outcome.kind, tape.outcome.condition) == ("UNSOUND", "V101")
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        assert replay(WRONG, "round_bfloat16", tape.tape, FUNCTIONS)
        assert not replay(ROUND, "round_bfloat16", tape.tape, FUNCTIONS)
    assert "UNSOUND V101" in told.getvalue()


def test_an_exact_rule_must_change_nothing() -> None:
    text = "exact rule half { match param w of linear; rewrite { w := 0.5 * w } }"
    found = explored(text).failure
    assert found is not None
    assert (found.outcome.kind, found.outcome.condition) == ("UNSOUND", "V101")


def test_a_rule_that_never_applies_shows_nothing() -> None:
    found = prove_wide(subject_of(changed("numel(w) >= least", "numel(w) > 90000 * least")), 8)
    assert found.verdict == "NOT TESTED"
    assert found.weak[0].startswith("never fired: `numel(w) > 90000 * least")


# -- mistakes of the engine ------------------------------------------------------------------------


def first_alone(root: Any, paths: Any, new: Any) -> None:
    exchange(root, list(paths)[:1], new)


PLANTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "one of several paths is left": (params, "exchange", first_alone),
    "layers of snapshots are changed": (exchange_module, "shallow", lambda module: module),
    "old tensors are written to": (params, "like", lambda old, new: old.data.copy_(new)),
    "a parameter becomes a buffer": (params, "like", lambda old, new: like(old, new).detach()),
    "another type of numbers": (params, "like", lambda old, new: like(old, new).data.double()),
    "budgets are not measured": (check, "drift_from", lambda *_: 0.0),
    "both halves are believed": (check, "judged", lambda trial: ()),
}
TEXTS = {
    "budgets are not measured": ROUND.replace("2% on calib", "0.001% on calib"),
    "both halves are believed": WRONG,
}


@pytest.mark.parametrize("name", PLANTS)
def test_a_mistake_of_the_engine_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, attribute, wrong = PLANTS[name]
    monkeypatch.setattr(owner, attribute, wrong)
    chosen = subject_of(TEXTS.get(name, ROUND))
    tried = (o for seed in range(80) for o in param_outcomes(chosen, Rolled(seed)))
    assert any(outcome.kind in BAD for outcome in tried)


def test_a_memory_that_the_model_writes_to_must_be_left(monkeypatch: pytest.MonkeyPatch) -> None:
    tapes = proof().explored.tapes[:6]  # before the mistake is planted: the proof is kept
    monkeypatch.setattr(params, "writer_of", lambda state, param: None)
    near = param_near(subject_of(ROUND), tapes, 0)
    wrong = [result.near.name for result in near if result.wrong]
    assert wrong == ["the model writes into it"]
