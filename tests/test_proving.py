"""Generated models: correct rules raise no alarm, planted bugs of rules and of the engine are
found.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from lissom.grammar.text.parse import parse
from lissom.grammar.tree import tree as t
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.apply import engine
from lissom.rewrite.apply.plan import Constructor
from lissom.rewrite.capture.capture import capture
from lissom.rewrite.graph.index import GraphView
from lissom.rewrite.match import shapes, site
from lissom.rewrite.ops.vocabulary import Vocabulary
from lissom.rewrite.proving.choices.source import Replayed, Rolled, Unsuitable
from lissom.rewrite.proving.near_miss import examine_near, near_misses
from lissom.rewrite.proving.prove import Explored, Proof, explore, prove
from lissom.rewrite.proving.stages import again
from lissom.rewrite.proving.subject import Subject
from lissom.rewrite.proving.trial import BAD, is_random, model, trial
from lissom.rewrite.rules.rule import compile_rule

from .support import Fn, library, state_of

FILES = ("tidy", "fold", "absorb", "merge", "separable", "lowrank")
MODELS = 60
LIBRARY = 100
"""Generated models for each rule that lissom ships, on every run. The certificate that is checked
in holds at least 400 for each rule as it stands (test_pages.py), a release check tries 10,000.
"""


def half(w: Tensor) -> Tensor:
    return w.half().to(w.dtype)


def coarse(w: Tensor) -> Tensor:
    return w.bfloat16().to(w.dtype)


def reversed_(w: Tensor) -> Tensor:
    return w.flip(0)


def mirrored(w: Tensor) -> Tensor:
    return w.flip(-1)


PLANTED = {"half": half, "coarse": coarse, "reversed": reversed_, "mirrored": mirrored}


@cache
def library_rules() -> dict[str, t.Rule]:
    rules = [rule for name in FILES for rule in parse(library(name)).all(t.Rule)]
    return {rule.name.text: rule for rule in rules}


def subject_of(source: t.Rule) -> Subject:
    return Subject(source, Vocabulary.library(), {**FUNCTIONS, **PLANTED})


def subject(name: str, old: str = "", new: str = "") -> Subject:
    """A library rule, with a piece of its text exchanged."""
    source = library_rules()[name]
    text = source.span.text
    assert old in text
    return subject_of(parse(text.replace(old, new)).all(t.Rule)[0])


def found(explored: Explored) -> str:
    return "" if explored.failure is None else explored.failure.outcome.kind


# -- rules that are right --------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(library_rules()))
def test_the_library_holds(name: str) -> None:
    proof = prove(subject(name), LIBRARY)
    assert proof.failures == []
    assert proof.weak == []
    assert proof.verdict == "verified"
    assert proof.explored.models >= LIBRARY
    assert proof.explored.opaque.total() == 0


def test_every_near_miss_of_a_fold_is_reached() -> None:
    proof = prove(subject("fold_bn"), MODELS)
    assert {result.near.name: result.reached > 0 for result in proof.near} == {
        "another op than conv1d or conv2d or conv3d": True,
        "`h` has another reader": True,
        "`h` is returned": True,
        "what `h` reads changes in place": True,
        "the layer of `h` has a hook": True,
        "the layer of `h` is called twice": True,
        "a weight of `h` is tied": True,
        "another op than batch_norm": True,
        "what `y` reads changes in place": True,
        "the layer of `y` has a hook": True,
        "the layer of `y` is called twice": True,
        "a weight of `y` is tied": True,
    }
    assert proof.weak == []
    assert proof.verdict == "verified"


def test_a_rule_of_a_user_with_optional_ops_and_chains() -> None:
    text = """
    exact rule sinks {
      match {
        h = identity?(x)
        b = neg*(h)
        y = abs(b)
        x : f[...]
      }
      where { rank(x) < 4  else "{rank(x)} axes" }
      rewrite { y = abs(x) }
    }
    """
    proof = prove(subject_of(parse(text).all(t.Rule)[0]), MODELS)
    assert (proof.failures, proof.weak) == ([], [])


def test_where_the_last_op_may_be_absent_others_may_read_what_it_reads() -> None:
    """Then the match ends there, and has to be right all the same."""
    text = """
    exact rule ends {
      match {
        h = abs(x)
        y = relu?(h)
      }
      rewrite { y = abs(x) }
    }
    """
    proof = prove(subject_of(parse(text).all(t.Rule)[0]), MODELS)
    assert (proof.failures, proof.weak) == ([], [])
    found = {result.near.name: result for result in proof.near}
    assert found["`h` has another reader"].equal > 0


# -- rules that are wrong --------------------------------------------------------------------------

FOLDS = {
    "epsilon dropped": ("n.running_var + n.eps)\n    b", "n.running_var)\n    b"),
    "epsilon ten times too small": ("+ n.eps)\n    b", "+ n.eps / 10)\n    b"),
    "epsilon outside the root": ("n.running_var + n.eps)\n    b", "n.running_var) + n.eps\n    b"),
    "root forgotten": ("/ sqrt(", "/ ("),
    "gain forgotten": ("(n.weight or 1) /", "1 /"),
    "gain made positive": ("(n.weight or 1) /", "abs(n.weight or 1) /"),
    "channels in another order": ("scale(c.weight, g,", "scale(c.weight, reversed(g),"),
    "bias not scaled": ("(c.bias or 0) * g + b", "(c.bias or 0) + b"),
    "bias dropped": ("(c.bias or 0) * g + b", "b"),
    "mean not subtracted": (" - n.running_mean * g", ""),
    "mean of the other sign": ("- n.running_mean * g", "+ n.running_mean * g"),
    "mean not scaled": ("n.running_mean * g", "n.running_mean"),
    "shift forgotten": ("(n.bias or 0) -", "0 -"),
    "weights in float16": ("scale(c.weight, g, axis = 0)", "half(scale(c.weight, g, axis = 0))"),
    "bias in bfloat16": ("(c.bias or 0) * g + b", "coarse((c.bias or 0) * g + b)"),
    "kernel mirrored": ("scale(c.weight, g, axis = 0)", "mirrored(scale(c.weight, g, axis = 0))"),
    "weights not scaled": ("weight = scale(c.weight, g, axis = 0), ", ""),
}
LOW_RANK = {
    "bias dropped": ("bias = l.bias", "bias = none"),
    "bias twice": ("bias = l.bias", "bias = l.bias + l.bias"),
    "rank off by one": ("weight = u[:, :R] @ diag(sqrt(s[:R]))", "weight = u[:, :R] @ diag(s[:R])"),
    "float16": ("diag(sqrt(s[:R])) @ v[:R, :], bias", "half(diag(sqrt(s[:R])) @ v[:R, :]), bias"),
    "pairs mismatched": ("@ v[:R, :], bias", "@ reversed(v[:R, :]), bias"),
}


@pytest.mark.parametrize("bug", FOLDS)
def test_a_wrong_fold_is_found(bug: str) -> None:
    assert found(explore(subject("fold_bn", *FOLDS[bug]), MODELS)) in BAD


@pytest.mark.parametrize("bug", LOW_RANK)
def test_a_wrong_low_rank_rule_is_found(bug: str) -> None:
    assert found(explore(subject("low_rank_linear", *LOW_RANK[bug]), MODELS)) in BAD


@pytest.mark.parametrize("name", ["fold_bn", "fold_bn_transposed", "absorb_bn"])
def test_a_missing_guard_is_found(name: str) -> None:
    """Without it the rule folds statistics that are not used, or past a zero border."""
    guard = {"absorb_bn": "c.padding == 0"}.get(name, "mode(n) == eval")
    assert found(explore(subject(name, guard, "true"), 2 * MODELS)) in BAD


def test_what_is_found_is_small_and_comes_again() -> None:
    wrong = subject("fold_bn", *FOLDS["bias dropped"])
    failure = explore(wrong, MODELS).failure
    assert failure is not None
    outcomes = trial(wrong, again(wrong, failure.tape))
    assert failure.outcome.kind in {outcome.kind for outcome in outcomes}
    grown = again(wrong, failure.tape)
    assert len(grown.module.graph.nodes) <= 2 + 3 * len(grown.planted)
    assert sum(number > 0 for number in failure.tape) <= 12


# -- an engine that is wrong -----------------------------------------------------------------------


def near(name: str, wanted: str) -> Proof | Any:
    """The near-miss of a rule, on models in which the rule fires."""
    chosen = subject(name)
    rule = compile_rule(chosen.source, {})
    kind = next(item for item in near_misses(rule, chosen) if item.name == wanted)
    return examine_near(kind, chosen, TAPES(name))


@cache
def TAPES(name: str) -> list[tuple[int, ...]]:
    return explore(subject(name), 20).tapes


Patch = Callable[[pytest.MonkeyPatch], None]


def blind_to_hooks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(GraphView, "_is_altered", lambda self, node: False)


def blind_to_readers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(site, "_uses", lambda site: None)


def blind_to_mutation(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(site, "mutation_between", lambda nodes, inside: None)
    patch.setattr(engine, "unseen", lambda state, site, plan: None)


def blind_to_settings(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(shapes, "_compare", lambda scope, keyword, call: None)


@pytest.mark.parametrize(
    ("blind", "rule", "kind"),
    [
        (blind_to_settings, "fold_shift", "not alpha = 1"),
        (blind_to_settings, "merge_pointwise", "not groups = 1"),
        (blind_to_hooks, "fold_bn", "the layer of `h` has a hook"),
        (blind_to_hooks, "absorb_bn", "the layer of `h` has a hook"),
        (blind_to_readers, "fold_bn", "`h` has another reader"),
        (blind_to_readers, "merge_linear", "`h` is returned"),
        (blind_to_mutation, "merge_clamps", "what `h` reads changes in place"),
    ],
)
def test_an_engine_that_overlooks_something(
    blind: Patch, rule: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert near(rule, kind).wrong == []
    blind(monkeypatch)
    assert near(rule, kind).wrong


def too_early(patch: pytest.MonkeyPatch) -> None:
    first = lambda site, plan, inputs: next(iter(site.calls[0].node.graph.nodes))  # noqa: E731
    patch.setattr(engine, "insertion_point", first)


def one_result_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(GraphView, "replace", lambda self, old, new: None)


def settings_lost(patch: pytest.MonkeyPatch) -> None:
    plan = Constructor._plan
    lost = lambda self, op, inputs, params, attrs, at: plan(self, op, inputs, params, {}, at)  # noqa: E731
    patch.setattr(Constructor, "_plan", lost)


def unchecked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(engine, "check_exact", lambda *given: ())


@pytest.mark.parametrize("bug", [too_early, one_result_kept, settings_lost])
def test_an_engine_that_rewrites_wrongly(bug: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(explore(subject("fold_bn"), MODELS)) == ""
    bug(monkeypatch)
    assert found(explore(subject("fold_bn"), MODELS)) in BAD


@pytest.mark.parametrize("bug", ["bias dropped", "mean of the other sign", "root forgotten"])
def test_a_verifier_that_checks_nothing(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole models are compared besides, so that a rule's mistake is found all the same."""
    unchecked(monkeypatch)
    assert found(explore(subject("fold_bn", *FOLDS[bug]), MODELS)) == "WRONG"


