"""Movements on what is left: settings that fit are found by trying them on numbered positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import gcd
from typing import Any

import torch
from torch import Tensor, fx

from ...grammar.diagnostics import Label, fail
from ..ops.call import OpCall
from ..ops.opspec import OpSpec
from ..ops.spec import TensorSpec
from .cut_builder import SizeShare, Work, free_name
from .labels import compressed, on_axis
from .movement import Region, given, reordered
from .selection import Axes, selected
from .sizes import settings, shape_at, specs_of

Shape = tuple[int, ...]


Fit = Callable[[], None]
"""Writes a movement such that it fits."""


def rearranged(work: Work, call: OpCall) -> Fit:
    """How to make a movement fit. Raises R010 where nothing does."""
    region = work.flow.regions.get(call.node)
    if region is not None and region.axis in work.axes(region.source):
        return lambda: _select(work, call.node, region)
    if region is not None and not region.inside:
        return _as_it_is
    changed = any(node in work.numbers for node in call.node.all_input_nodes)
    source = call.inputs[0]
    if not changed and work.shape(source) == shape_at(source):
        return _as_it_is
    job = _Job(work, call, work.axes(source), work.shape(source))
    for op, attrs in job.candidates():
        if job.fits(op, attrs):
            plain = op is call.op and attrs == call.attrs and call.node not in work.respelled
            return _as_it_is if plain else partial(work.respell, call, op, attrs)
    axes = list(job.axes)
    alone = reordered(call, axes[0]) if len(axes) == 1 else None
    if alone is None:
        where = str(call.node.meta.get("site") or call.node.name)
        message = f"`{call.node.name}` ({call.op.name}) cannot be made to fit what is left"
        raise fail("R010", message, Label(None, where=where))
    return lambda: _select(work, call.node, alone)


def _as_it_is() -> None:
    """It fits."""


def _select(work: Work, node: fx.Node, region: Region) -> None:
    """What is left of the axis, in the order that the region gave it."""
    axis, kept_in, kept_out = region.axis, work.axes(region.source), work.axes(node)
    places = torch.full((shape_at(region.source)[axis],), -1, dtype=torch.int64)
    places[kept_in[axis]] = torch.arange(len(kept_in[axis]))
    order = places[selected(region.order, {0: kept_out[axis]} if axis in kept_out else {})]
    name = free_name(work.module, f"{node.name}_order")
    work.module.register_buffer(name, order)
    graph = work.module.graph
    with graph.inserting_before(work.new[node]):
        held = graph.get_attr(name)
        held.meta["val"] = TensorSpec(tuple(order.shape), order.dtype)
    work.fresh.append(held)
    args = work.new[region.source], axis, held
    work.stand_in(node, "call_function", torch.index_select, args, {})
    work.needs(node, [held])


# -- settings --------------------------------------------------------------------------------------


@dataclass
class _Job:
    """A movement whose input has fewer positions: `axes` are those that stay, `shape` is its new
    shape.
    """

    work: Work
    call: OpCall
    axes: Axes
    shape: Shape

    @property
    def old(self) -> Shape:
        return shape_at(self.call.inputs[0])

    @property
    def results(self) -> range:
        return range(len(specs_of(self.call.node)))

    def wanted(self) -> list[Shape]:
        return [self.work.shape(self.call.node, i) for i in self.results]

    # -- what to try -------------------------------------------------------------------------------

    def candidates(self) -> Iterator[tuple[OpSpec, dict[str, Any]]]:
        """As it is written; then with settings that are sizes of the result, positions or slices
        made to fit, whatever they are called; what gives several parts, by their sizes.
        """
        op, attrs = self.call.op, self.call.attrs
        yield op, attrs
        if "many" in op.traits:
            yield from self._parts()
            return
        old = settings(attrs)
        tried = {name: found for name in attrs if (found := list(self._tried(name, old)))}
        for chosen in product(*tried.values()):
            yield op, {**attrs, **dict(zip(tried, chosen, strict=True))}

    def _parts(self) -> Iterator[tuple[OpSpec, dict[str, Any]]]:
        split = self.work.flow.view.vocabulary.computed_by(torch.split)
        dim, shapes = self.call.attrs["dim"], self.wanted()
        if len(shapes[0]) == len(self.old):
            sizes = [shape[dim] for shape in shapes]
            yield split, {"split_size_or_sections": sizes, "dim": dim}

    def _tried(self, name: str, old: Mapping[str, Any]) -> Iterator[Any]:
        """What to try for one setting: nothing where it is neither of these."""
        value, written = old[name], self.call.attrs[name]
        entries = value if isinstance(value, (tuple, list)) else (value,)
        if any(isinstance(entry, slice) for entry in entries):
            yield self._index(value)
        elif isinstance(value, (tuple, list)) and all(type(entry) is int for entry in value):
            yield from self._sizes(written, value)
        elif type(value) is int and name != "dim" and "dim" in old:
            axis = old["dim"] % len(self.old)
            yield written
            yield self._before(axis, value)
            yield from self.wanted()[0][axis : axis + 1]

    def _sizes(self, written: Sequence[Any], value: Sequence[int]) -> Iterator[tuple[Any, ...]]:
        """The written sizes where they still hold and the new ones elsewhere; all of them new.
        They may be those of some axes in a row.
        """
        spec, wanted = specs_of(self.call.node)[0], self.wanted()[0]
        old = () if spec is None else spec.shape
        for at in range(len(old) - len(value) + 1):
            part = slice(at, at + len(value))
            if all(n in (-1, size) for n, size in zip(value, old[part], strict=True)):
                yield tuple(map(self._size, written, wanted[part]))
                yield wanted[part]

    def _size(self, written: Any, wanted: int) -> Any:
        """What is written, if it holds; a share of it, if it is computed (from the batch, say)."""
        now = self.work.now(written)
        if now in (wanted, -1):
            return written
        if not isinstance(written, fx.Node) or now < 1:
            return wanted
        common = gcd(now, wanted)
        return SizeShare(written, wanted // common, now // common)

    def _before(self, axis: int, start: int) -> int:
        """How many positions in front of one stay."""
        return int((self.axes[axis] < start).sum()) if axis in self.axes else start

    def _index(self, index: Any) -> Any:
        """The index with the ends of its slices moved."""
        entries = index if isinstance(index, tuple) else (index,)
        named = sum(entry is not None and entry is not Ellipsis for entry in entries)
        found, axis = [], 0
        for entry in entries:
            found.append(self._slice(axis, entry) if axis in self.axes else entry)
            axis += len(self.old) - named if entry is Ellipsis else entry is not None
        return tuple(found) if isinstance(index, tuple) else found[0]

    def _slice(self, axis: int, entry: Any) -> Any:
        if not isinstance(entry, slice) or entry.step not in (None, 1):
            return entry
        start, stop, _ = entry.indices(self.old[axis])
        return slice(self._before(axis, start), self._before(axis, stop))

    # -- what fits ---------------------------------------------------------------------------------

    def fits(self, op: OpSpec, attrs: Mapping[str, Any]) -> bool:
        """Whether each result gets the positions that it should have."""
        numbers = settings(attrs, self.work.now)
        try:
            whole = torch.empty(self.shape, device="meta")
            shapes = [tuple(r.shape) for r in self._run(op, numbers, whole, self.work.shape)]
            return shapes == self.wanted() and all(self._moves(op, numbers, a) for a in self.axes)
        except (RuntimeError, IndexError, ValueError, TypeError):
            return False

    def _moves(self, op: OpSpec, numbers: Mapping[str, Any], axis: int) -> bool:
        """The same, as far as the positions of one axis go."""
        before = on_axis(torch.arange(self.old[axis]), axis, len(self.old)).expand(self.old)
        after = on_axis(self.axes[axis], axis, len(self.old)).expand(self.shape)
        have = self._run(op, numbers, after, self.work.shape)
        sources = self._run(self.call.op, settings(self.call.attrs), before, shape_at)
        want = [self._left(compressed(part), i) for i, part in enumerate(sources)]
        # Most axes say nothing of positions along this one: they are never written out.
        return all(torch.equal(compressed(a), b) for a, b in zip(have, want, strict=True))

    def _left(self, part: Tensor, result: int) -> Tensor:
        """What stays of the positions that a result had, without the axes that all say the same."""
        axes = self.work.axes(self.call.node, result)
        told = {axis: kept for axis, kept in axes.items() if part.shape[axis] > 1}
        return compressed(selected(part, told))

    def _run(
        self,
        op: OpSpec,
        numbers: Mapping[str, Any],
        value: Tensor,
        shape: Callable[[Any], Shape],
    ) -> list[Tensor]:
        same = op is self.call.op
        inputs = given(self.call, value, shape) if same else {op.inputs[0].name: value}
        found = op.run(inputs, {}, numbers)
        return list(found) if isinstance(found, (tuple, list)) else [found]
