"""What a graph takes for granted of the sizes in a call, and when it has to say so.

The answers that Python got during the trace are guards; each is watched while the graph runs at
other sizes. A guard that depends on a size which can vary becomes a condition of the captured
module. One that a trial contradicts without any effect does not. Where the numbers differ and no
guard says why, the axis itself is the condition.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from ...grammar.diagnostics import Diagnostic, Label
from ..graph.scalars import TEXT
from ..graph.writes import node_name
from ..ops.spec import TensorSpec
from .equality import first_difference
from .lowering import formula
from .recorded import CaptureGuard, Specialised
from .sizes import CallAxis, Group
from .watch import is_given, is_size, roots, text_of

_DEEP = 99
"""How deep a formula is written where it has to tell two numbers apart."""


@dataclass(frozen=True, slots=True)
class Condition:
    """What a call must fulfil, or the captured module raises.

    `input` is named as the model's forward names it; `axis` is None for a number, and for the
    structure of the call. `value` is that of the example. `relation` says what must hold, `why`
    what the model does with it, on the line `source`.
    """

    input: str
    axis: int | None
    value: Any
    relation: str
    why: str
    source: str = ""

    def __str__(self) -> str:
        return self.relation


@dataclass(frozen=True)
class TrialRow:
    """One trial of a candidate: the sizes of its inputs, what was watched, the difference from the
    model, and at which source line it shows.
    """

    label: str
    groups: tuple[Group, ...]
    sizes: dict[tuple[str, int], int]
    seen: dict[fx.Node, Any]
    difference: str | None = None
    at: str = ""

    def breaks(self, guard: CaptureGuard) -> bool:
        missing = guard.node not in self.seen
        return (
            not missing and first_difference(guard.about.value, self.seen[guard.node]) is not None
        )


@dataclass(frozen=True, slots=True)
class AskedSize:
    """A size that the model's code was told: of an input, or (`input` empty) of a value inside."""

    input: str
    axis: int
    size: int
    source: str

    def is_of(self, axis: CallAxis) -> bool:
        """Whether it is, or looks like, the size of an axis."""
        own = (self.input, self.axis) == (axis.input, axis.axis)
        return own or (not self.input and self.size == axis.size)


@dataclass(frozen=True)
class Held:
    """A condition with what it is computed from: a guard's node, or an axis alone. `numbers` are
    what it follows from besides axes of inputs.
    """

    condition: Condition
    axes: tuple[CallAxis, ...]
    node: fx.Node | None = None
    value: Any = None
    numbers: tuple[fx.Node, ...] = ()

    @property
    def text(self) -> str:
        """The message, for `%` with the sizes of the axes and the numbers."""
        about = self.condition
        names = [(str(axis), axis.size) for axis in self.axes]
        names += [(f"`{said_of(node)}`", node.meta["val"]) for node in self.numbers]
        sizes = [f"{name} is %s, and was {value} in the example" for name, value in names]
        sizes = sizes or [f"`{about.input}` holds other values than in the example"]
        line = f" ({about.source})" if about.source else ""
        said = f"; the graph holds where {about.relation}: {about.why}{line}"
        return " and ".join(sizes) + said.replace("%", "%%")


def reads_data(guard: CaptureGuard) -> bool:
    """True if a guard's value follows from what a tensor among the inputs holds. What tensors hold
    that are made of sizes and weights alone (`torch.arange(n)`) follows from shapes.
    """
    return any(isinstance(root.meta["val"], TensorSpec) for root in roots(guard.node))


def blamed(row: TrialRow, guards: Sequence[CaptureGuard]) -> list[CaptureGuard]:
    """The guards that a trial contradicts; those of texts only where there are no others."""
    broken = [guard for guard in guards if row.breaks(guard)]
    strong = [guard for guard in broken if not is_text(guard)]
    return strong or broken


def is_text(guard: CaptureGuard) -> bool:
    return guard.about.why.startswith(TEXT)


