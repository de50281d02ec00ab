"""Values that flow through the model: example inputs, calibration data, and what they give at each
node.

Recording runs the graph once for many nodes and keeps only what was asked for, within a memory
bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ...grammar.diagnostics import Label, did_you_mean, fail
from ..graph.runs import RunFailed, interpret, record
from ..ops.call import OpCall
from ..torch_internals import is_erased, tree_leaves
from .batches import Batches, Pairs, Taken, batch_size, counted, first, is_batched
from .given import Given, Run
from .gradients import Loss, loss_of_task, slopes
from .large_blocks import giving_back
from .moments import Moments, affordable, second_moments
from .recording import Order, Stops, resume, stops_of
from .source import Source, Stream, asked, no_data

MEMORY = 1 << 25
"""Bytes of activations that may be recorded ahead of the site that is at work."""

SITE_SAMPLES = 32
"""Samples on which the error of one site is measured; the whole model is measured on all."""

FEWEST, NUMBERS = 8, 1 << 20
"""Of large inputs, images say, as many as hold so many numbers, but not fewer than these: each has
numbers enough for the mean of a square.
"""


@dataclass(frozen=True)
class Example:
    """Positional inputs of the model, and a name for them in messages."""

    label: str
    args: tuple[Any, ...]


def bytes_in(example: Example) -> int:
    """Bytes of its tensors."""
    leaves = (leaf for leaf in tree_leaves(example.args) if isinstance(leaf, Tensor))
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves)


def numbers_in(example: Example) -> int:
    """How many numbers its tensors hold: what running it costs, about."""
    return sum(leaf.numel() for leaf in tree_leaves(example.args) if isinstance(leaf, Tensor))


class Samples:
    """What the user gave to run the model on.

    `inputs` is one example batch (positional), `others` are examples of other sizes on which the
    captured graph was proven. `source(split)` yields batches (`batches.py`); None where no data was
    given. `taken` says how a batch becomes positional inputs. `recordings` counts how often all
    that was recorded was dropped.
    """

    def __init__(
        self,
        inputs: tuple[Any, ...],
        source: Source | None = None,
        loss: Loss = loss_of_task,
        others: Sequence[Example] = (),
        taken: Taken | None = None,
    ) -> None:
        self.taken = taken or Taken(example=inputs)
        self.inputs = inputs
        self.others = tuple(others)
        self.source = source
        self.loss = loss
        self.named: dict[str, Batches] = {}
        self.streams: dict[str, Stream] = {}
        self._values: dict[fx.Node, list[Any]] = {}
        self._ahead: list[tuple[fx.Node, ...]] = []
        self._moments: dict[fx.Node, Moments] = {}
        self._slopes: dict[tuple[fx.GraphModule, bool], dict[int, Tensor]] = {}
        self._divides: bool | None = None
        self.recordings = 0
        self._stops: list[Stops] | None = None
        self._given: Given | None = None

    @property
    def examples(self) -> tuple[Example, ...]:
        """The example and those of other sizes."""
        return (Example("the example", self.inputs), *self.others)

    def define(self, name: str, split: str, count: int | None, place: Label) -> None:
        """`data calib = sample("train", 512)`: the first samples of a split under a name. No batch
        is asked for behind them.
        """
        if self.source is None:
            return
        batches = asked(self.source, split, place)
        self.named[name] = list(batches) if count is None else first(batches, count, self.size)

    def define_stream(self, name: str, split: str, place: Label) -> None:
        """`data train = stream("train")`: nothing is read before somebody trains on it."""
        if self.source is not None:
            self.streams[name] = Stream(self.source, split, place)

    def batches(self, name: str | None, place: Label) -> Batches:
        """The batches under a name. Raises D002 where the user gave no data, or data without a
        batch, D009 where they are not in memory.
        """
        if self.source is None:
            raise no_data(place)
        if name in self.streams:
            raise fail("D009", f"`{name}` is a stream, and only training reads one", place)
        if name is None or name not in self.named:
            hint = next(
                iter(did_you_mean(name or "", self.named)),
                f"declared: {', '.join(self.named) or 'none'}",
            )
            raise fail("D003", f"no data is called `{name}`", place, help=hint)
        if not self.named[name]:
            hint = "give a list or a loader of batches; an iterator yields its batches only once"
            raise fail("D002", f"`{name}` holds no batch", place, help=hint)
        return self.named[name]

    def args(self, batch: Any) -> tuple[Any, ...]:
        """The positional inputs of a batch. Raises D007 where it does not fit the model."""
        return self.taken.pair(batch)[0]

    def size(self, batch: Any) -> int:
        """How many samples a batch holds, as its inputs say."""
        return batch_size(self.args(batch))

    def count(self, batches: Batches) -> int:
        """How many samples the batches hold, as their targets say."""
        return sum(counted(y, args) for args, y in map(self.taken.pair, batches))

    def calibration(self, module: fx.GraphModule) -> list[tuple[Any, ...]]:
        """Model inputs to measure sites on: calibration data, else the example inputs. The batch
        that is one too many is cut, if the model takes a part of it: an input may have as many
        features as there are samples.
        """
        batches = self.named.get("calib") or next(iter(self.named.values()), None)
        if not batches:
            return [self.inputs]
        args = [self.args(batch) for batch in first(batches, self._site_samples(), self.size)]
        if not is_batched(args[0]):
            return args[:1]
        if self._divides is None:
            last = self.args(batches[len(args) - 1])
            self._divides = _same(args[-1], last) or _runs(module, args[-1])
        return args if self._divides else [self.args(batches[0])]

    def _site_samples(self) -> int:
        """How many samples sites are measured on."""
        each = numbers_in(Example("", self.inputs)) // max(1, batch_size(self.inputs))
        return max(FEWEST, min(SITE_SAMPLES, NUMBERS // max(1, each)))

    @property
    def generated(self) -> bool:
        """Whether sites are measured on the example inputs for want of data."""
        return not self.named

    # -- recording ---------------------------------------------------------------------------------

    def forget(self, behind: Order | None = None) -> None:
        """Drops recorded values: the graph has changed in value, nothing of it in front of `behind`
        where that is known.
        """
        self._values.clear()
        self._moments.clear()
        self._slopes.clear()
        self._stops = None
        known = self._given
        self._given = None if known is None or behind is None else known.behind(behind)
        self.recordings += 1

    def go_on(self, module: fx.GraphModule) -> None:
        """From now on a run begins where an earlier one stood: sites are looked at in any order,
        and between them the graph is changed.
        """
        if self._stops is None:
            self._stops = stops_of(module, len(self.calibration(module)), MEMORY)

    def changed(self, order: Order) -> None:
        """The graph is changed there: what held runs stand behind it is worth nothing."""
        self._given = None
        for stops in self._stops or ():
            stops.drop(order)

    def given(self, module: fx.GraphModule, run: Run) -> Given:
        """What the graph, as it is now, gives for the calibration inputs: all who compare a changed
        model with it share one run. `run` gives the outputs of any model for one batch.
        """
        if self._given is None or self._given.model is not module:
            self._given = Given(module, run, self.calibration(module))
        return self._given

    def seen(self, module: fx.GraphModule, nodes: Sequence[fx.Node]) -> list[dict[fx.Node, Any]]:
        """What `nodes` hold on each batch of the calibration inputs: tensors, and numbers that
        follow the sizes of the batch.
        """
        missing = [node for node in nodes if node not in self._values]
        if missing:
            wanted = dict.fromkeys((*missing, *self._affordable()))
            data = self.calibration(module)
            with giving_back():
                runs = self._runs(module, list(wanted), data)
            self._values |= {node: [run[node] for run in runs] for node in wanted}
        count = len(self._values[nodes[0]]) if nodes else 1
        return [{node: self._values[node][at] for node in nodes} for at in range(count)]

    def _runs(
        self, module: fx.GraphModule, nodes: list[fx.Node], data: list[tuple[Any, ...]]
    ) -> list[dict[fx.Node, Any]]:
        if not self._stops:
            return [record(module, nodes, args) for args in data]
        pairs = zip(data, self._stops, strict=True)
        return [resume(module, nodes, args, stops) for args, stops in pairs]

    def values(self, module: fx.GraphModule, nodes: Sequence[fx.Node]) -> dict[fx.Node, Any]:
        """The same with the tensors of all batches concatenated along axis 0."""
        runs = self.seen(module, nodes)
        return {node: _joined([run[node] for run in runs]) for node in nodes}

    def look_ahead(self, sites: Iterable[Sequence[fx.Node]]) -> None:
        """What sites will ask for, one after another. Nothing is recorded before the first one
        asks; then one pass through the model serves as many of the next ones as memory allows.
        """
        self._ahead = [tuple(nodes) for nodes in sites]

    def leave(self, nodes: Sequence[fx.Node]) -> None:
        """A site is done with `nodes`: what no later one asks for is dropped."""
        if tuple(nodes) in self._ahead:
            del self._ahead[: self._ahead.index(tuple(nodes)) + 1]
        wanted = {node for later in self._ahead for node in later}
        self._values = {node: kept for node, kept in self._values.items() if node in wanted}

    def _affordable(self) -> Iterator[fx.Node]:
        """The nodes of the next sites that memory allows."""
        used, scale = 0, max(1, self._site_samples() // max(1, batch_size(self.inputs)))
        for node in (node for nodes in self._ahead for node in nodes if not is_erased(node)):
            used += 0 if node in self._values else _bytes(node) * scale
            if used > MEMORY:
                return
            if node not in self._values:
                yield node

    def moments(self, module: fx.GraphModule, call: OpCall, alike: Sequence[OpCall]) -> Moments:
        """What multiplies the weight of `call`, on average over all calibration data.

        One pass through the model also serves as many calls of `alike` as the memory bound holds.
        """
        if call.node not in self._moments:
            data = self._calibration_data()
            self._moments = second_moments(module, affordable(call, alike), data)
        return self._moments[call.node]

    def recorded(
        self, module: fx.GraphModule, nodes: Sequence[fx.Node]
    ) -> Iterator[dict[fx.Node, Any]]:
        """What `nodes` hold on each batch of all calibration data."""
        batches = [(self.inputs, None)] if self.generated else self._calibration_data()
        return (record(module, nodes, args) for args, _ in batches)

    def slopes(self, module: fx.GraphModule, squared: bool) -> dict[int, Tensor]:
        """The gradients of the loss on the calibration data, by the identity of the parameter:
        their mean, or the mean of the squared ones of single samples.

        Raises D002 without data, D006 where the loss cannot be computed.
        """
        if self.generated:
            raise no_data()
        key = (module, squared)
        if key not in self._slopes:
            data = self._calibration_data()
            self._slopes[key] = slopes(module, data, self.loss, squared=squared)
        return self._slopes[key]

    def _calibration_data(self) -> Pairs:
        batches = self.named.get("calib") or next(iter(self.named.values()))
        return [self.taken.pair(batch) for batch in batches]


def _same(args: tuple[Any, ...], whole: tuple[Any, ...]) -> bool:
    """Whether nothing was cut off."""
    return all(a is b for a, b in zip(tree_leaves(args), tree_leaves(whole), strict=True))


def _runs(module: fx.GraphModule, args: tuple[Any, ...]) -> bool:
    """Whether the graph, as it is now, takes these inputs."""
    try:
        interpret(fx.Interpreter(module), args, "the data")
    except RunFailed:
        return False
    return True


def _bytes(node: fx.Node) -> int:
    spec = node.meta.get("val")
    return 4 * torch.Size(spec.shape).numel() if hasattr(spec, "shape") else 0


def _joined(values: list[Any]) -> Any:
    if len(values) == 1 or not isinstance(values[0], Tensor) or values[0].dim() == 0:
        return values[0]
    same = all(v.shape[1:] == values[0].shape[1:] for v in values)
    return torch.cat(values) if same else values[0]