def test_a_matcher_that_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "Search", _Blind)
    assert found(explore(subject("fold_bn"), MODELS)) == "MISSING"


class _Blind(engine.Search):
    def at(self, *given: Any) -> Any:
        self.miss = None
        return iter(())


# -- the generator ---------------------------------------------------------------------------------


def test_the_same_choices_give_the_same_model() -> None:
    chosen = subject("fold_bn")
    tape = explore(chosen, 5).tapes[0]
    first, second = (model(Replayed(tape), chosen) for _ in range(2))
    assert first.module.code == second.module.code
    assert all(a.equal(b) for a, b in zip(first.inputs, second.inputs, strict=True))


def test_rules_that_never_fire_are_not_verified() -> None:
    never = subject("fold_bn", "mode(n) == eval", "1 > 2")
    proof = prove(never, MODELS)
    assert proof.explored.fired == 0
    assert proof.verdict == "NOT TESTED"
    assert proof.weak[0].startswith("never fired: `1 > 2")


def test_unsuitable_draws_say_why() -> None:
    chosen = subject("fold_bn")
    reasons = set()
    for number in range(100):
        try:
            model(Rolled(number), chosen)
        except Unsuitable as error:
            reasons.add(str(error))
    assert any("Kernel size" in reason for reason in reasons)


def test_a_layer_that_still_drops_is_random() -> None:
    """Two runs of it differ by themselves: no rewrite is to blame."""
    torch.manual_seed(0)
    for dropout, training in ((0.5, True), (0.5, False), (0.0, True)):
        layer, x = torch.nn.MultiheadAttention(4, 2, dropout=dropout), torch.randn(3, 2, 4)
        whole = Fn(lambda m, x: m.a(x, x, x, need_weights=False)[0], a=layer)
        state = state_of(capture(whole, (x,)).module, (x,))
        for module in state.module.modules():
            module.train(training)
        assert is_random(state) == (dropout > 0 and training)
