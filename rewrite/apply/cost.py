"""The one cost model: parameters, bytes and multiply-accumulates, from declarations and tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from torch import Tensor, fx, nn

from ...grammar.checks.declared import BUFFERS
from ...grammar.checks.kind import DTYPES
from ...grammar.diagnostics import Label, LissomError, fail
from ..graph.building import assertions
from ..graph.index import GraphView
from ..graph.opaque import is_uncertain, opaque_costs
from ..journal import Costs
from ..ops.call import OpCall, module_at, tensor_at
from ..ops.opspec import OpSpec
from ..rules.scope import ParamRef
from ..rules.state import State
from .planned import Plan, Planned

NAMED = 3
"""Uncounted ops that one line names."""

SKIPPED = ("placeholder", "output", "get_attr")


def model_costs(module: fx.GraphModule, view: GraphView) -> Costs:
    """Costs of a whole model at its example inputs; tied parameters count once. Nodes that are no
    op are told: the multiply-accumulates are a lower bound where one of them has no known cost.
    """
    return _model_costs(module, view, lambda node: node_macs(view, node))


def _model_costs(
    module: fx.GraphModule, view: GraphView, macs_of: Callable[[fx.Node], int]
) -> Costs:
    trained = {id(tensor): tensor for tensor in module.parameters()}
    tensors = {**trained, **{id(tensor): tensor for tensor in module.buffers()}}
    checks = assertions(module.graph)
    nodes = [n for n in module.graph.nodes if n.op not in SKIPPED and n not in checks]
    macs = sum(map(macs_of, nodes))
    opaque = opaque_costs(module, view)
    macs += sum(node.macs or 0 for node in opaque)
    # A scripted part hands out its parameters as plain tensors.
    params = sum(tensor.numel() for tensor in trained.values())
    return replace(_sum(tensors.values(), macs, len(nodes)), params=params, opaque=opaque)


def present_costs(state: State) -> Costs:
    """Costs of the working model; counted once until it is changed."""
    if state.costs is None or state.costs[0] != state.version:
        state.costs = state.version, model_costs(state.module, state.view)
    return state.costs[1]


def said_of_uncounted(costs: Costs) -> str:
    """`1 op uncounted: lstm, 1,357,824 parameters`; "" where everything counts."""
    left = costs.uncounted
    if not left:
        return ""
    names = ", ".join(map(str, left[:NAMED]))
    more = f" and {len(left) - NAMED} more" if len(left) > NAMED else ""
    count = "1 op" if len(left) == 1 else f"{len(left)} ops"
    params = sum(node.params for node in left)
    return f"{count} uncounted: {names}{more}, {params:,} parameters"


def not_counted(costs: Costs, place: Label) -> LissomError:
    """R014: what is asked cannot be told from a lower bound."""
    hint = "ask for `params`, `bytes` or `latency`, or declare the op with `cost macs`"
    note = f"{said_of_uncounted(costs)}: {costs.uncounted[0].reason}"
    message = "the model's multiply-accumulates are not known"
    return fail("R014", message, place, note=note, help=hint)


def calls_costs(module: fx.GraphModule, calls: Iterable[OpCall]) -> Costs:
    """Costs of matched ops."""
    calls = list(calls)
    if not any(_weighs(call.op) for call in calls):
        return Costs(0, 0, 0, len(calls))
    paths = dict.fromkeys(
        path for call in calls for path in call.params.values() if path is not None
    )
    tensors = [tensor_at(module, path) for path in paths]
    return _sum(tensors, sum(map(call_macs, calls)), len(calls))


def plan_costs(plan: Plan) -> Costs:
    """Costs of the ops that a plan would build."""
    if not any(_weighs(planned.op) for planned in plan.ops):
        return Costs(0, 0, 0, len(plan.ops))
    weights = [
        (name, *_in_precision(planned, name, value))
        for planned in plan.ops
        for name, value in planned.params.items()
        if value is not None
    ]
    return Costs(
        sum(size for name, size, counts, _ in weights if counts and name not in BUFFERS),
        sum(count for *_, count in weights),
        sum(map(_planned_macs, plan.ops)),
        len(plan.ops),
    )


def _weighs(op: OpSpec) -> bool:
    """Whether the op can have weights or multiply: most ops of a graph only move and add."""
    return bool(op.params) or "macs" in op._costs


def node_macs(view: GraphView, node: fx.Node) -> int:
    """Multiply-accumulates of one node; 0 where it is no op."""
    call = view.call(node) if node.op not in SKIPPED else None
    return 0 if call is None else call_macs(call)


def call_macs(call: OpCall) -> int:
    """Multiply-accumulates of one call at its recorded shapes; 0 where the op declares none."""
    return call.op.macs(call.op.bind(call.shapes(), call.attrs)) if "macs" in call.op._costs else 0


def _planned_macs(planned: Planned) -> int:
    if "macs" not in planned.op._costs:
        return 0
    return planned.op.macs(planned.op.bind(planned.shapes, planned.attrs))


def _in_precision(planned: Planned, name: str, value: Tensor | ParamRef) -> tuple[int, bool, int]:
    """Numbers, whether they count as parameters, and bytes of a planned weight once it is stored.
    Whole numbers are positions, say, unless the op declares a type for them: int8 weights.
    """
    typed = any(spec.name == name and spec.kind in DTYPES for spec in planned.op.params)
    if isinstance(value, ParamRef):
        tensor, size = value.tensor, value.tensor.element_size()
    else:
        tensor = value
        size = planned.stored(value).itemsize
    return tensor.numel(), typed or tensor.is_floating_point(), tensor.numel() * size


def _sum(tensors: Iterable[Tensor], macs: int, ops: int) -> Costs:
    tensors = list(tensors)
    params = sum(t.numel() for t in tensors if isinstance(t, nn.Parameter))
    return Costs(params, sum(t.numel() * t.element_size() for t in tensors), macs, ops)


class RunningCosts:
    """What a model costs while it is being changed: only what changed is counted again."""

    def __init__(self, module: fx.GraphModule, view: GraphView) -> None:
        self.module, self.view = module, view
        self._macs: dict[fx.Node, int] = {}
        self._uncertain: set[fx.Node] = set()
        self._held: dict[fx.Node, list[Tensor]] = {}
        self._holders: Counter[int] = Counter()
        for node in module.graph.nodes:
            self._enter(node)
        self.costs = _model_costs(module, view, self._macs.__getitem__)

    def update(self, nodes: Sequence[fx.Node], gone: Sequence[fx.Node]) -> Costs:
        """The costs after a change: `nodes` are new or of another size, `gone` are not there any
        more.
        """
        uncertain = self._uncertain.intersection((*gone, *nodes))
        left, new = self._leave_all((*gone, *nodes)), _NOTHING
        for node in nodes:
            new = _added(new, self._enter(node))
        now = _added(self.costs - left, new)
        opaque, macs = self.costs.opaque, now.macs
        if uncertain or not self._uncertain.isdisjoint(nodes):
            macs -= sum(node.macs or 0 for node in opaque)
            opaque = opaque_costs(self.module, self.view)
            macs += sum(node.macs or 0 for node in opaque)
        self.costs = replace(now, macs=macs, opaque=opaque)
        return self.costs

    def _enter(self, node: fx.Node) -> Costs:
        """What the model costs more with a node."""
        macs = self._macs[node] = node_macs(self.view, node)
        held = self._held[node] = tensors_of(self.module, node)
        if is_uncertain(self.module, self.view, node):
            self._uncertain.add(node)
        first = [tensor for tensor in held if not self._holders[id(tensor)]]
        self._holders.update(map(id, held))
        return _sum(first, macs, int(node.op not in SKIPPED))

    def _leave_all(self, nodes: Sequence[fx.Node]) -> Costs:
        """What it costs less without nodes that it had."""
        known = [node for node in dict.fromkeys(nodes) if node in self._held]
        self._uncertain.difference_update(known)
        held = [tensor for node in known for tensor in self._held.pop(node)]
        self._holders.subtract(map(id, held))
        last = {id(tensor): tensor for tensor in held if not self._holders[id(tensor)]}
        macs = sum(self._macs.pop(node) for node in known)
        return _sum(last.values(), macs, sum(node.op not in SKIPPED for node in known))


_NOTHING = Costs(0, 0, 0, 0)


def _added(left: Costs, right: Costs) -> Costs:
    return left - (_NOTHING - right)


def tensors_of(module: nn.Module, node: fx.Node) -> list[Tensor]:
    """The parameters and buffers that a node holds, each once."""
    if node.op == "call_module":
        layer = module_at(module, str(node.target))
        return list({id(t): t for t in (*layer.parameters(), *layer.buffers())}.values())
    if node.op != "get_attr":
        return []
    place, _, name = str(node.target).rpartition(".")
    owner = module_at(module, place)
    found = owner._parameters.get(name, owner._buffers.get(name))
    return [] if found is None else [found]
