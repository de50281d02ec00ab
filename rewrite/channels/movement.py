"""Ops that move numbers: they move features the same way, so they run on tracks.

No table says what a view, a permutation, a shuffle or a window partition does to channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..ops.call import OpCall, tensor_at
from ..ops.spec import TensorSpec
from .flow import Flow, Region, SizedMove
from .labels import (
    Vectors,
    along,
    axes_of,
    chained,
    compressed,
    couple,
    joined,
    keep_all,
    on_axis,
    separated,
    together,
)
from .sizes import settings, shape_at, specs_of
from .units import KeepReason


def moved(flow: Flow, call: OpCall) -> None:
    """What moves numbers: of several tensors into one, or of one into one or several."""
    if call.op.inputs[0].variadic:
        concatenated(flow, call)
        return
    _moved(flow, call)
    if call.op.outputs[0] is None:
        for like in call.inputs[1:]:
            _as_large(flow, call, like)


def _moved(flow: Flow, call: OpCall) -> None:
    found: list[list[Tensor]] = [[] for _ in specs_of(call.node)]
    for track in flow.of(call.inputs[0]):
        parts = run_on_labels(call, track)
        if axes_of(track) and not _follows_sizes(flow, call, track, parts):
            flow.sized_moves.append(SizedMove(call.node, track, parts))
        if axes_of(track) and not all(axes_of(part) for part in parts if part.numel()):
            keep_all(flow.atoms, (track,), KeepReason(call.node.name, "it picks single positions"))
        for own, part in zip(found, parts, strict=True):
            own += [part] if part.numel() and axes_of(part) else []
    spread = any(len(axes_of(track)) > 1 for own in found for track in own)
    if spread and not _in_region(flow, call):
        why = KeepReason(call.node.name, "it spreads features over several axes")
        found = [list(separated(flow.atoms, tuple(own), why)) for own in found]
    flow.set(call.node, *map(tuple, found))


def run_on_labels(
    call: OpCall, track: Tensor, shape: tuple[int, ...] | None = None
) -> list[Tensor]:
    """The op on a track of a value; `shape`: the value has another one than the graph says."""
    full = track.expand(shape_at(call.inputs[0]) if shape is None else shape)
    found = call.op.run(given(call, full), {}, settings(call.attrs))
    several = found if isinstance(found, (tuple, list)) else (found,)
    return [compressed(part) for part in several]


def _follows_sizes(flow: Flow, call: OpCall, track: Tensor, parts: Sequence[Tensor]) -> bool:
    """Whether features come to lie the same way where all other axes are longer."""
    source = call.inputs[0]
    if source.op == "get_attr":
        return True
    try:
        again = run_on_labels(call, track, _longer(flow, source))
    except (RuntimeError, ValueError, IndexError, TypeError):
        return False
    return alike(parts, again)


def alike(parts: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(parts) == len(others) and all(map(torch.equal, parts, others))


def _longer(flow: Flow, value: fx.Node) -> tuple[int, ...]:
    """The shape of a value where the axes without features are longer, as far as they may be."""
    shape = _grown(flow, value)
    if 1 not in shape_at(value)[1:]:
        return shape
    pooled = _from_longer(flow, value)
    return tuple(min(n, m) for n, m in zip(shape, pooled or shape, strict=True))


def _grown(flow: Flow, value: fx.Node) -> tuple[int, ...]:
    held = {axis for track in flow.of(value) for axis in axes_of(track)}
    return tuple(n if axis in held else n + 1 for axis, n in enumerate(shape_at(value)))


def _from_longer(flow: Flow, value: fx.Node) -> tuple[int, ...] | None:
    """The shape that the op in front gives where what it reads is longer; None where that is not
    known. Pooling to one position gives one of any image.
    """
    call = flow.view.call(value)
    if call is None or "pooling" not in call.op.traits:
        return None
    name, grown = call.op.inputs[0].name, _grown(flow, call.inputs[0])
    read = TensorSpec(grown, torch.float32)
    return call.op.specs({name: read}, {}, settings(call.attrs))[0].shape


def given(
    call: OpCall, value: Tensor, shape: Callable[[Any], tuple[int, ...]] = shape_at
) -> dict[str, Tensor]:
    """What a movement reads: a value, and others of which only sizes and dtype matter."""
    first, *others = call.op.inputs
    pairs = zip(others, call.inputs[1:], strict=True)
    like = {spec.name: value.new_zeros(()).expand(shape(other)) for spec, other in pairs}
    return {first.name: value, **like}


def _as_large(flow: Flow, call: OpCall, like: fx.Node) -> None:
    """`x.reshape_as(like)`: what each axis loses, that of `like` loses."""
    tracks, made = flow.separate(like), flow.separate(call.node)
    why = KeepReason(call.node.name, "it takes its sizes from what has no such features")
    for axis in range(len(shape_at(call.node))):
        couple(flow.atoms, along(made, axis), along(tracks, axis), why)


def padded(flow: Flow, call: OpCall) -> None:
    """`pad`: constants beside features; nothing else may be put there, nor anything cut off."""
    tracks, rank = flow.separate(call.inputs[0]), len(shape_at(call.inputs[0]))
    attrs = settings(call.attrs)
    ends = [*attrs["pad"], *[0] * (2 * rank - len(attrs["pad"]))]  # the last axis comes first
    axes = [along(tracks, axis) for axis in range(rank)]
    for axis in range(rank):
        first, last = ends[2 * (rank - axis) - 2 : 2 * (rank - axis)]
        constant = attrs.get("mode", "constant") == "constant"
        if (first, last) != (0, 0) and (not constant or min(first, last) < 0):
            keep_all(
                flow.atoms, axes[axis], KeepReason(call.node.name, "it repeats or drops features")
            )
            axes[axis] = ()
        axes[axis] = tuple(torch.nn.functional.pad(v, (first, last)) for v in axes[axis])
    flow.set(call.node, joined(axes))


# -- shuffles --------------------------------------------------------------------------------------


def reordered(call: OpCall, axis: int) -> Region | None:
    """A movement that alone chooses positions along one axis."""
    shape = shape_at(call.inputs[0])
    places = [run_on_labels(call, place) for place in _places(shape)]
    if any(len(parts) != 1 for parts in places):
        return None
    order = _order(shape, shape_at(call.node), [parts[0] for parts in places], axis)
    return None if order is None else Region(call.inputs[0], axis, order, ())


def _in_region(flow: Flow, call: OpCall) -> bool:
    """Whether the movements that begin here end in a choice of positions along one axis."""
    if any(call.node in region.inside for region in flow.regions.values()):
        return True
    source = call.inputs[0]
    axes = {axis for track in flow.of(source) for axis in axes_of(track)}
    if len(axes) != 1 or flow.spread(source):
        return False
    (axis,), shape, inside = axes, shape_at(source), []
    places, following = _places(shape), call
    while following is not None:
        moved = [run_on_labels(following, place) for place in places]
        if any(len(parts) != 1 for parts in moved):
            return False
        places = [parts[0] for parts in moved]
        order = _order(shape, shape_at(following.node), places, axis)
        if order is not None:
            flow.regions[following.node] = Region(source, axis, order, tuple(inside))
            return bool(inside)
        inside.append(following.node)
        following = _next(flow, following.node)
    return False


def _places(shape: tuple[int, ...]) -> list[Tensor]:
    """For each axis a track that numbers its positions."""
    return [on_axis(torch.arange(n), axis, len(shape)) for axis, n in enumerate(shape)]


def _order(
    before: tuple[int, ...], after: tuple[int, ...], places: list[Tensor], axis: int
) -> Tensor | None:
    """The position that each one along the axis comes from, if nothing else changed."""
    if len(before) != len(after):
        return None
    for other, place in enumerate(places):
        if axes_of(place) not in ((), (other,)):
            return None
        stays = other == axis or torch.equal(place.reshape(-1), torch.arange(before[other]))
        if not stays or (other != axis and before[other] != after[other]):
            return None
    return places[axis].reshape(-1)


def _next(flow: Flow, node: fx.Node) -> OpCall | None:
    """The movement that alone reads a value."""
    readers = [user for user in node.users if any(specs_of(user))]
    call = flow.view.call(readers[0]) if len(readers) == 1 else None
    if call is None or "movement" not in call.op.traits or call.inputs[0] is not node:
        return None
    return call


def chosen(flow: Flow, call: OpCall) -> None:
    """`index_select`, and `x[index]`: the axes of the index take the place of the axis `dim`, or
    of the first one.
    """
    source, index = call.inputs
    spec = index.meta.get("val") if isinstance(index, fx.Node) else None
    if not isinstance(spec, TensorSpec) or spec.dtype == torch.bool:
        flow.block_inputs(call.node, "what it chooses is computed")
        return
    _chosen(flow, call, call.attrs.get("dim", 0) % len(shape_at(source)), index)


def _chosen(flow: Flow, call: OpCall, axis: int, index: fx.Node) -> None:
    """Some positions along one axis, which stays unless the model keeps them, in one row."""
    source, places = call.inputs[0], constant(flow.view.root, index)
    tracks = flow.separate(source)
    axes = [along(tracks, at) for at in range(len(shape_at(source)))]
    new: list[Vectors] = [()] * len(shape_at(index))
    if places is not None and places.ndim == 1 and len(places) > 1:
        new = [tuple(vector[places] for vector in axes[axis])]
        flow.regions[call.node] = Region(source, axis, places, ())
    else:
        why = KeepReason(call.node.name, _why_kept(places))
        keep_all(flow.atoms, (*axes[axis], *flow.values[index][0]), why)
    flow.set(call.node, joined([*axes[:axis], *new, *axes[axis + 1 :]]))


def _why_kept(places: Tensor | None) -> str:
    if places is None:
        return "it chooses positions that it computes"
    return "it picks single positions" if places.numel() == 1 else "it chooses rows of positions"


def constant(root: fx.GraphModule, value: Any) -> Tensor | None:
    """The positions that a node keeps; None where it computes them."""
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return None
    found = tensor_at(root, str(value.target))
    return None if found.is_floating_point() else found


# -- several tensors -------------------------------------------------------------------------------


def concatenated(flow: Flow, call: OpCall) -> None:
    """`cat` and `stack`: side by side along the axis `dim`, which is a new one where the result has
    one more.
    """
    if "dim" not in call.op.attrs:
        flow.block_inputs(call.node, f"{call.op.name} has no `dim` along which it joins them")
        return
    stacks = len(shape_at(call.node)) > max(len(shape_at(v)) for v in call.inputs[0])
    values = [v for v in call.inputs[0] if stacks or shape_at(v) != (0,)]
    shapes = [shape_at(value) for value in values]
    tracks = [flow.separate(value) for value in values]
    dim = call.attrs["dim"] % (len(shapes[0]) + stacks)
    why = KeepReason(call.node.name, f"{call.op.name} puts it beside what has no features")
    axes: list[Vectors] = []
    for axis in range(len(shapes[0])):
        present = [along(own, axis) for own in tracks]
        if axis == dim and not stacks:
            axes.append(chained(present, [shape[axis] for shape in shapes]))
        else:
            axes.append(together(flow.atoms, present, why))
    if stacks:
        axes.insert(dim, ())
    flow.set(call.node, joined(axes))


def gated(flow: Flow, call: OpCall) -> None:
    """`glu`: the second half of an axis gates the first."""
    tracks, shape = flow.separate(call.inputs[0]), shape_at(call.inputs[0])
    dim = call.attrs["dim"] % len(shape)
    axes = [along(tracks, axis) for axis in range(len(shape))]
    half = shape[dim] // 2
    left, right = (tuple(v[part] for v in axes[dim]) for part in (slice(half), slice(half, None)))
    if left and half == 1:
        keep_all(flow.atoms, left + right, KeepReason(call.node.name, "it picks single positions"))
    elif left:
        couple(
            flow.atoms, left, right, KeepReason(call.node.name, "its halves do not fit together")
        )
    axes[dim] = left
    flow.set(call.node, joined(axes))


def reduced(flow: Flow, call: OpCall) -> None:
    """Reductions: of features that are left, or, where one of them would be another, of all."""
    tracks, rank = flow.separate(call.inputs[0]), len(shape_at(call.inputs[0]))
    attrs = settings(call.attrs)
    gone = axes_in(attrs.get("dim"), rank)
    if "statistics" in call.op.traits:
        flow.statistics[call.node] = None
    else:
        why = KeepReason(call.node.name, f"{call.op.name} reduces over it")
        keep_all(flow.atoms, (v for axis in gone for v in along(tracks, axis)), why)
    kept = [() if axis in gone else along(tracks, axis) for axis in range(rank)]
    if not attrs.get("keepdim"):
        kept = [vectors for axis, vectors in enumerate(kept) if axis not in gone]
    flow.set(call.node, *[joined(kept)] * len(specs_of(call.node)))


def axes_in(dims: Any, rank: int) -> set[int]:
    """The axes that a setting names; all of them where it names none."""
    if dims is None or dims == ():
        return set(range(rank))
    several = dims if isinstance(dims, (tuple, list)) else (dims,)
    return {dim % rank for dim in several} if rank else set()
