"""A rule on trial, with what its text may name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ...grammar.library.program import observers_of
from ...grammar.tree import tree as t
from ...grammar.tree.clauses import attached_by
from ..graph.runs import RunFailed
from ..measure.observing import calibrate
from ..ops.vocabulary import Vocabulary
from ..pipeline.strategy import Runner
from ..rules.rule import compile_rule
from ..rules.state import State

Functions = Mapping[str, Callable[..., Any]]


@dataclass(frozen=True, slots=True)
class Subject:
    """A rule on trial, with what its text may name. own: the rules beside it, of which those that
    observe come first where it reads what observers saw.
    """

    source: t.Rule
    vocabulary: Vocabulary
    functions: Functions
    own: tuple[t.Rule, ...] = ()

    def observe(self, state: State) -> State:
        """The state with what the rule reads of observers, if it reads any, and there is data."""
        rules = observers_of(self.source, self.own)
        state.attached = frozenset(name for rule in rules for name in attached_by(rule))
        if rules and not state.samples.generated:
            runner = Runner(state, "observe")
            runner.once([compile_rule(rule, {}, functions=self.functions) for rule in rules])
            with suppress(RunFailed):  # a near-miss may be no model: then nothing is known
                calibrate(state.module, map(state.samples.args, state.samples.named["calib"]))
        return state
