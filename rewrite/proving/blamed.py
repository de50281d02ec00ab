"""Sites that were left because a kernel is wrong: counted for each kernel, no fault of the rule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..measure.twins import KernelFault


@dataclass(frozen=True, slots=True)
class Blamed:
    """One kernel, how many sites were left for it, and the call that was furthest off."""

    sites: int
    worst: KernelFault

    @property
    def text(self) -> str:
        count = f"{self.sites} {'site' if self.sites == 1 else 'sites'} left"
        return f"{count}: {self.worst.text}"


def counted(faults: Iterable[KernelFault]) -> tuple[Blamed, ...]:
    """One entry for each kernel, in the order in which they were met."""
    found: dict[str, Blamed] = {}
    for fault in faults:
        known = found.get(fault.kernel, Blamed(0, fault))
        worst = max(known.worst, fault, key=lambda one: one.off)
        found[fault.kernel] = Blamed(known.sites + 1, worst)
    return tuple(found.values())
