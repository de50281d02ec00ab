"""What nodes hold when a graph runs. A run may begin where an earlier one stood: rewrites change a
graph from some node on, and what is in front of it gives the same as before.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from ..graph.runs import Recorder, interpret
from ..graph.writes import writes
from ..torch_internals import order_of, tree_leaves

APART = 16
"""A long run is held at so many nodes."""

Order = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class HeldRun:
    """The values that are still to be read when all nodes up to `order` have run."""

    order: Order
    env: dict[fx.Node, Any]


@dataclass
class Stops:
    """Where runs of one graph on one batch were held, in the order of the graph. room: bytes.
    written: ops write into values, so that a run that is held, and each one that goes on from it,
    has copies of its own. last: the stop that goes last where there is no room.
    """

    room: int
    graph: fx.Graph | None = None
    held: list[HeldRun] = field(default_factory=list)
    written: bool = False
    last: HeldRun | None = None

    def begin(self, module: fx.GraphModule, wanted: Iterable[fx.Node]) -> HeldRun | None:
        """The last stop from which all that is wanted can be reached."""
        if module.graph is not self.graph:
            self.graph, self.held = module.graph, []
        wanted = list(wanted)
        serve = (stop for stop in reversed(self.held) if self._serves(stop, module, wanted))
        return next(serve, None)

    def _serves(self, stop: HeldRun, module: fx.GraphModule, wanted: Sequence[fx.Node]) -> bool:
        """What was written to since is not what a node gave."""
        gone = self.written and any(order_of(node) <= stop.order for node in wanted)
        return not gone and _reaches(stop, module, wanted)

    def values(self, env: dict[fx.Node, Any]) -> dict[fx.Node, Any]:
        """What a run goes on with from values that are held, or what is held of its own."""
        return _copies(env) if self.written else env

    def take(self, stop: HeldRun, *, last: bool = False) -> None:
        """Holds one more; where there is no room, every second one goes, and `last` the last."""
        stop = HeldRun(stop.order, self.values(stop.env))
        self.last = stop if last else self.last
        rest = [other for other in self.held if other.order != stop.order]
        self.held = sorted([*rest, stop], key=lambda one: one.order)
        while self.held and _bytes(self.held) > self.room:
            others = [one for one in self.held if one is not self.last]
            self.held = [one for one in self.held if one not in others[::2]] if others else []

    def drop(self, order: Order) -> None:
        """What stands at `order` and behind it is changed."""
        self.held = [stop for stop in self.held if stop.order < order]


def _reaches(stop: HeldRun, module: fx.GraphModule, wanted: Sequence[fx.Node]) -> bool:
    """Whether what has to run finds all that it reads."""
    if any(order_of(node) <= stop.order and node not in stop.env for node in wanted):
        return False
    last = max(map(order_of, wanted), default=())
    todo = (node for node in module.graph.nodes if stop.order < order_of(node) <= last)
    read = (value for node in todo for value in node.all_input_nodes)
    return all(order_of(value) > stop.order or value in stop.env for value in read)


def _copies(env: Mapping[fx.Node, Any]) -> dict[fx.Node, Any]:
    """Copies that share memory as the values do; weights stay, no graph writes to them."""
    own = {node: value for node, value in env.items() if node.op != "get_attr"}
    return {**env, **dict(zip(own, copy.deepcopy(list(own.values())), strict=True))}


def _bytes(stops: Iterable[HeldRun]) -> int:
    leaves = (leaf for stop in stops for leaf in tree_leaves(list(stop.env.values())))
    blocks = (leaf.untyped_storage() for leaf in leaves if isinstance(leaf, Tensor))
    return sum({block.data_ptr(): block.nbytes() for block in blocks}.values())


class _Resuming(Recorder):
    """Begins at the last stop that serves, and takes new ones on its way: behind the first node
    that is wanted, too, for there the graph is going to be changed.
    """

    def __init__(self, module: fx.GraphModule, wanted: Sequence[fx.Node], stops: Stops) -> None:
        super().__init__(module, wanted)
        self.stops, self.begun, self.ran = stops, stops.begin(module, wanted), 0
        self.first = min(wanted, key=order_of, default=None)

    def run(self, *args: Any, **settings: Any) -> Any:
        env = {} if self.begun is None else self._entered(self.begun)
        return super().run(*args, initial_env=env)

    def _entered(self, stop: HeldRun) -> dict[fx.Node, Any]:
        """Nodes that have run are skipped; nobody reads those whose values are gone."""
        env = self.stops.values(stop.env)
        for node in self.wanted & env.keys():
            self.keep(node, env[node])
        return {n: env.get(n) for n in self.traced.nodes if order_of(n) <= stop.order}

    def run_node(self, n: fx.Node) -> Any:
        done = len(self.kept) == len(self.wanted)
        step = max(1, len(self.traced.nodes) // APART)
        behind = n.op != "placeholder"  # all inputs have been read
        first = n.prev is self.first
        if behind and self.ran >= 0 and (first or done or self.ran % step == step - 1):
            self._hold(n, last=first)
        self.ran = -1 if done else self.ran + 1
        return super().run_node(n)

    def _hold(self, before: fx.Node, *, last: bool) -> None:
        live = {node: value for node, value in self.env.items() if value is not None}
        self.stops.take(HeldRun(order_of(before.prev), live), last=last)


def resume(
    module: fx.GraphModule, nodes: Sequence[fx.Node], args: tuple[Any, ...], stops: Stops
) -> dict[fx.Node, Any]:
    """As `record`, from where earlier runs on the same inputs were held; `stops` holds this one,
    too.
    """
    recorder = _Resuming(module, nodes, stops)
    interpret(recorder, args, "the data")
    return recorder.kept


def stops_of(module: fx.GraphModule, batches: int, room: int) -> list[Stops]:
    """Places for runs of a graph on so many batches; room: bytes of all together."""
    written = any(writes(node, module) for node in module.graph.nodes)
    return [Stops(room // batches, written=written) for _ in range(batches)]
