"""Rewrites as text, in tests/rewrites: rules, a model, and what they make of it or why not.

    rule fold_bn

    model batch_norm(conv2d(x[2, 3, 6, 6], [4, 3, 3, 3]), [4], [4], [4], [4])
    after conv2d(x[2, 3, 6, 6], [4, 3, 3, 3], [4])

    model batch_norm(conv2d(x[2, 3, 6, 6], [4, 3, 3, 3]), [4], [4], [4], [4], training = true)
    left  running statistics still change (train mode)

A model is written as model_text.py says. `rule` names rules of the library, or files of it for all
of their rules; a rule may also stand there itself. They are for the models below them and run until
none matches (`once`: at every place once); `by` says which did something, where there are several.
Alternatives, `{2.5 | [4]}`, make several models: where they come to different things, `for` says
which ones, in their order. Further lines of a section are indented. `--update-golden` writes what
stands below a model. Both models are run and must give the same, to the bit where the rule says so.
"""

from __future__ import annotations

import copy
import itertools
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from lissom.grammar.library.program import observers_of
from lissom.grammar.text.fragment import parse_expression
from lissom.grammar.tree import tree as t
from lissom.grammar.tree.fold import literal
from lissom.rewrite.graph.index import GraphView
from lissom.rewrite.journal import Applied, Refused
from lissom.rewrite.pipeline.strategy import Runner
from lissom.rewrite.rules.rule import CompiledRule

from .model_text import built, shown
from .support import LIBRARY, apart, leaves, library, rules_of, state_of, the_rule

FOLDER = Path(__file__).parent / "rewrites"
FILES = sorted(FOLDER.glob("*.lissom"))
SECTION = re.compile(
    r"^(rule|once|exact|approx|model|after|left)\b(.*(?:\n(?:[ \t}].*))*)\n?", re.MULTILINE
)
ALTERNATIVES = re.compile(r"\{([^{}]*)\}")


@dataclass
class Pair:
    """A model with the rules that run on it; where in the file the result is written."""

    rules: list[CompiledRule]
    once: bool
    model: str
    start: int
    stop: int


@cache
def pairs(path: Path) -> list[Pair]:
    """The pairs of a file, in its order."""
    found: list[Pair] = []
    rules, once = list[CompiledRule](), False
    own: dict[str, list[CompiledRule]] = {}
    for section in SECTION.finditer(path.read_text("utf-8")):
        word, said = section[1], section[2].strip()
        if word in ("exact", "approx"):
            rules, once = rules_of(section[0]), False
            own = {rule.name: rules for rule in rules}
        elif word in ("rule", "once"):
            rules, once = own.get(said) or named(said), word == "once"
        elif word == "model":
            found.append(Pair(rules, once, said, section.end(), section.end()))
        else:
            found[-1].stop = section.end()
    return found


def named(said: str) -> list[CompiledRule]:
    """`fold_bn`, `low_rank_linear(rank = 2)`, or a file of the library."""
    listed = parse_expression(f"[{said}]")
    assert isinstance(listed, t.List)
    return [rule for item in listed.items for rule in _named(item)]


def _named(item: t.Expr) -> list[CompiledRule]:
    if isinstance(item, t.Call):
        args = {keyword.name.text: literal(keyword.value) for keyword in item.keywords}
        return [_of_library(item.function.span.text, **args)]
    name = item.span.text
    return rules_of(library(name)) if (LIBRARY / f"{name}.lissom").exists() else [_of_library(name)]


def _of_library(name: str, **args: Any) -> CompiledRule:
    holders = (file.stem for file in sorted(LIBRARY.glob("*.lissom")))
    file = next(stem for stem in holders if f"rule {name}" in library(stem))
    return the_rule(library(file), name, **args)


def models(text: str) -> list[str]:
    """One for each choice among alternatives."""
    parts = ALTERNATIVES.split(text)
    choices = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
    choices = [[*map(str.strip, some)] if len(some) > 1 else some for some in choices]
    return ["".join(choice) for choice in itertools.product(*choices)]


# -- what comes out --------------------------------------------------------------------------------


@dataclass
class Tried:
    """What the pairs of a file come to: the file as it should be, the rules that were applied, and
    the reasons that they gave elsewhere.
    """

    text: str = ""
    fired: set[str] = field(default_factory=set)
    reasons: set[tuple[str, str]] = field(default_factory=set)


@cache
def tried(path: Path) -> Tried:
    text, last, found = path.read_text("utf-8"), 0, Tried()
    for pair in pairs(path):
        found.text += text[last : pair.start] + result(pair, found)
        last = pair.stop
    found.text += text[last:]
    return found


def result(pair: Pair, tried: Tried) -> str:
    """The text below a model."""
    found: dict[str, list[int]] = {}
    for number, text in enumerate(models(pair.model), 1):
        found.setdefault(outcome(pair, text, tried), []).append(number)
    if len(found) == 1:
        return "".join(found)
    return "".join(f"{said[:-1]} for {ranges(numbers)}\n" for said, numbers in found.items())


