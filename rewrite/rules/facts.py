"""What is known at a site besides its names: what was measured there, or how to measure it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from ...grammar.tree import tree as t
from ..journal import Costs, Opaque


@dataclass(frozen=True, slots=True)
class Ranking:
    """Where a dimension stands among all that its rule could cut. survey: gives the scores of all;
    None while they are collected. key: which of them is this dimension's.
    """

    survey: Callable[[], Any] | None = None
    key: Any = None


@dataclass(slots=True)
class Facts:
    """None stands for what cannot be asked where the expression is.

    before, after: costs; `after` may be a function that gives them. model: costs of one that stands
    in for the working model. supposed: what ops cost of which nothing is known. error, equal,
    drift, drop, latency: measure what the words mean, on how many `samples`. asked: the condition
    that is judged. repeats: gives the nodes of the sites that run the same layers and change
    together.
    """

    before: Costs | None = None
    after: Costs | Callable[[], Costs] | None = None
    model: Costs | None = None
    supposed: Callable[[Sequence[Opaque]], int] | None = None
    error: Callable[[Any], float] | None = None
    equal: Callable[[Any], float] | None = None
    drift: Callable[[Any], float] | None = None
    drop: Callable[[Any], float] | None = None
    latency: Callable[[Any], float] | None = None
    samples: list[int] = field(default_factory=lambda: [0])
    asked: t.Expr | None = None
    repeats: Callable[[], frozenset[fx.Node]] | None = None
    ranking: Ranking | None = None
