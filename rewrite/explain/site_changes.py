"""What stands at each place of the model, before and after: ops, numbers, the kernel that runs,
and how long it takes.

A place is a node of the captured graph. What rules put in place of several nodes lies where one of
them lay (`from`), and whatever else they took belongs to the nearest place that has taken it in.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor, fx

from ..apply.cost import SKIPPED, node_macs, tensors_of
from ..graph.index import GraphView
from ..graph.places import name_of
from ..match.match import is_part
from ..measure.integer_layers import Int8Layer, integer_layers, kernel_of
from ..measure.latency import Clock, Times, batch_of, least_of, node_times
from ..measure.processor import HALVES, computes_in
from ..ops.call import module_at
from ..ops.spec import TensorSpec
from ..pipeline.compile import Compiled
from ..runtime.kernels import LIMIT, largest_sum


@dataclass(frozen=True, slots=True)
class Standing:
    """One side of a place. bits: of the type that most weights have; without weights, of what the
    last op gives, None where that is no tensor. ms: milliseconds, where they were measured.
    """

    ops: tuple[str, ...]
    bits: int | None
    bytes: int
    macs: int
    ms: float | None = None


@dataclass(frozen=True, slots=True)
class SiteChange:
    """A place where something changed. kernel: what runs it, where a rule gave it another type of
    numbers; "" elsewhere. sums: what those of its integer layers reach at most, as a part of the
    2^31 at which int32 ends; None where it has none. nodes: those of both sides.
    """

    site: str
    before: Standing
    after: Standing
    kernel: str = ""
    sums: float | None = None
    nodes: tuple[list[fx.Node], list[fx.Node]] = ([], [])


def site_changes(compiled: Compiled) -> list[SiteChange]:
    """Every place at which ops, types, bytes or multiply-accumulates are others now, in the order
    of the captured graph.
    """
    before, after, places = _Side(compiled.original, compiled), _Side(compiled.model, compiled), []
    for site, olds, news in _places(before.nodes, after.nodes):
        was, now = before.standing(olds), after.standing(news)
        if was != now:
            kernel, sums = after.kernel(news, was.bits), after.sums(news)
            places.append(SiteChange(site, was, now, kernel, sums, (olds, news)))
    return places


@dataclass(frozen=True, slots=True)
class Timed:
    """Places with milliseconds; `slower` are those that take longer than before."""

    changes: list[SiteChange]
    slower: list[SiteChange]
    how: str


def timed(
    compiled: Compiled, changes: Iterable[SiteChange], clock: Clock = time.perf_counter
) -> Timed:
    """Runs both models on the example, node by node and in turns, and says how long each place
    takes in either: what lies between places that changed, a conversion say, is part of the place
    that it was made for.
    """
    args = compiled.samples.inputs
    rounds = node_times(compiled.original, compiled.model, args, clock=clock)
    found, slower = [], []
    for change in changes:
        pairs = [tuple(map(_seconds, change.nodes, turn)) for turn in rounds]
        was, now = ([1e3 * pair[side] for pair in pairs] for side in (0, 1))
        old, new = replace(change.before, ms=median(was)), replace(change.after, ms=median(now))
        found.append(replace(change, before=old, after=new))
        slower += [found[-1]] if least_of(b - a for a, b in pairs) > 0 else []
    how = f"median of {len(rounds)} rounds in turns, 1 thread, torch eager, batch {batch_of(args)}"
    return Timed(found, slower, how)


def _seconds(nodes: Iterable[fx.Node], times: Times) -> float:
    return sum(times.get(node, 0.0) for node in nodes)


# -- places ----------------------------------------------------------------------------------------


def _places(
    before: Sequence[fx.Node], after: Sequence[fx.Node]
) -> Iterator[tuple[str, list[fx.Node], list[fx.Node]]]:
    """Each place by the name that people know it by, with its nodes before and after."""
    heirs = defaultdict[str, set[str]](set)
    groups = defaultdict[str, tuple[list[fx.Node], list[fx.Node]]](lambda: ([], []))
    for node in after:
        home = _home_of(node)
        groups[home][1].append(node)
        for origin in node.meta.get("origins", ()):
            heirs[origin].add(home)
    stands, order = set(groups), {node.name: number for number, node in enumerate(before)}
    homes = dict[fx.Node, str]()
    for node in before:
        if node.name in stands:
            home = node.name
        elif is_part(node) and node.all_input_nodes[0] in homes:
            home = homes[node.all_input_nodes[0]]
        else:
            home = _nearest(node.name, heirs, order)
        homes[node] = home
        groups[home][0].append(node)
    for home in sorted(groups, key=lambda name: order.get(name, -1)):
        olds, news = groups[home]
        yield name_of((olds or news)[0]), olds, news


def _home_of(node: fx.Node) -> str:
    """The captured node that a node of the result lies at: itself, unless a rule made it."""
    found = node.meta.get("captured") or next(iter(node.meta.get("origins", ())), node.name)
    return str(found)


def _nearest(name: str, heirs: Mapping[str, set[str]], order: Mapping[str, int]) -> str:
    """Of the places that have taken a node in, the nearest; its own, where none has."""
    near = [(abs(order[at] - order[name]), order[at], at) for at in heirs[name] if at in order]
    return min(near)[2] if near else name


# -- one side --------------------------------------------------------------------------------------


class _Side:
    """One of both graphs."""

    def __init__(self, module: fx.GraphModule, compiled: Compiled) -> None:
        self.module = module
        self.view = GraphView(module, compiled.vocabulary)
        self.nodes = [node for node in module.graph.nodes if node.op not in SKIPPED]
        self.tensors = self._tensors()

    def _tensors(self) -> dict[fx.Node, list[Tensor]]:
        """What each node reads of the model's own numbers; what several read is the first one's."""
        seen = set[int]()
        found = {}
        for node in self.nodes:
            held = [t for at in (node, *_attributes(node)) for t in tensors_of(self.module, at)]
            found[node] = [t for t in held if id(t) not in seen]
            seen.update(map(id, held))
        return found

    def standing(self, nodes: Sequence[fx.Node]) -> Standing:
        held = [tensor for node in nodes for tensor in self.tensors[node]]
        size = sum(tensor.nbytes for tensor in held)
        macs = sum(node_macs(self.view, node) for node in nodes)
        return Standing(tuple(map(self._op, nodes)), _bits(nodes, held), size, macs)

    def _op(self, node: fx.Node) -> str:
        call = self.view.call(node)
        if call is not None:
            return call.op.name
        target = node.target
        if node.op == "call_module":
            return type(module_at(self.module, str(target))).__name__
        return target if isinstance(target, str) else getattr(target, "__name__", str(target))

    def kernel(self, nodes: Sequence[fx.Node], bits: int | None) -> str:
        """What runs integer layers, and numbers of 16 bits that were wider."""
        return "; ".join(dict.fromkeys(self._kernels(nodes, bits)))

    def sums(self, nodes: Sequence[fx.Node]) -> float | None:
        return max((largest_sum(la.weight) / LIMIT for la in self._integer(nodes)), default=None)

    def _integer(self, nodes: Sequence[fx.Node]) -> list[Int8Layer]:
        """Those that nodes call, and what larger layers are made of."""
        layers = (module_at(self.module, str(n.target)) for n in nodes if n.op == "call_module")
        found = (part for layer in layers for part in integer_layers(layer).values())
        return [part for part in found if part.weight.numel()]

    def _kernels(self, nodes: Sequence[fx.Node], bits: int | None) -> Iterator[str]:
        yield from map(kernel_of, self._integer(nodes))
        for node in nodes:
            half = _dtype(node.meta.get("val"))
            if half in HALVES and bits is not None and bits > 16 and self.tensors[node]:
                yield f"{half} instructions" if computes_in(half) else f"no {half} instructions"


def _attributes(node: fx.Node) -> list[fx.Node]:
    return [held for held in node.all_input_nodes if held.op == "get_attr"]


def _bits(nodes: Sequence[fx.Node], held: Sequence[Tensor]) -> int | None:
    counts = Counter[torch.dtype]()
    for tensor in held:
        counts[tensor.dtype] += tensor.numel()
    if counts:
        return 8 * max(counts, key=lambda dtype: (counts[dtype], dtype.itemsize)).itemsize
    specs = [node.meta.get("val") for node in nodes[-1:]]
    return next((8 * s.dtype.itemsize for s in specs if isinstance(s, TensorSpec)), None)


def _dtype(spec: object) -> str:
    return str(spec.dtype).removeprefix("torch.") if isinstance(spec, TensorSpec) else ""
