"""Small models grown around the left side of a rule.

The pattern's ops are built in the order of their values. What the pattern leaves open is drawn:
which of several ops, whether an optional one is there, how long a chain is, settings, extents,
weights, whether an operand is an input of the model, a constant or a number, and what stands before
and behind. Every op runs once on real numbers as it is built, so that only legal models come out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from ....grammar.diagnostics import LissomError
from ....grammar.tree import tree as t
from ...ops.vocabulary import Vocabulary
from ...rules.rule import CompiledRule
from ..choices.source import ChoiceSource, Unsuitable
from .grown import Grown
from .pattern_builder import PatternBuilder, Planted
from .planter import Planter

DTYPES = (torch.float32,) * 8 + (torch.float64, torch.bfloat16, torch.float16)
"""Precisions of whole models."""


def generate(
    source: ChoiceSource, rule: CompiledRule, vocabulary: Vocabulary, spoil: t.Node | None = None
) -> Grown:
    """A model. Raises `Unsuitable` where the draws do not fit together.

    `spoil` is a condition of the pattern that the model is to violate: a choice of ops, the line of
    an op (which then gets a further input), an attribute, an operand that is a number, a clause on
    a shape or a place; or a clause `unless`, whose pattern then stands beside the instance.
    """
    builder = PatternBuilder(source, vocabulary)
    try:
        planted = [Planter(builder, rule, spoil).plant() for _ in range(1 + source.chance(20))]
        return _finished(builder, rule, [(rule, instance) for instance in planted])
    except LissomError as error:  # a setting that the drawn op does not take, say
        raise Unsuitable(error.diagnostics[0].message) from error


def generate_together(
    source: ChoiceSource, rules: Sequence[CompiledRule], vocabulary: Vocabulary
) -> Grown:
    """A model with one instance of each rule's left side, each reading what the ones before it gave
    where that fits. Raises `Unsuitable`.
    """
    builder = PatternBuilder(source, vocabulary)
    builder.floating = True
    instances = []
    for rule in rules:
        planted = _fitting(builder, rule)
        instances.append((rule, planted))
        made = [v for name, v in planted.values.items() if name in rule.outputs]
        builder.offers = [v for v in made if isinstance(v, fx.Node)] + builder.offers
    return _finished(builder, rules[0], instances)


def _fitting(builder: PatternBuilder, rule: CompiledRule) -> Planted:
    """An instance of the rule, at the sixth draw if five led nowhere."""
    for last in (False, False, False, False, False, True):
        start = builder.mark()
        try:
            return Planter(builder, rule, None).plant()
        except (Unsuitable, LissomError):
            if last:
                raise
            builder.back(start)
    raise AssertionError


def _finished(
    builder: PatternBuilder, rule: CompiledRule, instances: Sequence[tuple[CompiledRule, Planted]]
) -> Grown:
    """The model returns what every instance gives."""
    kept = dict.fromkeys(node for own, planted in instances for node in builder.exits(own, planted))
    if not kept:
        raise Unsuitable("no output")
    builder.finish(tuple(kept))
    dtype = builder.source.choice(DTYPES)
    if dtype != torch.float32:
        builder.convert(dtype)
    inputs = tuple(builder.real[n] for n in builder.graph.nodes if n.op == "placeholder")
    planted = [instance for _, instance in instances]
    data = not builder.source.chance(10)
    return Grown(rule, builder.module, inputs, planted, data, builder.seed)