def ranges(numbers: list[int]) -> str:
    """`1-3, 5`."""
    starts = [n for n in numbers if n - 1 not in numbers]
    stops = [n for n in numbers if n + 1 not in numbers]
    pairs = zip(starts, stops, strict=True)
    return ", ".join(f"{start}" if start == stop else f"{start}-{stop}" for start, stop in pairs)


def outcome(pair: Pair, text: str, tried: Tried) -> str:
    module, inputs = built(text)
    before = copy.deepcopy(module)
    state = state_of(module, inputs)
    runner = Runner(state, "test")
    run = runner.once if pair.once else runner.fixpoint
    applied, refused = run(pair.rules), state.journal.of(Refused)
    tried.reasons |= {(event.rule.partition("(")[0], event.reason) for event in refused}
    if not applied:
        return refusals(refused)
    names = [event.rule.partition("(")[0] for event in state.journal.of(Applied)]
    tried.fired.update(names)
    state.module.recompile()
    compare(before, state.module, inputs, [rule for rule in pair.rules if rule.name in names])
    written, by = shown(state.view), f" by {', '.join(names)}" if len(pair.rules) > 1 else ""
    assert shown(GraphView(built(written)[0])) == written, "what is written can be read"
    return section("after", written + by)


def section(word: str, text: str) -> str:
    return f"{word} " + text.replace("\n", "\n      ") + "\n"


def refusals(events: list[Refused]) -> str:
    """Why nothing was applied; what only looked like a site, where nothing else did."""
    news = [event for event in events if not event.structural] or events
    said = dict.fromkeys(f"{event.code} {event.reason}".strip() for event in news)
    return section("left ", "\n".join(said) or "nothing like it")


def compare(
    before: fx.GraphModule,
    after: fx.GraphModule,
    inputs: tuple[Tensor, ...],
    by: list[CompiledRule],
) -> None:
    """The graph is sound and has its recorded values; the outputs are those of the model before."""
    after.graph.lint()
    assert all("val" in node.meta for node in after.graph.nodes)
    if any(rule.kind == "approx" for rule in by):
        return
    docs = [str(doc.text) for rule in by for doc in rule.source.all(t.Doc)]
    bits = len(docs) == len(by) and all("Same bits." in doc for doc in docs)
    for given in (inputs, tuple(map(_others, inputs))):
        with torch.no_grad():
            old, new = (leaves(model(*copy.deepcopy(given))) for model in (before, after))
        for a, b in zip(old, new, strict=True):
            assert apart(a, b) <= (0.0 if bits else _allowed(a))
            assert not bits or torch.equal(a.signbit(), b.signbit())


def _allowed(value: Tensor) -> float:
    return 64 * torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0


def _others(value: Tensor) -> Tensor:
    """Other numbers, larger and smaller ones."""
    if not value.is_floating_point():
        return value
    scales = torch.linspace(-30, 30, value.numel(), dtype=value.dtype)
    return (value.flatten().flip(0) * scales).reshape(value.shape)


# -- tests -----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_rewrites(path: Path, update_golden: bool) -> None:
    """H01, H05: shared weights and writes in between are among the pairs of `graph.lissom`."""
    before, written = path.read_text("utf-8"), tried(path).text
    if update_golden:
        path.write_text(written, "utf-8")
    assert written == before


def exact_rules() -> list[CompiledRule]:
    """Without those that read what observers saw: a model alone has nothing for them."""
    files = sorted(LIBRARY.glob("*.lissom"))
    rules = [rule for file in files for rule in rules_of(library(file.stem))]
    return [r for r in rules if r.kind == "exact" and not observers_of(r.source)]


def test_every_exact_rule_of_the_library_fires() -> None:
    fired = set().union(*(tried(path).fired for path in FILES))
    assert {rule.name for rule in exact_rules()} - fired == set()


def test_every_guard_of_an_exact_rule_keeps_it_from_some_model() -> None:
    """The reason that it gives is one of the rule's in some pair."""
    reasons = set().union(*(tried(path).reasons for path in FILES))
    clauses = [(rule, clause) for rule in exact_rules() for clause in rule.source.all(t.Where)]
    guards = [(rule.name, said(guard)) for rule, clause in clauses for guard in clause.guards]
    met = {(rule, text) for rule, text in guards if any(gives(text, rule, *r) for r in reasons)}
    assert [guard for guard in guards if guard not in met] == []


def said(guard: t.Guard) -> str:
    return guard.reason or f"`{guard.span.text}` does not hold"


def gives(text: str, rule: str, by: str, reason: str) -> bool:
    """Whether the reason of a rule is what a guard of it says, with values in the braces."""
    parts = re.split(r"\{[^{}]*\}", text)
    return rule == by and re.fullmatch(".+".join(map(re.escape, parts)), reason) is not None
