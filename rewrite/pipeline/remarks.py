"""What a run has to say of a rule as a whole: it changed nothing, would go on, or costs more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from ..journal import Applied, Journal, Note
from ..measure.integer_layers import integer_layers, plain_layers, runs_of
from ..measure.processor import HALVES, computes_in, processor_name
from ..ops.spec import TensorSpec
from ..rules.rule import CompiledRule
from ..runtime import Int8LSTM


def tell_of_silence(journal: Journal) -> None:
    """A rule that was asked for and matched nothing is what people most need to hear about."""
    for label, tried in sorted(journal.tried.items()):
        if not journal.sites(label):
            why = journal.misses(label).most_common(2)
            counted = "; ".join(f"{count} x {reason}" for reason, count in why)
            reasons = counted or "no candidate op in the model"
            text = f"{label} changed none of {tried} candidates: {reasons}"
            journal.add(Note("", "W702", text))


def tell_of_costs(journal: Journal) -> None:
    """An exact rule promises the same outputs, not that they cost less."""
    applied = journal.of(Applied)
    for rule in dict.fromkeys(event.rule for event in applied):
        events = [event for event in applied if event.rule == rule]
        added = sum(event.after.macs - event.before.macs for event in events)
        if added > 0 and journal.kinds[rule] == "exact":
            sites = "1 site" if len(events) == 1 else f"{len(events)} sites"
            journal.add(Note("", "W705", f"{rule} adds {added:,} MACs at {sites}"))


def half_types(module: fx.GraphModule) -> set[str]:
    """The types of 16 bits among the values of a model."""
    specs = (node.meta.get("val") for node in module.graph.nodes)
    held = {str(spec.dtype).removeprefix("torch.") for spec in specs if type(spec) is TensorSpec}
    return held & HALVES.keys()


def tell_of_slow_types(journal: Journal, new: set[str]) -> None:
    """Rules gave the model types that this processor has no instructions for."""
    for half in sorted(new):
        if not computes_in(half):
            text = f"this CPU ({processor_name()}) has no instructions for {half}"
            journal.add(Note("", "W706", f"{text}: the model is right on it, and slow"))


def tell_of_kernels(journal: Journal, model: nn.Module, args: tuple[Any, ...]) -> None:
    """An integer layer that no kernel of this processor runs is right, and slow."""
    if not integer_layers(model):
        return
    plain = plain_layers(runs_of(model, args))
    if plain:
        first, why = next(iter(plain.items()))
        layers = "1 integer layer runs" if len(plain) == 1 else f"{len(plain)} integer layers run"
        journal.add(Note("", "W706", f"{layers} in plain torch, {first} for one: {why}"))
    _tell_of_steps(journal, model)


LEAST_UNITS = 512
"""Below, an LSTM in float32 is faster on one sequence: measured in docs/int8.md."""


def _tell_of_steps(journal: Journal, model: nn.Module) -> None:
    """An integer LSTM calls its kernel at each step from Python."""
    parts = {path: part for path, part in model.named_modules() if isinstance(part, Int8LSTM)}
    small = [path for path, part in parts.items() if part.hidden_size < LEAST_UNITS]
    if small:
        one = len(small) == 1
        layers = (
            "1 LSTM layer in integers steps"
            if one
            else f"{len(small)} LSTM layers in integers step"
        )
        why = f"below {LEAST_UNITS} units one in float32 is faster, one sequence at a time"
        journal.add(Note("", "W706", f"{layers} in Python, {small[0]} for one: {why}"))


def tell_of_more(journal: Journal, stage: str, rule: CompiledRule, more: Sequence[str]) -> None:
    """Sites that are there only since the rule was applied elsewhere: `once` does not come back to
    them.
    """
    if more:
        count = "1 more site" if len(more) == 1 else f"{len(more)} more sites"
        text = f"{rule.label} leaves {count}, {more[0]} for one, that it made itself"
        journal.add(Note(stage, "W704", f"{text}; `fixpoint` comes back"))
