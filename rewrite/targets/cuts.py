"""Cuts beside what they stand for: one of them, or several that are verified together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import nn

from ...grammar.tree import tree as t
from ..channels.flow import Flow
from ..channels.masked import masked
from ..channels.update_after_cut import cut_and_carry
from ..graph.index import GraphView
from ..graph.runs import RunFailed
from ..journal import Applied, Verdict
from ..rules.state import State
from .check import Change, CutTrial
from .dims import DimSite
from .weighing import Weighed

EXACT_CUT = "the cut equals the model in which every sum leaves the removed features out"


def proof(state: State, sites: Sequence[DimSite], flow: Flow) -> Verdict | None:
    """What is known of several cuts at once: one model without all that they remove, of which
    `flow` tells, beside one in which all of it is masked. None where these are not equal, or one of
    them does not run.
    """
    trial = FeatureTrial(state, sites[0], [leaf for site in sites for leaf in site.removed])
    trial.flow = flow
    try:
        found = trial.equality()
    except RunFailed:
        return None
    return found if found.holds else None


def said_together(verdict: Verdict, count: int) -> Verdict:
    """The verdict of one cut among several that were compared together."""
    if count == 1:
        return verdict
    others = "1 other" if count == 2 else f"{count - 1} others"
    return replace(verdict, detail=f"{verdict.detail}; together with {others}")


@dataclass
class FeatureTrial(CutTrial[DimSite]):
    """A cut beside the masked model; beside the model itself where the rule perturbs nothing. The
    cut model is made when it is asked for, unless `flow` was set to it.
    """

    removed: Sequence[int]

    claim = EXACT_CUT
    remedy = "what is removed must not count: `perturb { zero(readers(D), outside = keep) }`"

    @cached_property
    def flow(self) -> Flow:
        """What is known of the cut model."""
        return cut_and_carry(self.state.features(), self.removed)

    @cached_property
    def view(self) -> GraphView:
        return self.flow.view

    def perturbed(self) -> nn.Module:
        if self.site.rule.source.all(t.Perturb):
            return masked(self.state.features(), self.removed)
        return self.unchanged()

    def left(self) -> dict[str, Any]:
        return self.site.left(self.flow)


@dataclass(slots=True)
class DimReady(Change[FeatureTrial]):
    """A cut that waits to be verified and committed; of cuts that were verified together, the model
    is the one after all of them. changed: see `reshaped`; None where that is still to be seen.
    weighed: what is known of what it saves, where it was not made yet.
    """

    changed: tuple[str, ...] | None = None
    weighed: Weighed | None = None

    @property
    def site(self) -> DimSite:
        return self.tried.site

    @property
    def flow(self) -> Flow:
        return self.tried.flow


def applied(stage: str, ready: DimReady, changed: tuple[str, ...], seconds: float) -> Applied:
    site = ready.site
    return Applied(
        stage,
        site.rule.label,
        site.name,
        site.rule.place,
        (),
        (),
        changed,
        ready.before,
        ready.after,
        ready.verdicts,
        {site.rule.dim: f"{site.dim.size} -> {len(site.keep)}"},
        seconds,
        tuple(dict.fromkeys(path for path, _ in site.dim.places)),
    )
