"""Whole models whose difference is a mistake of a kernel: which rewrites it touches, and what is
left of the comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import fx, nn

from ..graph.runs import RunFailed, interpret
from ..graph.snapshot import snapshot
from ..journal import Applied, Verdict
from ..measure.compare import equality_at, model_equality, outputs
from ..measure.samples import Example
from ..measure.twins import KernelFault, Twins, faults_text, kernel_faults
from ..rules.state import State


def model_faults(
    before: fx.GraphModule, after: fx.GraphModule, args: tuple[Any, ...]
) -> tuple[KernelFault, ...]:
    """The kernels without whose mistakes two models would compute the same."""
    nodes = len(after.graph.nodes)
    example = (Example("the example", args),)
    return kernel_faults(
        lambda: model_equality(before, after, args, nodes).holds,
        lambda: run_both(before, after, example),
    )


def run_both(before: nn.Module, after: nn.Module, examples: Sequence[Example]) -> None:
    """Runs two models on what they are compared on, as far as they take it."""
    for example in examples:
        with suppress(RunFailed):
            outputs(before, example.args, example.label)
            outputs(after, example.args, example.label)


def stage_equality(state: State, entry: fx.GraphModule, applied: Sequence[Applied]) -> Verdict:
    """Whether the model computes what the one before the stage does. A difference that is owed to a
    kernel bars the sites whose ops it computes, which then have to be left; one elsewhere says
    nothing about rules.
    """
    after, examples = state.module, state.samples.examples
    nodes = len(after.graph.nodes)
    found = equality_at(entry, after, examples, nodes)
    if found.holds:
        return found
    faults = kernel_faults(
        lambda: equality_at(entry, after, examples, nodes).holds,
        lambda: run_both(entry, after, examples),
    )
    if not faults:
        return found
    places = {place for m in (entry, after) for e in examples for place in _places(m, e.args)}
    touched = [event for event in applied if not places.isdisjoint((*event.removed, *event.added))]
    state.barred.update({(event.rule, event.site): faults for event in touched})
    excuse = f"with float64 in its place they agree: {faults_text(faults)}"
    return replace(found, holds=not touched, detail=excuse)


def undo(state: State, entry: fx.GraphModule, start: int) -> None:
    """The state before the stage, whose events began at `start`: to run it again without what is
    barred now.
    """
    done = sum(isinstance(event, Applied) for event in state.journal.events[start:])
    del state.journal.events[start:]
    state.reset(snapshot(entry))
    state.samples.forget()
    if state.fuel is not None:
        state.fuel += done


def _places(module: fx.GraphModule, args: tuple[Any, ...]) -> set[str]:
    """Where in the model a kernel is at fault."""
    runner = _Places(module)
    interpret(runner, args)
    return runner.found


class _Places(fx.Interpreter):
    """Runs a graph, every op beside its twin."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: set[str] = set()

    def run_node(self, n: fx.Node) -> Any:
        with Twins() as twins:
            value = super().run_node(n)
        if twins.faults:
            self.found.add(str(n.meta.get("site") or n.name))
        return value
