"""The proof of rules over values: what it shows, and planted mistakes that it must find."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from torch import fx

from lissom.grammar.library.program import program_of
from lissom.grammar.tree import tree as t
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.apply import queries
from lissom.rewrite.graph.index import GraphView
from lissom.rewrite.ops.vocabulary import Vocabulary
from lissom.rewrite.proving.choices.source import Rolled
from lissom.rewrite.proving.prove import Proof
from lissom.rewrite.proving.report import report_of
from lissom.rewrite.proving.reproduce import replay
from lissom.rewrite.proving.subject import Subject
from lissom.rewrite.proving.trial import BAD
from lissom.rewrite.proving.values.near import WRITTEN, value_near
from lissom.rewrite.proving.values.trial import value_outcomes
from lissom.rewrite.proving.wide import prove_wide
from lissom.rewrite.targets import check, values

from .test_values import CLAMP

MODELS = 12
WIDER = CLAMP.replace("{ y = clamp(y, min = least - room", "{ y = clamp(y, min = least - 1.0")

pytestmark = pytest.mark.usefixtures("one_thread")


def subject_of(text: str) -> Subject:
    program = program_of(text)
    (rule,) = program.file.all(t.Rule)
    return Subject(rule, Vocabulary(program.declarations), FUNCTIONS)


@cache
def proof() -> Proof:
    return prove_wide(subject_of(CLAMP), MODELS)


def test_clamp_idle_is_verified() -> None:
    found = report_of(proof(), subject_of(CLAMP).source)
    assert (found.verdict, found.weak, found.failures) == ("verified", (), ())
    assert found.fired >= 20
    assert found.elsewhere["other sizes"] > found.fired / 2
    assert json.dumps(found.as_json())


def test_every_mutant_is_killed() -> None:
    fates = proof().mutants.fates
    assert len(fates) >= 15
    assert all(fate.killed for fate in fates)
    names = {fate.mutant.name for fate in fates}
    assert {"built: nothing", "perturbed: without `min`", "built: twice `max`"} <= names


def test_a_value_that_is_written_to_is_left() -> None:
    (near,) = [result for result in proof().near if result.near.name == WRITTEN]
    assert near.silent >= 5
    assert set(near.conditions) == {"R015"}
    assert not near.wrong


def test_halves_that_differ_where_no_data_is() -> None:
    found = prove_wide(subject_of(WIDER), 8).explored.failure
    assert found is not None
    assert (found.outcome.kind, found.outcome.condition) == ("UNSOUND", "V101")
    assert replay(WIDER, "clamp_idle", found.tape, FUNCTIONS)
    assert not replay(CLAMP, "clamp_idle", found.tape, FUNCTIONS)


def test_a_rule_that_never_applies_shows_nothing() -> None:
    found = prove_wide(subject_of(CLAMP.replace("let {", "where { rank(y) > 9 }\n let {")), 4)
    assert found.verdict == "NOT TESTED"
    assert found.weak[0].startswith("never fired")


# -- mistakes of the engine ------------------------------------------------------------------------


def first_alone(self: GraphView, old: fx.Node, new: fx.Node) -> None:
    """Only one of the readers is given the new value."""
    readers = [user for user in old.users if user is not new]
    readers[0].replace_input_with(old, new)


PLANTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "one of several readers is left": (GraphView, "replace", first_alone),
    "nobody reads the new value": (GraphView, "replace", lambda self, old, new: None),
    "both halves are believed": (check, "judged", lambda trial: ()),
    "budgets are not measured": (check, "drift_from", lambda *_: 0.0),
}
TEXTS = {
    "both halves are believed": WIDER,
    "budgets are not measured": CLAMP.replace("min = least - room", "min = most / 2"),
}


@pytest.mark.parametrize("name", PLANTS)
def test_a_mistake_of_the_engine_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, attribute, wrong = PLANTS[name]
    monkeypatch.setattr(owner, attribute, wrong)
    chosen = subject_of(TEXTS.get(name, CLAMP))
    tried = (o for seed in range(40) for o in value_outcomes(chosen, Rolled(seed)))
    assert any(outcome.kind in BAD for outcome in tried)


def test_bounds_of_one_batch_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A range that is too small is no idle clamp: the budget says so."""
    narrow = {**queries.QUESTIONS, "seen_range": lambda scope, value: (-0.01, 0.01)}
    monkeypatch.setattr("lissom.rewrite.proving.whole.QUESTIONS", narrow)
    tried = (o for seed in range(10) for o in value_outcomes(subject_of(CLAMP), Rolled(seed)))
    assert "B001" in {outcome.condition for outcome in tried}


def test_a_written_value_must_be_left(monkeypatch: pytest.MonkeyPatch) -> None:
    tapes = proof().explored.tapes[:6]  # before the mistake is planted: the proof is kept
    monkeypatch.setattr(values, "_stays", lambda state, rule, node: None)
    found = value_near(subject_of(CLAMP), tapes, 0)
    assert [result.near.name for result in found if result.wrong] == [WRITTEN]