class Findings:
    """What the trials say of the guards of a candidate, whose inputs have these axes. The first row
    is the example. asked: where the model's code was told sizes.
    """

    def __init__(
        self,
        axes: Sequence[CallAxis],
        guards: Sequence[CaptureGuard],
        rows: Sequence[TrialRow],
        asked: Sequence[AskedSize],
    ) -> None:
        self.axes, self.rows, self.asked = axes, rows[1:], asked
        self.guards = guards
        self.sized = [guard for guard in guards if not reads_data(guard)]
        self.held: list[Held] = []
        self.notes: list[Diagnostic] = []
        for row in self.rows:
            self._judge(row)
        self._keep_uncontradicted()

    def _keep_uncontradicted(self) -> None:
        """Hold what no trial contradicts but a call could; told where its sizes do vary."""
        told: list[Held] = []
        for guard in self.sized:
            broken = any(row.breaks(guard) for row in self.rows)
            if not broken and not is_text(guard) and self._may_break(guard):
                new = self._hold([self._condition(guard)])
                told += new if self._moves(guard) else []
        self.notes += [_one_side(told)] if told else []

    @property
    def specialised(self) -> tuple[Specialised, ...]:
        """What Python was told, without what only went into texts and numbers that never moved."""
        strong = (guard for guard in self.guards if not is_text(guard))
        counts = (g for g in strong if node_name(g.node) != "len" or self._moves(g))
        return tuple(guard.about for guard in counts)

    def _judge(self, row: TrialRow) -> None:
        broken = blamed(row, self.guards)
        if row.difference is None:
            effective = any(
                other.breaks(guard) and other.difference for other in self.rows for guard in broken
            )
            strong = [guard for guard in broken if not is_text(guard)]
            self.notes += [] if effective else [_harmless(row, guard) for guard in strong[:1]]
            return
        found = [self._condition(guard) for guard in broken]
        new = self._hold(found if broken else list(self._by_axis(row)))
        if new or not broken:
            self.notes.append(_limited(row, new))

    def _hold(self, found: Sequence[Held]) -> list[Held]:
        """Keep conditions; returns those that are new."""
        known = {self._key(each) for each in self.held}
        new = {self._key(each): each for each in reversed(found) if self._key(each) not in known}
        self.held += reversed(new.values())
        return list(reversed(new.values()))

    def _key(self, held: Held) -> str:
        """The same for conditions that say the same of sizes which were equal in every trial."""
        if held.node is None:
            return held.condition.relation
        names = {root: str(self._first_alike(root)) for root in roots(held.node)}
        return f"{formula(held.node, names, _DEEP)} is {held.value!r}"

    def _first_alike(self, root: fx.Node) -> object:
        """The axis of an input that a size always was, or the first size in the graph that it
        always was.
        """
        axis = self.axis_of(root)
        if axis is not None or not is_size(root):
            return axis or root
        seen = [row.seen.get(root) for row in self.rows]
        every = dict.fromkeys(other for guard in self.sized for other in roots(guard.node))
        alike = (
            other
            for other in every
            if is_size(other)
            and other.meta["val"] == root.meta["val"]
            and [row.seen.get(other) for row in self.rows] == seen
        )
        return next(alike, root)

    def _by_axis(self, row: TrialRow) -> Iterator[Held]:
        """The axes that a trial varied, where nothing else explains that the numbers differ."""
        why = "the model makes something of it that a graph cannot follow"
        for axis in (axis for group in row.groups for axis in group.axes):
            told = (asked.source for asked in self.asked if asked.is_of(axis))
            source = next(told, row.at)
            text = f"{axis} is {axis.size}"
            yield Held(Condition(axis.input, axis.axis, axis.size, text, why, source), (axis,))

    def _moves(self, guard: CaptureGuard) -> bool:
        return any(map(self.moves, roots(guard.node)))

    def _may_break(self, guard: CaptureGuard) -> bool:
        """Whether a call could contradict it: a size behind it varies, or nothing is known of how,
        but it is that of an input.
        """
        found = roots(guard.node)
        given = bool(found) and all(is_given(self._owner(root)) for root in found)
        return given or self._moves(guard)

    @staticmethod
    def _owner(root: fx.Node) -> fx.Node:
        return root.all_input_nodes[0] if is_size(root) else root

    def moves(self, root: fx.Node) -> bool:
        """Whether a size, or a number among the inputs, was another one in some trial."""
        value = root.meta["val"]
        return not is_size(root) or any(row.seen.get(root, value) != value for row in self.rows)

    def axis_of(self, root: fx.Node) -> CallAxis | None:
        """The axis of an input that a size is, on all that was seen; None if none, or several
        are.
        """
        value = root.meta["val"]
        if not is_size(root):
            return None
        owner = root.all_input_nodes[0]
        if node_name(root) == "size" and is_given(owner):
            name, place = text_of(owner), root.args[1]
            return next((a for a in self.axes if (a.input, a.axis) == (name, place)), None)
        rows = [row for row in self.rows if root in row.seen]
        alike = [axis for axis in self.axes if axis.size == value and _follows(axis, root, rows)]
        return alike[0] if len(alike) == 1 and self.moves(root) else None

    def _condition(self, guard: CaptureGuard) -> Held:
        about, moving = guard.about, [root for root in roots(guard.node) if self.moves(root)]
        moving = moving or roots(guard.node)
        behind = {root: list(self._behind(root)) for root in moving}
        axes = tuple(dict.fromkeys(axis for found in behind.values() for axis in found))
        tensors = [root for root in moving if isinstance(root.meta["val"], TensorSpec)]
        numbers = tuple(root for root in moving if not behind[root] and root not in tensors)
        plain = len(axes) == 1 and self.axis_of(guard.node) is not None
        said = str(axes[0]) if plain else said_of(guard.node)
        name, place, value = (
            (axes[0].input, axes[0].axis, axes[0].size)
            if axes
            else (said_of(numbers[0]), None, numbers[0].meta["val"])
            if numbers
            else (said_of(tensors[0]), None, about.value)
        )
        why, relation = about.why.partition(":")[0], f"{said} is {reprlib.repr(about.value)}"
        condition = Condition(name, place, value, relation, why, about.source)
        return Held(condition, axes, guard.node, about.value, numbers)

    def _behind(self, root: fx.Node) -> Iterator[CallAxis]:
        """The axes of inputs that a size follows from."""
        if not is_size(root):
            return
        axis, value = self.axis_of(root), root.meta["val"]
        if axis is not None:
            yield axis
            return
        moved = [row.sizes for row in self.rows if row.seen.get(root, value) != value]
        varied = (
            a
            for a in self.axes
            for sizes in moved
            if sizes.get((a.input, a.axis), a.size) != a.size
        )
        yield from list(dict.fromkeys(varied))[:2]


