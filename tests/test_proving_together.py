"""Rules in company: every ordered pair of exact library rules, and many at once in any order."""

from __future__ import annotations

import copy
import os
from collections import Counter
from functools import cache

import pytest
import torch

from lissom.grammar.text.parse import parse
from lissom.grammar.tree import tree as t
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.graph.index import GraphView
from lissom.rewrite.journal import Verdict, VerdictKind
from lissom.rewrite.ops.vocabulary import Vocabulary
from lissom.rewrite.proving import compose as proving_together
from lissom.rewrite.proving.choices.source import Rolled, Unsuitable
from lissom.rewrite.proving.compose import Company, company, isolated, try_together
from lissom.rewrite.proving.models.grown import Grown
from lissom.rewrite.proving.subject import Subject
from lissom.rewrite.proving.worker import Worker, survived

from .support import library

FILES = ("tidy", "fold", "absorb", "merge")
DRAWS = 8


@cache
def subjects() -> dict[str, Subject]:
    rules = [rule for name in FILES for rule in parse(library(name)).all(t.Rule)]
    vocabulary = Vocabulary.library()
    return {rule.name.text: Subject(rule, vocabulary, FUNCTIONS) for rule in rules}


def drawn(seed: str, names: tuple[str, ...]) -> tuple[Grown, list[Subject]] | None:
    """A model in which each of the rules has a site."""
    for number in range(DRAWS):
        try:
            return company(Rolled(f"{seed}/{number}"), [subjects()[name] for name in names])
        except Unsuitable:
            continue
    return None


def tried(seed: str, names: tuple[str, ...]) -> Company | None:
    found = drawn(seed, names)
    return None if found is None else try_together(*found)


@pytest.mark.parametrize("first", sorted(subjects()))
def test_every_rule_with_every_other(first: str) -> None:
    """S18: two rules fine alone, an invalid graph together."""
    fired: Counter[str] = Counter()
    with Worker(tried) as worker:
        for second in subjects():
            found = isolated(worker, f"{first}/{second}", (first, second))
            if found is not None:
                assert found.wrong == "", (first, second)
                fired.update({name for name, count in found.fired.items() if count})
    assert fired[first] >= 3
    assert len(fired) >= len(subjects()) // 3


@pytest.mark.parametrize("seed", range(40))
def test_many_rules_at_once(seed: int) -> None:
    source = Rolled(f"many {seed}")
    names = tuple(source.choice(sorted(subjects())) for _ in range(5))
    with Worker(tried) as worker:
        found = isolated(worker, f"many {seed}", tuple(dict.fromkeys(names)))
    assert found is None or found.wrong == ""


def test_a_pair_whose_model_ends_the_process_costs_that_pair() -> None:
    def deadly(seed: str, names: tuple[str, ...]) -> Company | None:
        if names[1] == "fold_bn":
            os._exit(1)
        return Company({names[0]: 1})

    with Worker(deadly) as worker:
        found = [isolated(worker, "", ("drop_dropout", name)) for name in ("fold_bn", "fold_scale")]
    assert found == [Company({}, died="exit with code 1"), Company({"drop_dropout": 1})]


def numbered(monkeypatch: pytest.MonkeyPatch, good: set[torch.dtype]) -> Company:
    """A fold in a float32 model, where the whole model is said to differ in all but some dtypes."""

    def check(before: torch.nn.Module, *_: object) -> Verdict:
        dtype = next(parameter.dtype for parameter in before.parameters())
        kind = VerdictKind.EQUALITY
        return Verdict("", "tested", dtype in good, 1, 2.0, 1.0, "planted", kind=kind)

    monkeypatch.setattr(proving_together, "model_equality", check)
    for number in range(100):
        found = drawn(f"numbered {number}", ("fold_bn", "merge_pointwise"))
        if found and {p.dtype for p in found[0].module.parameters()} == {torch.float32}:
            return try_together(*found)
    raise AssertionError


def test_a_loss_of_precision_is_told_from_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """What float64 confirms is refused for its precision; what it does not is wrong."""
    lost = numbered(monkeypatch, {torch.float64})
    assert (lost.wrong, lost.imprecise) == ("", "2.0 > 1.0; planted")
    assert sum(lost.fired.values()) >= 2
    assert numbered(monkeypatch, set()).wrong == "2.0 > 1.0; planted"
    assert numbered(monkeypatch, {torch.float32}) == Company(lost.fired)


def rewritten(grown: Grown, chosen: list[Subject]) -> torch.nn.Module:
    assert try_together(grown, chosen).wrong == ""
    return grown.module


NAMES = ("fold_bn", "merge_pointwise", "fold_scale", "drop_double_neg")


def agree(left: tuple[torch.Tensor, ...], right: tuple[torch.Tensor, ...], within: float) -> None:
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(
            b.to(a.dtype),
            a,
            rtol=within,
            atol=within * float(a.nan_to_num().abs().max() + 1),
            equal_nan=True,
        )


@pytest.mark.parametrize("seed", range(12))
def test_rewriting_commutes_with_what_keeps_the_model(seed: int) -> None:
    """The same draws give the same bits; a copy taken before stays as it was; double precision."""
    with Worker(commutes) as worker:
        survived([], "", worker, seed)


def commutes(seed: int) -> None:
    plain, twin = (drawn(f"commutes {seed}", NAMES) for _ in range(2))
    assert plain is not None
    assert twin is not None
    args = plain[0].inputs
    copied = copy.deepcopy(plain[0].module)
    expected = rewritten(*plain)(*args)
    short = 16 * max(torch.finfo(value.dtype).eps for value in expected)  # weights of 16 bits
    agree(expected, rewritten(*twin)(*args), 0.0)
    agree(expected, copied(*args), max(1e-4, short))
    doubled = [arg.double() for arg in args]
    agree(copied.double()(*doubled), plain[0].module.double()(*doubled), max(1e-5, short))


def test_a_pair_that_is_wrong_together_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that gives readers another value breaks what the next rule builds on."""
    replace = GraphView.replace

    def forgetful(self: GraphView, old: torch.fx.Node, new: torch.fx.Node) -> None:
        readers = list(old.users)
        replace(self, old, new)
        if len(readers) == 1 and readers[0].op != "output" and old.op == "call_module":
            readers[0].replace_input_with(new, next(iter(new.graph.nodes)))

    monkeypatch.setattr(GraphView, "replace", forgetful)
    wrong = [tried(f"fold_bn/{name}", ("fold_bn", name)) for name in subjects()]
    assert any(found is not None and found.wrong for found in wrong)
