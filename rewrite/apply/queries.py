"""Questions that rules ask about the graph: who owns a weight, in which mode a layer is, what
something costs.

Each is called as `question(scope, *args)`. They read the state and never change it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Number
from typing import Any

import torch
from torch import Tensor, fx

from ...grammar.diagnostics import Label, fail
from ...grammar.reached import reached
from ..graph.exits import outputs_of
from ..journal import Costs
from ..match.repeats import foreign_readers
from ..measure.moments import Moments, why_no_moments
from ..ops.call import OpCall
from ..ops.runtime_size import RuntimeSize, size_of
from ..ops.spec import TensorSpec
from ..rules.dimension import DIM_QUESTIONS, DimValue, thinned
from ..rules.global_ranking import survivors
from ..rules.scope import ParamRef, Scope
from .cost import calls_costs, not_counted, plan_costs, present_costs
from .planned import Plan, Planned


def owned(scope: Scope, *refs: Any) -> bool:
    """Whether each weight has one reader only; absent weights own themselves."""
    return all(not foreign_readers(scope, ref) for ref in _params(refs))


def sharers(scope: Scope, *refs: Any) -> str:
    """The sites that also read the weights."""
    found = {
        node.meta.get("site") or node.name
        for ref in _params(refs)
        for node in foreign_readers(scope, ref)
    }
    return ", ".join(sorted(found)) or "nobody"


def _params(refs: tuple[Any, ...]) -> list[ParamRef]:
    return [ref for ref in refs if isinstance(ref, ParamRef)]


def calls(scope: Scope, call: OpCall) -> int:
    """How many nodes run the layer of `call`."""
    paths = [path for path in call.params.values() if path is not None]
    return max((len(scope.state.readers(path)) for path in paths), default=1)


def users(scope: Scope, value: fx.Node) -> int:
    """How many ops read a value of the model, its output among them."""
    return len(value.users)


def mode(scope: Scope, call: OpCall) -> str:
    """`train` if the op behaves as in training, else `eval`."""
    return "train" if call.attrs.get("training") else "eval"


def known(scope: Scope, value: Any) -> bool:
    return value is not None


def constant(scope: Scope, value: Any) -> bool:
    """Whether a matched operand is the same for every input: a number, or a tensor that the model
    keeps.
    """
    return value.op == "get_attr" if isinstance(value, fx.Node) else not isinstance(value, Planned)


def numel(scope: Scope, value: Any) -> int:
    return math.prod(shape(scope, value))


def rank(scope: Scope, value: Any) -> int:
    """The number of axes of a value; 0 of a number."""
    return len(shape(scope, value))


def shape(scope: Scope, value: Any) -> tuple[int, ...]:
    """The extents of a value; none of a number. Raises ValueError for what has none: a list, an
    absent operand.
    """
    found = _described(value)
    if isinstance(found, (TensorSpec, Tensor)):
        return tuple(found.shape)
    if isinstance(found, Number):
        return ()
    raise ValueError(f"{_kind(found)} has no axes")


def size(scope: Scope, value: Any, axis: int = 0) -> int:
    """How many features a dimension has; the extent of an axis of anything else."""
    if isinstance(value, DimValue):
        return int(value)
    extents = shape(scope, value)
    if not -len(extents) <= axis < len(extents):
        raise ValueError(f"it has {len(extents)} axes, and none is axis {axis}")
    return extents[axis]


def below(scope: Scope, value: fx.Node) -> int:
    """How many nodes of the graph read a value, or what is computed from it."""
    return len(reached([value], lambda node: node.users)) - 1


def runtime_size(scope: Scope, value: Any, axis: int = 0) -> RuntimeSize:
    """The extent of an axis as the rewritten model computes it at each call."""
    spec = value.specs[0] if isinstance(value, Planned) else value.meta["val"]
    return size_of(value, axis, spec.shape[axis])


def dtype(scope: Scope, value: Any) -> str:
    """The element type of a value (`float32`); of a number the word for it: `int`, `float`."""
    found = _described(value)
    if isinstance(found, (TensorSpec, Tensor)):
        return str(found.dtype).removeprefix("torch.")
    if isinstance(found, Number):
        return type(found).__name__
    raise ValueError(f"{_kind(found)} has no element type")


def _described(value: Any) -> Any:
    """What is known of a value: its specification, or the value itself where it is no tensor."""
    if isinstance(value, Planned):
        return value.specs[0]
    if isinstance(value, fx.Node):
        return value.meta.get("val")
    return value.tensor if isinstance(value, ParamRef) else value


def _kind(value: Any) -> str:
    if value is None:
        return "what is absent"
    return "a list" if isinstance(value, (tuple, list)) else f"a {type(value).__name__}"


def moments(scope: Scope, call: OpCall) -> Tensor | None:
    """Second moments E[u u^T] of what multiplies the weight of a linear layer or convolution, in
    float64.

    `u` is the input vector of a linear layer [J], or the input patch [J], J = I * K * L, of a
    convolution. Of one in groups [G, J, J], a patch for each of them. None without data. Raises
    ValueError for any other op, and where they take more memory than they may.
    """
    found = _moments(scope, call)
    if found is None:
        return None
    return found.second if len(found.second) > 1 else found.second[0]


def mean_input(scope: Scope, call: OpCall) -> Tensor | None:
    """The mean E[u] of what multiplies the weight of a linear layer or convolution, float64
    [G, J] for G groups, as of `moments`.
    """
    found = _moments(scope, call)
    return None if found is None else found.mean


def _moments(scope: Scope, call: OpCall) -> Moments | None:
    state, why = scope.state, why_no_moments(call)
    if why:
        raise ValueError(why)
    if state.samples.generated:
        return None
    alike = [state.view.call(node) for node in state.view.calls_of(call.op.name)]
    return state.samples.moments(state.module, call, [other for other in alike if other])


def observed(scope: Scope, value: fx.Node) -> Tensor | None:
    """What a value holds on all calibration data by channel, its second axis: float64 [C, numbers].
    None without data.
    """
    state = scope.state
    if state.samples.generated:
        return None
    found = [batch[value] for batch in state.samples.recorded(state.module, [value])]
    rows = [thinned(v.detach().double().movedim(1, 0).flatten(1)) for v in found]
    return thinned(torch.cat(rows, 1))


def seen_range(scope: Scope, value: fx.Node) -> tuple[float, float]:
    """The smallest and the largest number that a value holds on all calibration data, on the
    example inputs where there is none. Raises K001 where it holds none, K002 where one of them is
    not finite.
    """
    state = scope.state
    found = [batch[value] for batch in state.samples.recorded(state.module, [value])]
    held = [v.detach() for v in found if v.numel()]
    if not held:
        raise fail("K001", "`seen_range`: it holds no number on the data", Label(None))
    ends = torch.stack([end.double() for v in held for end in v.aminmax()])
    if not ends.isfinite().all():
        raise fail("K002", "`seen_range`: it is not finite on the data", Label(None))
    return float(ends.min()), float(ends.max())


def cost(field: str) -> Callable[..., Any]:
    """`macs(before)`, `params(after)`, `bytes(model)`, `ops(c)`."""

    def ask(scope: Scope, what: Any) -> int:
        return getattr(_costs(scope, what), field)

    return ask


def macs(scope: Scope, what: Any) -> int:
    """Multiply-accumulates of something. Raises R014 where some are not counted, unless a claim is
    judged, which supposes what the others are (claims.py).
    """
    found = _costs(scope, what)
    if not found.uncounted:
        return found.macs
    if scope.facts.supposed is None:
        raise not_counted(found, Label(None))
    return found.macs + scope.facts.supposed(found.uncounted)


def _costs(scope: Scope, what: Any) -> Costs:
    state = scope.state
    if isinstance(what, OpCall):
        return calls_costs(state.module, [what])
    if isinstance(what, Planned):
        return plan_costs(Plan([what]))
    if isinstance(what, ParamRef):
        return Costs(what.tensor.numel(), what.tensor.numel() * what.tensor.element_size(), 0, 0)
    if what == "model":
        return scope.facts.model or present_costs(state)
    known = {"before": scope.facts.before, "after": scope.facts.after}.get(what)
    if known is not None:
        return known() if callable(known) else known
    raise fail(
        "R004",
        f"the cost of `{what}` is not known here",
        Label(None),
        help="before, after, model or an op",
    )


def measured(field: str) -> Callable[..., float]:
    """`error(y)`: relative L2 error of a matched value at this site, or of the model's outputs.
    `equal(y)`: the largest relative difference of a value before and after the rewrite; 0 is bit
    for bit. `drift(outputs)`: relative L2 distance of the outputs from those of the original model.
    `drop(metric)`: how far a metric fell below the original model's; negative if it rose.
    """

    def ask(scope: Scope, what: Any) -> float:
        measure = getattr(scope.facts, field)
        if measure is None:
            raise LookupError(f"`{field}` is not known here")
        return measure(what)

    return ask


def latency(scope: Scope, what: Any) -> float:
    """Milliseconds for the example inputs, the median of turns with the model before. Raises R004
    where there is no whole model to run.
    """
    if scope.facts.latency is None:
        place = Label(None)
        hint = "ask in a `budget`, in `until`, or in `ensure` of a rule over dimensions"
        raise fail("R004", "there is no whole model to time here", place, help=hint)
    return scope.facts.latency(what)


def params(scope: Scope, what: Any) -> Any:
    """How many parameters something has; of a dimension, the numbers that carry it."""
    if isinstance(what, DimValue):
        return DIM_QUESTIONS["params"](scope, what)
    return cost("params")(scope, what)


def sparsity(scope: Scope, what: Any) -> float:
    """The share of zeros among the weights of the model: matrices and kernels, each memory once."""
    held = {id(w): w for w in scope.state.module.parameters() if w.dim() > 1}
    zeros = sum(int((w == 0).sum()) for w in held.values())
    return zeros / max(1, sum(w.numel() for w in held.values()))


def output_size(scope: Scope, what: Any, axis: int = -1) -> int:
    """The extent of an axis of what the model returns: of logits [N, C] the number of classes.
    Raises ValueError where it returns several values.
    """
    outputs = outputs_of(scope.state.module.graph)
    if len(outputs) != 1:
        raise ValueError(f"the model returns {len(outputs)} values")
    return size(scope, outputs[0], axis)


QUESTIONS: Mapping[str, Callable[..., Any]] = {
    "owned": owned,
    "sharers": sharers,
    "calls": calls,
    "users": users,
    "mode": mode,
    "known": known,
    "constant": constant,
    "numel": numel,
    "rank": rank,
    "shape": shape,
    "size": size,
    "runtime_size": runtime_size,
    "below": below,
    "dtype": dtype,
    "moments": moments,
    "mean_input": mean_input,
    "observed": observed,
    "seen_range": seen_range,
    "error": measured("error"),
    "equal": measured("equal"),
    "drift": measured("drift"),
    "drop": measured("drop"),
    "latency": latency,
    **DIM_QUESTIONS,
    "params": params,
    "sparsity": sparsity,
    "output_size": output_size,
    "survivors": survivors,
    "macs": macs,
    "bytes": cost("bytes"),
    "ops": cost("ops"),
}
