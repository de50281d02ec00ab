"""The proof of rules over dimensions: what it shows, and planted mistakes that it must find."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from lissom.grammar.library.program import program_of
from lissom.grammar.tree import tree as t
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.channels import analyse, cut, fit_sizes, movement
from lissom.rewrite.channels import masked as masked_module
from lissom.rewrite.channels.cut_builder import Work
from lissom.rewrite.channels.selection import Selection
from lissom.rewrite.channels.units import Units
from lissom.rewrite.ops.vocabulary import Vocabulary
from lissom.rewrite.proving import one_guard, prove, worker
from lissom.rewrite.proving.choices.source import Rolled
from lissom.rewrite.proving.dims import mutants, trial
from lissom.rewrite.proving.dims.mutants import dim_score, dim_specimens
from lissom.rewrite.proving.dims.near import READERS, dim_near
from lissom.rewrite.proving.dims.trial import dim_outcomes
from lissom.rewrite.proving.prove import Explored, Proof, explore, guards_of
from lissom.rewrite.proving.report import RuleReport, report_of
from lissom.rewrite.proving.reproduce import replay
from lissom.rewrite.proving.subject import Subject
from lissom.rewrite.proving.trial import BAD, FIRED
from lissom.rewrite.proving.wide import prove_wide
from lissom.rewrite.rules.rule import compile_rule
from lissom.rewrite.targets import cuts
from lissom.rewrite.torch_internals import tree_leaves

from .support import library

PRUNE = library("prune")
MODELS = 60

pytestmark = pytest.mark.usefixtures("one_thread")


def subject_of(text: str) -> Subject:
    program = program_of(text)
    (rule,) = program.file.all(t.Rule)
    return Subject(rule, Vocabulary(program.declarations), FUNCTIONS)


def explored(text: str, models: int = MODELS) -> Explored:
    return explore(subject_of(text), models, 0, dim_outcomes, any)


def changed(*pairs: tuple[str, str]) -> str:
    """`prune_l1` with other text in some places, each of which must be there."""
    text = PRUNE
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return text


@cache
def proof() -> Proof:
    return prove_wide(subject_of(PRUNE), MODELS)


def report(text: str, found: Proof) -> RuleReport:
    return report_of(found, subject_of(text).source)


# -- a rule that is right --------------------------------------------------------------------------


def test_prune_l1_is_verified() -> None:
    found = report(PRUNE, proof())
    assert (found.verdict, found.weak, found.failures) == ("verified", (), ())
    assert found.fired >= 50
    assert len(found.silent) == 4
    assert all(count > 0 for count in found.silent.values())
    assert 0 < found.ratio < 1
    assert (found.algebra.sites, found.bits, found.confidence) == (0, 0, None)
    assert json.dumps(found.as_json())


def test_each_guard_is_seen_to_decide_alone() -> None:
    near = {result.near.name: result for result in proof().near}
    guards = [name for name in near if " else " in name]
    assert sorted(guards) == sorted(proof().guards)
    assert all(near[name].silent >= 5 for name in guards)


def test_one_more_reader_keeps_a_rule_silent_for_its_own_reason() -> None:
    near = {result.near.name: result for result in proof().near}
    for name, _, fires in READERS:
        found = near[name]
        assert (found.equal if fires else found.silent) >= 5
        assert not (found.silent if fires else found.equal)
    assert all("boundary" in reason for reason in near[READERS[0][0]].conditions)
    assert all("sliceable" in reason for reason in near[READERS[1][0]].conditions)


def test_every_mutant_is_killed_and_is_another_rule() -> None:
    fates = proof().mutants.fates
    assert len(fates) >= 10
    assert all(fate.killed for fate in fates)
    assert {"engine"} <= {fate.by for fate in fates}
    sources = {repr(fate.mutant.source) for fate in fates}
    assert len(sources) == len(fates)
    assert repr(subject_of(PRUNE).source) not in sources


def test_the_same_seed_gives_the_same_evidence() -> None:
    chosen = subject_of(PRUNE)
    first, second = ([dim_outcomes(chosen, Rolled(seed)) for seed in range(8)] for _ in range(2))
    assert first == second
    assert any(outcome.kind == "fired" for outcomes in first for outcome in outcomes)


def test_mutants_do_not_depend_on_the_names_in_a_rule() -> None:
    text = changed(("keep", "left"), ("match dim D", "match dim K"), ("(D)", "(K)"))
    text = text.replace("D >=", "K >=").replace("{D}", "{K}").replace("* D", "* K")
    text = text.replace("< D", "< K").replace("D :=", "K :=")
    names = [mutant.name for mutant in mutants.dim_mutants(subject_of(text).source)]
    assert names == [fate.mutant.name for fate in proof().mutants.fates]


def test_words_mean_what_they_say() -> None:
    """Masking is compared with parameters that are 0, in models in which both can be."""
    specimens = dim_specimens(subject_of(PRUNE), proof().explored.tapes[:20])
    literal = [s.own for s in specimens if s.own is not None and s.own < 1e-9]
    assert len(literal) > len(specimens) / 2


# -- rules that are wrong, or show nothing ---------------------------------------------------------

UNMASKED = changed(("perturb { zero(readers(D), outside = keep) }", ""))


def test_a_cut_of_what_still_counts_is_unsound() -> None:
    found = prove_wide(subject_of(UNMASKED), MODELS)
    assert found.verdict == "FAILED"
    (failure,) = found.failures
    assert (failure.kind, failure.condition) == ("UNSOUND", "V101")
    assert len(report(UNMASKED, found).tape) < 60


def test_a_failure_is_shown_again_from_its_tape() -> None:
    tape = explored(UNMASKED).failure
    assert tape is not None
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        assert replay(UNMASKED, "prune_l1", tape.tape, FUNCTIONS)
        assert not replay(PRUNE, "prune_l1", tape.tape, FUNCTIONS)
    assert "UNSOUND V101" in told.getvalue()
    assert "def forward" in told.getvalue()


def test_what_comes_before_its_guard_is_found() -> None:
    """Five features, rounded up to a multiple of 2, are six."""
    text = """
    approx rule early(multiple: int = 1) {
      match dim D in channels
      where { sliceable(D) and not boundary(D); D >= 2 * multiple }
      let { N = round_up(0.9 * D, multiple); keep = top(l1_over(writers(D)), N) }
      where { N < D }
      perturb { zero(readers(D), outside = keep) }
      rewrite { D := keep }
    }
    """
    found = explored(text).failure
    assert found is not None
    assert (found.outcome.kind, found.outcome.condition) == ("UNSOUND", "K001")


def test_a_guard_that_always_holds_shows_nothing() -> None:
    text = changed(("D >= 2 * multiple  else", "D >= 1; D >= 2 * multiple  else"))
    chosen = subject_of(text)
    found = Proof("", "", "", explored(text, 20), guards_of(compile_rule(chosen.source, {})))
    assert found.verdict == "weakly verified"
    assert "no model violates `D >= 1`" in found.weak


def test_a_rule_that_never_applies_shows_nothing() -> None:
    never = prove_wide(subject_of(changed(("D >= 2 * multiple", "D > 1000 * multiple"))), 12)
    assert never.verdict == "NOT TESTED"
    assert never.weak[0].startswith("never fired: `D > 1000 * multiple")


def test_a_rule_that_keeps_nothing_is_refused_everywhere() -> None:
    text = changed(("N < D  else", "N > 0  else"), ("(1 - ratio) * D", "0 * D + 0"))
    text = text.replace("N > 0  else", "N < 1  else")
    found = prove_wide(subject_of(text), 12)
    assert found.verdict == "NOT TESTED"
    assert found.explored.refused["R011"] > 0
    assert found.explored.fired == 0


def test_an_exact_rule_must_change_nothing() -> None:
    text = """
    exact rule drop_dead {
      match dim D in channels
      where { sliceable(D) and not boundary(D) }
      let { keep = top(l1_over(params(D)), D - 1) }
      rewrite { D := keep }
    }
    """
    found = prove_wide(subject_of(text), MODELS)
    assert [(f.kind, f.condition) for f in found.failures] == [("UNSOUND", "V101")]


def test_a_budget_is_measured_again() -> None:
    text = changed(("params(after) < params(before)", "error(outputs) <= 200%"))
    text = text.replace("ratio: frac = 30%", "ratio: frac = 10%")
    chosen = subject_of(text)
    tried = [o for seed in range(25) for o in dim_outcomes(chosen, Rolled(seed))]
    kept = [o.kept for o in tried if o.kind == "fired"]
    assert not any(o.kind in BAD for o in tried)
    assert kept
    assert all(found is not None and 0 < found.given <= 1 for found in kept)


def test_masking_other_parameters_would_be_noticed() -> None:
    """`zero(writers(D))` is no cut: what they write is not 0 behind every op."""
    by = {fate.mutant.name: fate for fate in proof().mutants.fates}
    assert by["writers are masked"].killed
    assert by["riders are masked"].killed
    assert by["nothing is masked"].reason.startswith("V101")


def test_a_mutant_that_is_the_rule_survives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mutants.FUNCTIONS, "_shifted", lambda keep, size: keep)
    chosen = subject_of(PRUNE)
    found = dim_score(chosen, dim_specimens(chosen, proof().explored.tapes[:4]))
    left = {fate.mutant.name for fate in found.survivors}
    assert left >= {"masked: positions shifted by one", "kept: positions shifted by one"}


# -- other inputs than the example's ---------------------------------------------------------------

UNLIT = """
extern fn lit(seen: any) -> any pure
exact rule drop_unlit {
  match dim D in channels
  where { sliceable(D); not boundary(D) }
  let { keep = lit(activations(D)) }
  rewrite { D := keep }
}
"""


def lit(seen: tuple[torch.Tensor, ...]) -> list[int]:
    """The features that are not 0 throughout the example; the first where there are none."""
    sizes = [rows.abs().sum(1) for rows in seen]
    return torch.nonzero(sum(sizes)).flatten().tolist() if sizes else [0]


def test_a_cut_that_is_right_on_the_example_alone_is_wrong() -> None:
    program = program_of(UNLIT)
    (rule,) = program.file.all(t.Rule)
    functions = {**FUNCTIONS, "lit": lit}
    chosen = Subject(rule, Vocabulary(program.declarations), functions)
    tried = (o for seed in range(MODELS) for o in dim_outcomes(chosen, Rolled(f"0/{seed}")))
    wrong = (outcome.condition for outcome in tried if outcome.kind == "WRONG")
    assert any(condition.startswith("right at [") for condition in wrong)


def test_cut_models_are_compared_at_other_sizes() -> None:
    tried = proof().explored
    assert tried.elsewhere["other sizes"] > tried.fired / 2
    assert report(PRUNE, proof()).elsewhere == dict(sorted(tried.elsewhere.items()))


# -- mistakes of the engine ------------------------------------------------------------------------


def forgetful(found: Any, removed: Any) -> Any:
    """A mask that forgets an op."""
    contracted = dict(found.contracted)
    found.contracted = dict(list(contracted.items())[1:])
    try:
        return masked_module.masked(found, removed)
    finally:
        found.contracted = contracted


def nothing(*_: Any) -> None:
    pass


def shifted(kept: Selection, tracks: Any) -> Any:
    found = AXES(kept, tracks)
    return {axis: left.flip(0) if axis == 2 else left for axis, left in found.items()}


AXES = Selection.axes

PLANTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "the mask forgets an op": (cuts, "masked", forgetful),
    "groups stay what they were": (cut, "_sized", lambda *_: {}),
    "splits keep their old sizes": (fit_sizes._Job, "fits", lambda *_: True),
    "positions of one axis change their order": (Selection, "axes", shifted),
    "elementwise ops couple nothing": (analyse, "together", lambda *_: ()),
    "cat and stack couple nothing": (movement, "together", lambda *_: ()),
    "nothing must stay": (Units, "block", nothing),
    "the recorded shapes are the old ones": (Work, "describe", nothing),
    "sizes of the example become numbers": (fit_sizes._Job, "_sizes", lambda job: job.wanted()[:1]),
}


@pytest.mark.parametrize("name", PLANTS)
def test_a_mistake_of_the_engine_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, attribute, wrong = PLANTS[name]
    monkeypatch.setattr(owner, attribute, wrong)
    monkeypatch.setattr(prove, "_smallest", lambda subject, failure, tried: failure)
    assert explored(PRUNE, 150).failure is not None


def test_a_blocked_dimension_that_is_cut_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Near-misses see what guards alone keep out."""
    monkeypatch.setattr(one_guard, "ATTEMPTS", 1)
    text = changed(("not boundary(D)", "D > 0"), ("sliceable(D)", "D > 0"))
    chosen, tapes = subject_of(text), proof().explored.tapes[:4]
    assert not any(result.wrong for result in dim_near(chosen, tapes, 0))
    monkeypatch.setattr(Units, "block", nothing)
    assert any(result.wrong for result in dim_near(chosen, tapes, 0))


def test_one_model_in_four_is_in_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule fires in both precisions, and recorded values say which it is."""
    seen: list[tuple[torch.dtype, bool]] = []
    made = trial.tried_dims

    def watched(state: Any, rule: Any, seed: int) -> Any:
        first = tree_leaves(state.module.graph.output_node().meta["val"])[0].dtype
        outcomes = made(state, rule, seed)
        seen.append((first, any(outcome.kind == FIRED for outcome in outcomes)))
        return outcomes

    monkeypatch.setattr(trial, "tried_dims", watched)
    monkeypatch.setattr(worker, "forks", lambda: False)  # what is seen must be seen here
    assert explored(PRUNE, 40).failure is None
    single = [fired for dtype, fired in seen if dtype is torch.float32]
    double = [fired for dtype, fired in seen if dtype is torch.float64]
    assert 0.1 * len(seen) < len(single) < 0.4 * len(seen)
    assert any(single)
    assert any(double)
