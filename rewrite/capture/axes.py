"""At which other sizes a model runs: every axis of every input is tried, larger and smaller.

Axes that the model needs at one size (channels, features) show by the eager model failing. Axes of
several inputs that must keep the same size (a sequence and its mask) are varied together.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import nn

from ...grammar.diagnostics import Diagnostic
from .attempts import CaptureTrial
from .inputs import SECOND, Case, enlarged, images
from .sizes import CallAxis, Group, call_axes, resized

_ATTEMPTS = 60
_SECONDS = 30.0
_TIMES = 2.0
"""Far more than a model takes whose result should not depend on how busy the machine is."""

_BLOCK = 32
"""Sizes from here on change by multiples of it, so that strides and patches still fit."""


def variations(
    model: nn.Module, case: Case, batch: int | None, seconds: float
) -> tuple[list[CaptureTrial], list[Diagnostic]]:
    """Trials at other sizes than the example's, which the eager model accepts, and M014 for axes of
    which that could not be found out.

    `batch` is the size of the batch axis, which is not varied here (None: there is none);
    `seconds` is what one run of the model takes. The axes that can vary are larger in one trial and
    smaller in another; height and width of an image are larger in a trial of their own.
    """
    probe = _Probe(model, case, seconds)
    axes = [a for a in call_axes(model, case) if a.size and not a.is_batch(batch)]
    found = list(probe.image(axes))
    free = [group for trial in found for group in trial.groups]
    known = {axis for group in free for axis in group.axes}
    more, fewer = probe.search([axis for axis in axes if axis not in known], axes)
    found += probe.together(more)
    found += probe.together([*(_fewer(g, g.axes[0].axis % 2) for g in free), *fewer])
    return found, list(_untried(probe, found))


def _untried(probe: _Probe, found: Sequence[CaptureTrial]) -> Iterator[Diagnostic]:
    tried = {axis for trial in found for group in trial.groups for axis in group.axes}
    left = [axis for axis in probe.left if axis not in tried]
    if left:
        spent = f"{len(probe.tried)} runs of the model took {probe.spent:.0f} s"
        yield Diagnostic(
            "M014",
            f"{', '.join(map(str, left))} could not be tried at other sizes",
            notes=(f"{spent}; {_ATTEMPTS} runs or {_SECONDS:.0f} s are the most",),
            helps=(f"give inputs of sizes that matter as {SECOND}",),
            severity="warning",
        )


def _more(size: int) -> int:
    """A larger size that has little in common with the given one."""
    return size + (_BLOCK * -(-size // (4 * _BLOCK)) if size >= _BLOCK else -(-size // 2))


def _fewer(group: Group, odd: int = 0) -> Group:
    """The same axes, smaller than in the example; an even factor stays one. Height and width of an
    image become different.
    """
    size = group.axes[0].size
    step = _BLOCK * -(-size // (4 * _BLOCK)) if size > _BLOCK else -(-size // 3)
    step = max(1, step // (1 + odd))
    return Group(group.axes, size // 2 if group.size == 2 * size else max(1, size - step))


def _companions(axis: CallAxis, every: Sequence[CallAxis]) -> list[tuple[CallAxis, ...]]:
    """`axis` alone, with the same axis of other inputs, and with every axis of its size."""
    alike = [other for other in every if other.size == axis.size]
    level = [other for other in alike if other.axis == axis.axis]
    return list(dict.fromkeys([(axis,), tuple(level), tuple(alike)]))


@dataclass
class _Probe:
    """Runs of the eager model at other sizes, limited in number and in time."""

    model: nn.Module
    case: Case
    seconds: float
    spent: float = 0.0
    tried: dict[tuple[Group, ...], CaptureTrial | None] = field(default_factory=dict)
    left: dict[CallAxis, None] = field(default_factory=dict)

    def image(self, axes: Sequence[CallAxis]) -> Iterator[CaptureTrial]:
        """A larger image, if the model takes one."""
        case = enlarged(self.case)
        if case is None:
            return
        # One tensor may be given twice; then its copies are two.
        image, larger = images(self.case)[0], images(case)[0]
        own = [axis for axis in axes if axis.tensor is image]
        sides = [tuple(axis for axis in own if axis.axis == side) for side in (2, 3)]
        groups = (Group(side, larger.shape[side[0].axis]) for side in sides if side)
        trial = self.run(tuple(groups), case)
        if trial is not None:
            yield trial

    def search(
        self, axes: Sequence[CallAxis], every: Sequence[CallAxis]
    ) -> tuple[list[Group], list[Group]]:
        """The groups that can be larger, and those that can be smaller."""
        more: list[Group] = []
        fewer: list[Group] = []
        done: set[CallAxis] = set()
        for axis in axes:
            if axis not in done:
                larger = self._free(axis, every, (_more(axis.size), 2 * axis.size))
                smaller = larger and _fewer(larger)
                smaller = smaller or self._free(axis, every, (axis.size // 2,))
                more += [larger] if larger else []
                fewer += [smaller] if smaller else []
                done.update(smaller.axes if smaller else ())
        return more, fewer

    def _free(
        self, axis: CallAxis, every: Sequence[CallAxis], sizes: Iterable[int]
    ) -> Group | None:
        """`axis`, with the axes that must go with it, at the first of the sizes that works."""
        groups = (Group(axes, size) for axes in _companions(axis, every) for size in sizes)
        return next((group for group in groups if self.run((group,)) is not None), None)

    def together(self, groups: Sequence[Group]) -> list[CaptureTrial]:
        """One trial of them all, or one of each that works."""
        real = tuple(group for group in groups if group.size != group.axes[0].size)
        whole = self.run(real) if real else None
        return self._parts(real) if whole is None else [whole]

    def _parts(self, groups: Sequence[Group]) -> list[CaptureTrial]:
        return [trial for group in groups if (trial := self.run((group,))) is not None]

    def run(self, groups: tuple[Group, ...], case: Case | None = None) -> CaptureTrial | None:
        """A trial at these sizes; None if the model fails there, or no time is left."""
        if groups not in self.tried:
            self.tried[groups] = self._attempt(groups, case)
        return self.tried[groups]

    def _attempt(self, groups: tuple[Group, ...], case: Case | None) -> CaptureTrial | None:
        if not all(group.size for group in groups):
            return None
        late = self.spent > max(_SECONDS, _TIMES * self.seconds)
        if late or len(self.tried) >= _ATTEMPTS:
            self.left |= dict.fromkeys(axis for group in groups for axis in group.axes)
            return None
        started = time.perf_counter()
        try:
            case = case or resized(self.case, groups)
            output = case.run(self.model)
        except Exception:
            return None
        finally:
            self.spent += time.perf_counter() - started
        parts = (lambda: self._parts(groups)) if len(groups) > 1 else None
        return CaptureTrial(case, output, False, groups, parts)
