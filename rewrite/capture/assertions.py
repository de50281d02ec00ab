"""Conditions as nodes: `torch._assert(what must hold, message)`, which needs nothing but torch.

The message is put together at every call, since only then the sizes are known.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

from torch import fx

from ..graph.values import PathStep
from ..torch_internals import checked
from .conditions import Findings, Held
from .sizes import CallAxis
from .structure import Reading, StructureDemand
from .watch import is_given, is_size, roots, through_tensors

_REMEDY = "capture again with an example like this call"


class ConditionWriter:
    """Writes conditions into a graph, behind its inputs; what reads a size inside the graph stands
    behind that size.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        inputs = graph.find_nodes(op="placeholder")
        self.inputs = {str(node.target).lstrip("*"): node for node in inputs}
        self.top = self.place = next(node for node in graph.nodes if node.op != "placeholder")
        self.known: dict[Any, fx.Node] = {}
        self.source = ""

    def structure(self, demands: Iterable[StructureDemand]) -> None:
        for demand in demands:
            part = self._part(demand.parameter, demand.steps)
            measured = self._read(demand.measure, part)
            met = self._call(demand.test, (measured, demand.operand), True)
            shown = self._read(demand.shown, part)
            self._assert(met, demand.text, (shown,) if "%s" in demand.said else ())

    def sizes(self, held: Iterable[Held], findings: Findings) -> None:
        for each in held:
            self.source = each.condition.source
            self._size_holds(each, findings)
            self.place = self.top

    def _size_holds(self, held: Held, findings: Findings) -> None:
        shown = (*map(self._size, held.axes), *(self._number(n) for n in held.numbers))
        node, value = held.node, held.value
        if node is None:
            node, value = shown[0], held.axes[0].size
        else:
            known = self._sizes_of(node, findings)
            self.place = self.top if known is not None else node.next
            node = node if known is None else self._copy(node, known)
        met = node if value is True else self._test(node, value)
        self._assert(met, held.text, shown)

    def _test(self, node: fx.Node, value: Any) -> fx.Node:
        if value is False:
            return self._call(operator.not_, (node,), True)
        return self._call(operator.eq, (node, value), True)

    def _sizes_of(self, node: fx.Node, findings: Findings) -> dict[fx.Node, fx.Node] | None:
        """For each size that a number is computed from the same size of an input; None where there
        is none for one of them, or where a tensor stands in between: those are not made twice.
        """
        sizes = {root: findings.axis_of(root) for root in roots(node) if is_size(root)}
        if None in sizes.values() or through_tensors(node):
            return None
        return {root: self._size(axis) for root, axis in sizes.items() if axis is not None}

    # -- nodes ---------------------------------------------------------------------------------

    def _copy(self, node: fx.Node, known: Mapping[fx.Node, fx.Node]) -> fx.Node:
        """A number computed again, from the sizes of inputs."""
        if node in known or node.op == "placeholder":
            return known.get(node, node)
        copied = fx.map_arg((node.args, node.kwargs), lambda source: self._copy(source, known))
        return self._call(node.target, copied[0], node.meta["val"], copied[1])

    def _number(self, node: fx.Node) -> fx.Node:
        return self._copy(node, {}) if is_given(node) else node

    def _read(self, reading: Reading, part: fx.Node) -> fx.Node:
        if reading is None:
            return part
        target, args, kwargs = reading if isinstance(reading, tuple) else (reading, (), {})
        return self._call(target, (part, *args), None, kwargs)

    def _part(self, parameter: str, steps: tuple[PathStep, ...]) -> fx.Node:
        node = self.inputs[parameter]
        for step in steps:
            node = self._call(getattr if step.attribute else operator.getitem, (node, step.key))
        return node

    def _size(self, axis: CallAxis) -> fx.Node:
        part = self._part(axis.parameter, axis.steps)
        return self._call("size", (part, axis.axis), axis.size)

    def _call(self, target: Any, args: Any, value: Any = None, kwargs: Any = None) -> fx.Node:
        """A call at the present place, written once; a word names a method."""
        kind = "call_method" if isinstance(target, str) else "call_function"
        key = (target, repr((args, kwargs)), self.place)
        if key not in self.known:
            with self.graph.inserting_before(self.place):
                node = self.graph.create_node(kind, target, args, kwargs or {})
            node.meta.update(val=value, site="", source=self.source, mutates=(), aliases=())
            self.known[key] = node
        return self.known[key]

    def _assert(self, met: fx.Node, text: str, shown: tuple[fx.Node, ...]) -> None:
        full = f"{text}; {_REMEDY}"
        message = self._call(operator.mod, (full, shown), full) if shown else full % ()
        self._call(checked, (met, message))