def _follows(axis: CallAxis, root: fx.Node, rows: Sequence[TrialRow]) -> bool:
    return all(row.sizes.get((axis.input, axis.axis)) == row.seen[root] for row in rows)


def said_of(node: fx.Node) -> str:
    """A number of the graph for messages."""
    return text_of(node) if is_given(node) else formula(node)


def _harmless(row: TrialRow, guard: CaptureGuard) -> Diagnostic:
    about = guard.about
    return Diagnostic(
        "M006",
        f"{row.label} contradicts a recorded value, yet the outputs are equal",
        labels_of(about.site, about.source),
        (f"on the example {about.why}",),
        severity="warning",
    )


def _limited(row: TrialRow, held: Sequence[Held]) -> Diagnostic:
    """What a graph cannot do at the sizes of a trial, one line for each condition."""
    sources = dict.fromkeys(each.condition.source for each in held)
    limit = "size" if row.groups else "values"
    lines = (f"it holds where {each.condition.relation}: {each.condition.why}" for each in held)
    return Diagnostic(
        "M006",
        f"the graph holds for the example's {limit} only, not for {row.label}",
        tuple(label for source in sources for label in labels_of("", source)),
        (*lines, f"on {row.label} {row.difference}"),
        ("capture again for each size you need, or compute it with tensor operations",),
        "warning",
    )


def _one_side(held: Sequence[Held]) -> Diagnostic:
    """What holds at every size that was tried, and need not at others."""
    sources = dict.fromkeys(each.condition.source for each in held)
    return Diagnostic(
        "M006",
        "the graph holds on one side of what the model decides by sizes; a call beyond it raises",
        tuple(label for source in sources for label in labels_of("", source)),
        tuple(f"it holds where {e.condition.relation}: {e.condition.why}" for e in held),
        ("capture again with an example on the other side, if you need it",),
        "warning",
    )


def labels_of(site: str, source: str) -> tuple[Label, ...]:
    where = f"{site} ({source})" if site and source else site or source
    return (Label(None, where=where),) if where else ()
