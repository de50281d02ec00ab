"""What nodes hold when a graph runs. A run may begin where an earlier one stood: rewrites change a
graph from some node on, and what is in front of it gives the same as before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    """Where runs of one graph on one batch were held, in the order of the graph. room: bytes."""

    room: int
    graph: fx.Graph | None = None
    held: list[HeldRun] = field(default_factory=list)

    def begin(self, module: fx.GraphModule, wanted: Iterable[fx.Node]) -> HeldRun | None:
        """The last stop from which all that is wanted can be reached."""
        if module.graph is not self.graph:
            self.graph, self.held = module.graph, []
        wanted = list(wanted)
        return next((stop for stop in reversed(self.held) if _reaches(stop, module, wanted)), None)

    def take(self, stop: HeldRun) -> None:
        """Holds one more; where there is no room, every second one goes."""
        rest = [other for other in self.held if other.order != stop.order]
        self.held = sorted([*rest, stop], key=lambda one: one.order)
        while self.held and _bytes(self.held) > self.room:
            del self.held[::2]

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


def _bytes(stops: Iterable[HeldRun]) -> int:
    leaves = (leaf for stop in stops for leaf in tree_leaves(list(stop.env.values())))
    blocks = (leaf.untyped_storage() for leaf in leaves if isinstance(leaf, Tensor))
    return sum({block.data_ptr(): block.nbytes() for block in blocks}.values())


class _Resuming(Recorder):
    """Begins at the last stop that serves, and takes new ones on its way."""

    def __init__(self, module: fx.GraphModule, wanted: Sequence[fx.Node], stops: Stops) -> None:
        super().__init__(module, wanted)
        self.stops, self.begun, self.ran = stops, stops.begin(module, wanted), 0

    def run(self, *args: Any, **settings: Any) -> Any:
        env = {} if self.begun is None else self._entered(self.begun)
        return super().run(*args, initial_env=env)

    def _entered(self, stop: HeldRun) -> dict[fx.Node, Any]:
        """Nodes that have run are skipped; nobody reads those whose values are gone."""
        for node in self.wanted & stop.env.keys():
            self.keep(node, stop.env[node])
        return {n: stop.env.get(n) for n in self.traced.nodes if order_of(n) <= stop.order}

    def run_node(self, n: fx.Node) -> Any:
        done = len(self.kept) == len(self.wanted)
        step = max(1, len(self.traced.nodes) // APART)
        behind = n.op != "placeholder"  # all inputs have been read
        if behind and self.ran >= 0 and (done or self.ran % step == step - 1):
            self._hold(n)
        self.ran = -1 if done else self.ran + 1
        return super().run_node(n)

    def _hold(self, before: fx.Node) -> None:
        live = {node: value for node, value in self.env.items() if value is not None}
        self.stops.take(HeldRun(order_of(before.prev), live))


def resume(
    module: fx.GraphModule, nodes: Sequence[fx.Node], args: tuple[Any, ...], stops: Stops
) -> dict[fx.Node, Any]:
    """As `record`, from where earlier runs on the same inputs were held; `stops` holds this one,
    too. For graphs that are `holdable`.
    """
    recorder = _Resuming(module, nodes, stops)
    interpret(recorder, args, "the data")
    return recorder.kept


def holdable(module: fx.GraphModule) -> bool:
    """Whether values stay as they are while the graph goes on."""
    return not any(writes(node, module) for node in module.graph.nodes)
