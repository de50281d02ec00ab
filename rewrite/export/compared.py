"""What another program gave beside what the model gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ..capture.equality import first_difference
from ..journal import Verdict, VerdictKind
from ..measure.compare import distance

LEAST = 5e-324
"""A distance that is not 0: the numbers are equal, the bits are not."""

export_verdict = partial(Verdict, kind=VerdictKind.ARTIFACT)


@dataclass(frozen=True, slots=True)
class Ran:
    """One example: what the file gave, or why it gave nothing, what the model gives, and the
    relative L2 distance of an output that is allowed.
    """

    label: str
    found: Sequence[Tensor] | str
    wanted: Sequence[Tensor]
    allowed: float

    @property
    def apart(self) -> float:
        """The largest distance of an output; infinite where there are others, or none; 0.0 for the
        same bits alone.
        """
        if isinstance(self.found, str) or len(self.found) != len(self.wanted):
            return math.inf
        if first_difference(list(self.wanted), list(self.found)) is None:
            return 0.0
        pairs = zip(self.wanted, self.found, strict=True)
        return max(LEAST, *(distance(want, value) for want, value in pairs))

    @property
    def why(self) -> str:
        """Why it does not hold."""
        if isinstance(self.found, str):
            return f"it does not run: {self.found[:160]}"
        if self.apart < math.inf:
            return f"relative L2 {self.apart:.2g}"
        if len(self.found) != len(self.wanted):
            return f"{len(self.found)} outputs instead of {len(self.wanted)}"
        pairs = zip(self.wanted, self.found, strict=True)
        return next(str(first_difference(*pair)) for pair in pairs if distance(*pair) == math.inf)

    @property
    def holds(self) -> bool:
        return self.apart <= self.allowed


@dataclass(frozen=True, slots=True)
class Whole:
    """A claim on all examples. `inside` says more about the first."""

    claim: str
    rows: Sequence[Ran]
    inside: str = ""

    @property
    def broken(self) -> dict[str, str]:
        """The examples of other sizes that do not hold, and why."""
        return {row.label: row.why for row in self.rows[1:] if not row.holds}

    @property
    def verdict(self) -> Verdict:
        """On all, with the numbers of the worst; or on the first that does not hold."""
        failed = next((row for row in self.rows if not row.holds), None)
        if failed is not None:
            apart = failed.apart if failed.apart < math.inf else None
            said = f"on {failed.label}: {failed.why}"
            return export_verdict(self.claim, "tested", False, 1, apart, failed.allowed, said)
        worst = max(self.rows, key=lambda row: row.apart / (row.allowed or LEAST))
        said = ["bit for bit" if worst.apart == 0 else "relative L2, not bit for bit"]
        said += [self.inside] if self.inside else []
        others = ", ".join(row.label for row in self.rows[1:])
        detail = "; ".join([*said, f"also at {others}"] if others else said)
        return export_verdict(self.claim, "tested", True, 1, worst.apart, worst.allowed, detail)
