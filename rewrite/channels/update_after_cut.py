"""A model that is cut step by step, and what is known of it, kept up to date without a second
analysis.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ..graph.index import GraphView
from ..graph.snapshot import finish
from ..ops.call import tensor_at
from .classes import DimClass, classes_among
from .cut import begun, shrink
from .cut_builder import Work
from .flow import Flow, Key, key_of
from .labels import Labels, Vectors, along, axes_of, joined, keep_all
from .movement import Region, constant
from .units import KeepReason, Units


def cut_and_carry(flow: Flow, removed: Iterable[int]) -> Flow:
    """The features of the model without these leaves; `view.root` is that model. Raises as `cut`
    does.
    """
    model = Shrinking(flow)
    model.cut(set(removed))
    return model.finished()


@dataclass(frozen=True, slots=True)
class CutEffect:
    """What one cut did to a graph. nodes: those that it made anew or whose values have other
    shapes. gone: those that are no longer in the graph. moved: leaves that may belong together in
    another way than before.
    """

    nodes: list[fx.Node]
    gone: list[fx.Node]
    moved: Tensor


class Shrinking:
    """A copy of the model of `before` that loses features, and in `flow` the features that it has
    now. Between cuts it can be interpreted; its code is made when it is `finished`.
    """

    def __init__(self, before: Flow) -> None:
        self.work = begun(before)
        self.module = self.work.module
        flow = self.flow = Flow(GraphView(self.module, before.view.vocabulary), before.atoms.copy())
        for node, results in before.values.items():
            flow.values[self.work.new[node]] = list(results)
        for path, key in before.paths.items():
            flow.params.setdefault(flow.key(path), before.params.get(key, ()))
        flow.roles = dict(before.roles)
        flow.contracted = {self.work.new[node]: None for node in before.contracted}
        flow.statistics = {self.work.new[node]: None for node in before.statistics}

    def cut(self, removed: Collection[int]) -> CutEffect:
        """Cuts leaves out of the model. Raises as `cut` does, and then nothing has changed."""
        work, flow = self.work, self.flow
        steps = shrink(work, removed)
        nodes = [node for node in steps.nodes if node not in work.gone]
        changed = [*work.fresh, *(work.new[node] for node in nodes)]
        again = [*work.fresh, *(work.new[node] for node in nodes if node in work.rewritten)]
        for node in (*work.dropped, *again):
            flow.view.forget(node)
        for node in work.dropped:
            flow.values.pop(node, None)
        for node in work.fresh:
            flow.values[node] = [()]
        for node in nodes:
            results = work.flow.values[node]
            flow.values[work.new[node]] = [_left(work, flow.atoms, one) for one in results]
        for node in again:
            flow.view.add(node)
        for node in nodes:
            flow.view.hold_anew(work.new[node])
        moved = self._relabel(set(steps.tensors)) or work.kept.products(steps.lost)
        beside = work.reach.beside(steps.lost) if moved else steps.lost[:0]
        return CutEffect(changed, work.dropped, work.kept.leaves_of(beside))

    def _relabel(self, sliced: Collection[Key]) -> bool:
        """The parameters that were sliced carry what is left. Whether one of them has no longer the
        same axes of features.
        """
        work, flow, moved = self.work, self.flow, False
        for key in sliced:
            paths = work.reach.paths[key]
            tensor, known = tensor_at(self.module, paths[0]), flow.params.pop(flow.paths[paths[0]])
            found = _left(work, flow.atoms, work.flow.params.get(key, ()))
            moved |= list(map(axes_of, known)) != list(map(axes_of, found))
            flow.paths |= dict.fromkeys(paths, key_of(tensor))
            flow.params[key_of(tensor)] = found
        return moved

    def classes(self, leaves: Tensor) -> list[DimClass]:
        """The dimension classes that these leaves make in the model as it is."""
        work, flow = self.work, self.flow
        keys = work.reach.keys_of(work.kept.atoms_of(leaves))
        paths = [work.reach.paths[key][0] for key in keys]
        params = [(path, flow.params[flow.paths[path]]) for path in paths]
        return classes_among(flow, params, leaves)

    def _in_order(self) -> None:
        """Parameters in the order in which the analysis met them."""
        known, keys = self.flow.params, dict.fromkeys(self.flow.paths.values())
        self.flow.params = {key: known[key] for key in keys if key in known}

    def finished(self) -> Flow:
        """What is known of the model, and its code made anew."""
        self.settle()
        finish(self.module)
        return self.flow

    def settle(self) -> None:
        """Finds out what is known of the model and needed only when it is masked or cut again."""
        before, work, flow = self.work.flow, self.work, self.flow
        left = {node: new for node, new in work.new.items() if node not in work.gone}
        flow.recurrent = {left[node]: names for node, names in before.recurrent.items()}
        flow.sized = {
            left[node]: {
                name: _vectors(work, flow.atoms, vectors) for name, vectors in sized.items()
            }
            for node, sized in before.sized.items()
        }
        self._in_order()
        found = ((new, _region(work, node)) for node, new in left.items())
        flow.regions = {node: region for node, region in found if region is not None}


def _left(work: Work, atoms: Units, tracks: Labels) -> Labels:
    """The tracks at the positions that stay. A feature that stands alone has no track, so it has to
    stay: without it nothing would be left there.
    """
    found = work.kept.left(tracks)
    if found is tracks:
        return tracks
    alone = [part for part in found if part.numel() < 2]
    if alone:
        keep_all(atoms, alone, KeepReason("the cut", "one feature is left of it"))
    return tuple(part for part in found if part.numel() > 1)


def _vectors(work: Work, atoms: Units, vectors: Vectors) -> Vectors:
    return along(_left(work, atoms, joined([vectors])), 0)


def _region(work: Work, node: fx.Node) -> Region | None:
    """The same choice of positions, among those that are left."""
    new, old = work.new[node], work.flow.regions.get(node)
    if new.target is torch.index_select:
        source, axis, index = new.args
        order = constant(work.module, index)
        return None if order is None else Region(source, axis, order, ())  # type: ignore[arg-type]
    if old is None:
        return None
    inside = tuple(work.new[other] for other in old.inside)
    return Region(work.new[old.source], old.axis, old.order, inside)
