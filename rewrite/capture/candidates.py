"""What capturing goes through: a model that is tried, what it is tried on, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from ...grammar.diagnostics import Diagnostic
from .conditions import AskedSize, Condition, TrialRow
from .inputs import Case
from .recorded import CaptureGuard, Specialised
from .sizes import Group


@dataclass(frozen=True)
class CaptureTrial:
    """A case with the eager model's output. A trial that is not required only limits what is
    claimed; `groups` are the axes that it varies, and `parts` gives a trial for each of them.
    """

    case: Case
    expected: Any
    required: bool = True
    groups: tuple[Group, ...] = ()
    parts: Callable[[], list[CaptureTrial]] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class CaptureAttempt:
    """A captured module that holds on every required trial. whole: what it was made from."""

    module: fx.GraphModule
    how: str
    whole: Candidate
    specialised: tuple[Specialised, ...] = ()
    opaque: tuple[str, ...] = ()
    notes: tuple[Diagnostic, ...] = ()
    proved: tuple[Case, ...] = ()
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True)
class CaptureFailure:
    """Why a way of capturing does not hold, and the path of the module that is to blame ("" if none
    is known).
    """

    site: str
    diagnostic: Diagnostic


@dataclass(frozen=True)
class Candidate:
    """A captured module before its proof. graph, guards: all that was traced, for questions later;
    asked: where the model's code was told sizes.
    """

    model: nn.Module
    module: fx.GraphModule
    graph: fx.Graph
    guards: tuple[CaptureGuard, ...] = ()
    asked: tuple[AskedSize, ...] = ()


@dataclass
class TrialVerdict:
    """What the trials say of a candidate: the cases on which it is equal, and a row for each."""

    proved: list[Case] = field(default_factory=list)
    rows: list[TrialRow] = field(default_factory=list)
    failure: CaptureFailure | None = None
