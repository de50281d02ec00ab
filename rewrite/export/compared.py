"""What another program gave beside what the model gives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..capture.equality import first_difference
from ..evidence.certificate import RELOAD_TOLERANCE
from ..journal import Verdict, VerdictKind
from ..measure.compare import distance

LEAST = 5e-324
"""A distance that is not 0: the numbers are equal, the bits are not."""

export_verdict = partial(Verdict, kind=VerdictKind.ARTIFACT)


@dataclass(frozen=True, slots=True)
class Ran:
    """The outputs on one example, or why there are none."""

    label: str
    outputs: Sequence[Tensor] | str

    def apart(self, wanted: Sequence[Tensor]) -> float:
        """The largest relative L2 distance of an output; infinite where there are others, or
        none. 0.0 for the same bits alone.
        """
        if isinstance(self.outputs, str) or len(self.outputs) != len(wanted):
            return float("inf")
        if first_difference(list(wanted), list(self.outputs)) is None:
            return 0.0
        pairs = zip(wanted, self.outputs, strict=True)
        return max(LEAST, *(distance(want, value) for want, value in pairs))


def tensors_in(values: Iterable[object]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]


def rounding(wanted: Iterable[Sequence[Tensor]]) -> float:
    """What other kernels may move an output by: a few units in the last place of the coarsest
    type, if that is more than usual.
    """
    numbers = (v for values in wanted for v in values if v.is_floating_point())
    return max([RELOAD_TOLERANCE, *(8 * torch.finfo(v.dtype).eps for v in numbers)])


def compared(
    claim: str,
    found: Sequence[Ran],
    wanted: Sequence[Sequence[Tensor]],
    allowed: Sequence[float],
    inside: str = "",
) -> Verdict:
    """The verdict on all examples; its numbers are those of the worst. An example of another size
    that does not run is named: the file holds for the others.
    """
    rows = [(r, r.apart(w), a) for r, w, a in zip(found, wanted, allowed, strict=True)]
    fixed = [r for r, _, _ in rows[1:] if isinstance(r.outputs, str)]
    ran = [row for row in rows if row[0] not in fixed]
    broken = found[0].outputs
    if isinstance(broken, str):
        return export_verdict(claim, "tested", False, 1, detail=f"it does not run: {broken[:200]}")
    _, worst, tolerance = max(ran, key=lambda row: row[1] / (row[2] or LEAST))
    said = ["bit for bit" if worst == 0 else "relative L2, not bit for bit"]
    said += [inside] if inside else []
    said += [f"also at {', '.join(r.label for r, _, _ in ran[1:])}"] if ran[1:] else []
    labels = ", ".join(r.label for r in fixed)
    said += [f"not at {labels}: {str(fixed[0].outputs)[:100]}"] if fixed else []
    holds = all(apart <= most for _, apart, most in ran)
    return export_verdict(claim, "tested", holds, 1, worst, tolerance, "; ".join(said))
