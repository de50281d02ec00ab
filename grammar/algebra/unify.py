"""Equations between symbolic sizes: what patterns fix, what follows, what remains to be shown.

While the left side is read every symbol may be solved for. After `freeze` the symbols of the left
side are given, and an equation between them is a demand: it must hold for every instance.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from .substitution import substitute
from .symbolic import Poly, common, const, divide, floordiv, linear_in, symbol


@dataclass(frozen=True, slots=True)
class AnyAxes:
    """Any number of axes, the same ones wherever the name occurs."""

    name: str

    def __str__(self) -> str:
        return "..."


Axis = Poly | AnyAxes
Shape = tuple[Axis, ...]


@dataclass(slots=True)
class Demand:
    """`poly` must be zero in every instance; `axis` is the place in the shape where it arose."""

    poly: Poly
    topic: Hashable
    axis: int


class Mismatch(Exception):
    """Two shapes can never be equal: another number of axes."""


@dataclass(slots=True)
class Solver:
    """`lows` is the smallest value of each symbol, 1 unless it says otherwise."""

    values: dict[str, Poly] = field(default_factory=dict)
    rests: dict[str, Shape] = field(default_factory=dict)
    lows: dict[str, int] = field(default_factory=dict)
    named: set[str] = field(default_factory=set)
    given: frozenset[str] = frozenset()
    frozen: bool = False
    pending: list[Demand] = field(default_factory=list)
    assumed: list[Poly] = field(default_factory=list)
    made: dict[Hashable, AnyAxes] = field(default_factory=dict)

    # -- names

    def fresh(self, name: str, low: int = 1) -> Poly:
        """A new symbol that is shown as `name`, with a number if the name is taken."""
        shown, count = name, 1
        while shown in self.lows:
            count += 1
            shown = f"{name}_{count}"
        self.lows[shown] = low
        return symbol(shown)

    def rest(self, key: Hashable) -> AnyAxes:
        """The unknown axes that belong to `key`: equal keys give equal axes."""
        return self.made.setdefault(key, AnyAxes(f"rest{len(self.made)}"))

    def free(self, poly: Poly) -> list[str]:
        """The symbols that may still be solved for; those that the rule names come last."""
        names = [n for n in poly.symbols if n not in self.given]
        return sorted(names, key=lambda n: (n in self.named, n))

    def freeze(self) -> None:
        """From now on everything known so far is given."""
        self.settle()
        self.assumed += [self.resolve(d.poly) for d in self.pending]
        self.pending.clear()
        self.given, self.frozen = frozenset(self.lows), True

    # -- reading

    def resolve(self, poly: Poly) -> Poly:
        for _ in range(len(self.values) + 1):
            if poly.symbols.isdisjoint(self.values):
                return poly
            poly = substitute(poly, self.values)
        return poly

    def shape(self, shape: Shape) -> Shape:
        out: list[Axis] = []
        for axis in shape:
            if isinstance(axis, Poly):
                out.append(self.resolve(axis))
            elif axis.name in self.rests:
                out += self.shape(self.rests[axis.name])
            else:
                out.append(axis)
        return tuple(out)

    # -- equations

    def equate(self, left: Poly, right: Poly, topic: Hashable, axis: int = 0) -> None:
        """Demand left == right; solved at once if a free symbol stands alone in it."""
        demand = Demand(left - right, topic, axis)
        if not self._solve(demand):
            self.pending.append(demand)

    def settle(self) -> None:
        """Solve what has become solvable, then what needs an exact division."""
        while self._retry(self._solve) or self._retry(self._divide):
            continue

    def _retry(self, attempt: object) -> bool:
        assert callable(attempt)
        before = len(self.pending)
        self.pending = [demand for demand in self.pending if not attempt(demand)]
        return len(self.pending) < before

    def _solve(self, demand: Demand) -> bool:
        poly = self.resolve(demand.poly)
        if poly.is_zero or self._isolate(poly):
            return True
        simpler = self._simplified(poly)
        return simpler is not poly and self._isolate(simpler)

    def _isolate(self, poly: Poly) -> bool:
        for name in self.free(poly):
            parts = linear_in(poly, name)
            if parts is None:
                continue
            factor, rest = parts
            if factor.constant in (1, -1):
                self.values[name] = -rest if factor.constant == 1 else rest
                return True
        return False

    def _simplified(self, poly: Poly) -> Poly:
        """Without the positive factors that all terms share: G * Q - G * M asks for Q = M."""
        shared = common(poly, lambda name: self.lows.get(name, 1) >= 1)
        return poly if shared.constant == 1 else divide(poly, shared) or poly

    def _divide(self, demand: Demand) -> bool:
        """a * v = b with one free v: v is b // a, and the rest of the division must vanish."""
        poly = self._simplified(self.resolve(demand.poly))
        names = self.free(poly)
        parts = linear_in(poly, names[0]) if len(names) == 1 else None
        if parts is None:
            return False
        factor, rest = parts
        positive = all(coefficient > 0 for _, coefficient in factor.terms)
        self.values[names[0]] = floordiv(-rest, factor) if positive else floordiv(rest, -factor)
        left = self.resolve(poly)
        if self.frozen and not left.is_zero:
            self.pending.append(Demand(left, demand.topic, demand.axis))
        elif not left.is_zero:
            self.assumed.append(left)
        return True

    # -- shapes

    def unify(self, left: Shape, right: Shape, topic: Hashable) -> None:
        """Demand equal shapes. Raises Mismatch if their numbers of axes differ."""
        left, right = self.shape(left), self.shape(right)
        count = 0
        while left and right and isinstance(left[0], Poly) and isinstance(right[0], Poly):
            self.equate(left[0], right[0], topic, count)
            left, right, count = left[1:], right[1:], count + 1
        count = -1
        while left and right and isinstance(left[-1], Poly) and isinstance(right[-1], Poly):
            self.equate(left[-1], right[-1], topic, count)
            left, right, count = left[:-1], right[:-1], count - 1
        self._unify_rest(left, right)

    def _unify_rest(self, left: Shape, right: Shape) -> None:
        if left == right:
            return
        if len(left) == 1 and isinstance(left[0], AnyAxes) and left[0] not in right:
            self.rests[left[0].name] = right
        elif len(right) == 1 and isinstance(right[0], AnyAxes) and right[0] not in left:
            self.rests[right[0].name] = left
        elif left and right and isinstance(left[0], AnyAxes) and isinstance(right[-1], AnyAxes):
            self._overlap(left[0], left[1:], right[:-1], right[-1])
        elif left and right and isinstance(right[0], AnyAxes) and isinstance(left[-1], AnyAxes):
            self._overlap(right[0], right[1:], left[:-1], left[-1])
        else:
            raise Mismatch

    def _overlap(self, first: AnyAxes, ends: Shape, starts: Shape, last: AnyAxes) -> None:
        """(first..., ends) = (starts, last...): in general the named axes are different ones."""
        if first == last:
            raise Mismatch
        middle = self.rest(("between", first.name, last.name))
        self.rests[first.name] = (*starts, middle)
        self.rests[last.name] = (middle, *ends)

    def broadcast(self, shapes: Iterable[Shape], key: Hashable) -> Shape:
        """The shape of an elementwise result; unknown axes, named by `key`, if undecided. `key` is
        also the topic of what it asks of the sizes.
        """
        known = [shape for shape in dict.fromkeys(map(self.shape, shapes)) if shape]
        if len(known) <= 1:
            return known[0] if known else ()
        if any(isinstance(axis, AnyAxes) for shape in known for axis in shape):
            return (self.rest(("broadcast", key, *sorted(map(str, known)))),)
        width = max(map(len, known))
        padded = [(const(1),) * (width - len(shape)) + shape for shape in known]
        return tuple(self._broadcast_axis(axes, key) for axes in zip(*padded, strict=True))

    def _broadcast_axis(self, axes: tuple[Axis, ...], key: Hashable) -> Axis:
        sizes = [a for a in dict.fromkeys(axes) if isinstance(a, Poly) and a.constant != 1]
        for other in sizes[1:]:
            self.equate(sizes[0], other, key)
        return sizes[0] if sizes else const(1)


def shape_text(shape: Shape) -> str:
    return f"[{', '.join(map(str, shape))}]"


_NUMBERED = re.compile(r"\b([A-Za-z]+)(_\d+)\b")


def plain_name(text: str) -> str:
    """`N` for `N_2`, where no other `N` occurs: the number only keeps symbols of two ops apart."""
    found = set(_NUMBERED.findall(text))
    for base in {base for base, _ in found}:
        same = {mark for name, mark in found if name == base}
        if len(same) == 1 and not re.search(rf"\b{base}\b", text):
            text = re.sub(rf"\b{base}{min(same)}\b", base, text)
    return text
