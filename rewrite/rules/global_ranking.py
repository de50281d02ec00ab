"""What a rule sees of all dimensions at once: scores that are ranked across them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .scope import Scope


@dataclass(frozen=True)
class Survey:
    """The scores of every dimension that a rule could cut when its step began, by class."""

    scores: Mapping[object, Tensor]

    def survivors(self, key: object, score: Tensor, share: float) -> int:
        """How many features of one class are among the best `share` of all features."""
        everywhere = torch.cat([*self.scores.values()])
        count = round(share * len(everywhere))
        if not count:
            return 0
        least = everywhere.sort(descending=True).values[count - 1]
        return int((self.scores.get(key, score) >= least).sum())


class Scoring(Exception):
    """While a survey is made: the score of one dimension, as the rule computed it."""

    def __init__(self, score: Tensor) -> None:
        self.score = score


def survivors(scope: Scope, score: Tensor, share: float) -> int:
    """How many features of this dimension are among the best `share` of the features of all
    dimensions that the rule could cut when its step began.
    """
    ranking = scope.facts.ranking
    if ranking is None:
        raise LookupError("there is no dimension to rank here")
    if ranking.survey is None:
        raise Scoring(score)
    return ranking.survey().survivors(ranking.key, score, share)
