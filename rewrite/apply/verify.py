"""Verification of one application: does the rewrite compute what the perturbed original computes?

The perturbed matched nodes and the planned ops run on the same inputs, once in float64 with
unrounded weights (this sees wrong algebra: its tolerance is a few thousand units of 1e-16) and once
in the model's own precision (this sees a weight stored in too small a type). The tolerance is
scaled by the magnitude of the sums inside, see rounding_model.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ...grammar.diagnostics import Label, fail
from ..graph.emit import Emitted
from ..journal import Verdict, VerdictKind
from ..match.site import Site
from ..measure.rounding_model import rounding, tolerance
from ..ops.spec import TensorSpec
from ..rules.state import State
from .error_scale import Scale
from .inputs import Probe, probes
from .perturbed import run_perturbed
from .planned import Plan, Planned
from .run import (
    Env,
    cast,
    one_thread,
    operand_value,
    run_emitted,
    run_plan,
    weights_read,
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One output of both sides: the largest difference, and what was allowed where it is relatively
    largest.
    """

    name: str
    worst: float
    allowed: float
    note: str = ""

    @property
    def ratio(self) -> float:
        if self.worst == 0:
            return 0.0
        bounded = math.isfinite(self.worst) and math.isfinite(self.allowed) and self.allowed > 0
        return self.worst / self.allowed if bounded else math.inf


def check_shapes(site: Site, plan: Plan) -> Verdict:
    """Every output keeps shape and dtype; answered from declarations, so nothing runs."""
    for name, node in site.outputs.items():
        before, after = node.meta.get("val"), spec_after(plan.outputs[name])
        if before != after:
            said = f"`{name}` is {before} before and {after} after"
            return Verdict("shapes", "proved", False, detail=said, kind=VerdictKind.SHAPES)
    said = "from op declarations"
    return Verdict("shapes", "proved", True, detail=said, kind=VerdictKind.SHAPES)


def spec_after(value: Any) -> Any:
    """What is known of a value that a plan gives to an output."""
    if isinstance(value, Planned):
        return value.specs[0]
    return value.meta.get("val") if isinstance(value, fx.Node) else value


CLAIMS = {
    VerdictKind.DOUBLE: "rewrite equals perturbed original, float64",
    VerdictKind.OWN: "the same, in the model's dtype",
    VerdictKind.TYPES: "rewrite equals perturbed original, in the types that its ops name",
    VerdictKind.SIZES: "the same, at other sizes",
}


def free_inputs(site: Site, plan: Plan) -> list[fx.Node]:
    """What both sides read from outside, weights aside."""
    extra = [node for node in plan.reads if node not in site.nodes]
    return [node for node in dict.fromkeys([*site.inputs, *extra]) if node.op != "get_attr"]


def check_on(
    state: State, site: Site, plan: Plan, emitted: Mapping[Planned, Emitted], *, small: bool
) -> tuple[Verdict, ...]:
    """Both sides on small inputs or on those of the example's size, in both precisions."""
    both = Both(state, site, plan, emitted)
    wide = both.wide
    with one_thread() if small else nullcontext():
        inputs = free_inputs(site, plan)
        special, codes = _defined_for_all(site, plan), _codes(site, plan)
        drawn = probes(state, inputs, small=small, special=special, codes=codes)
        tries, left = both.accepted(drawn)
        runs = [both.compare(tries[0], left, wide)]
        runs += [both.compare(probe, both.left(probe, wide), wide) for probe in tries[1:]]
        samples = sum(probe.samples for probe in tries)
        if wide is None:
            found = (verdict_of(VerdictKind.TYPES, runs, samples),)
        else:
            own = [both.compare(tries[0], both.left(tries[0], None), None)]
            found = (
                verdict_of(VerdictKind.DOUBLE, runs, samples),
                verdict_of(VerdictKind.OWN, own, tries[0].samples),
            )
    if all(verdict.holds for verdict in found):
        _require_numbers(site, left)
    return found


def _codes(site: Site, plan: Plan) -> set[fx.Node]:
    """The values that ops on both sides read as bytes that stand for numbers."""
    read = [(item.op.inputs, item.inputs) for item in (*site.calls, *plan.ops)]
    pairs = (pair for specs, values in read for pair in zip(specs, values, strict=False))
    return {v for spec, v in pairs if spec.kind == CODES and isinstance(v, fx.Node)}


def _require_numbers(site: Site, left: Env) -> None:
    """Raises V106 where every result is empty: then any two sides agree."""
    results = [left[node] for node in site.outputs.values()]
    if results and all(isinstance(v, Tensor) and not v.numel() for v in results):
        note = "every result is empty"
        place = Label(None, where=site.name)
        raise fail("V106", "nothing of the matched ops can be compared", place, note=note)


CODES = "uint8"
"""The declared type of what reads codes."""

LEAVES = frozenset({"elementwise", "movement", "reduction", "pooling"})
"""Traits of ops that give nan or an infinity for one of their own, and for no other number."""


def _defined_for_all(site: Site, plan: Plan) -> bool:
    """Whether both sides must agree on nan and infinities: what an op computes element by element,
    or over an axis, is defined for them. A product with weights is not judged: sums of infinities
    may be merged away.
    """
    kinds = [item.op.traits for item in (*site.calls, *plan.ops)]
    values = [call.node.meta.get("val") for call in site.calls]
    kept = [v.dtype for v in values if isinstance(v, TensorSpec) and v.dtype != torch.bool]
    if not all(dtype.is_floating_point for dtype in kept):
        return False  # nan is no whole number: what stands for it is not defined
    return all(traits & LEAVES for traits in kinds)


def named_weights(site: Site, plan: Plan) -> list[fx.Node]:
    """The `get_attr` nodes that either side reads."""
    read = [node for call in site.calls for node in call.node.all_input_nodes]
    return [node for node in (*read, *plan.reads) if node.op == "get_attr"]


def verdict_of(kind: VerdictKind, runs: Sequence[Sequence[Comparison]], samples: int) -> Verdict:
    claim = CLAIMS[kind]
    each = [max(run, key=lambda c: c.ratio) for run in runs if run]
    if not each:
        return Verdict(claim, "not checked", True, detail="the rule defines no output", kind=kind)
    # The first draw that fails tells more than the worst: draws become stranger.
    worst = next((c for c in each if c.ratio > 1.0), max(each, key=lambda c: c.ratio))
    detail = (
        f"`{worst.name}`"
        if math.isfinite(worst.worst)
        else f"`{worst.name}` is infinite on one side only"
    )
    return Verdict(
        claim,
        "tested",
        worst.ratio <= 1.0,
        samples,
        worst.worst,
        worst.allowed,
        worst.note or detail,
        kind=kind,
    )


class Both:
    """Both sides of one application on the same inputs. In every precision they are judged by the
    same magnitudes, those of the probe.

    wide: float64, in which only wrong algebra makes a difference; None where an op names a type (a
    cast): then the types are part of what is computed, and both sides run in them. Where `perturb`
    names the types that the new ops name, both sides run in float64 with these roundings alone.
    """

    def __init__(
        self, state: State, site: Site, plan: Plan, emitted: Mapping[Planned, Emitted]
    ) -> None:
        self.state, self.site, self.plan, self.emitted = state, site, plan, emitted
        self.named = named_weights(site, plan)
        # What the rule computed with is in double precision already.
        self.doubles = {**site.scope.doubles, **plan.moved}
        self.scales: dict[int, Scale] = {}
        made = () if plan.rounds else plan.ops
        typed = any(item.op.names_type(item.attrs) for item in (*site.calls, *made))
        self.wide = None if typed else torch.float64

    def accepted(self, drawn: Iterable[list[Probe]]) -> tuple[list[Probe], Env]:
        """The first draws whose shapes the matched nodes accept, with what the nodes make of them:
        a kernel may be larger than a small image.
        """
        refused: Exception | None = None
        for tries in drawn:
            try:
                return tries, self.left(tries[0], self.wide)
            except (RuntimeError, ValueError, IndexError, AssertionError) as error:
                refused = error
        place = Label(None, where=self.site.name)
        note = str(refused).splitlines()[0]
        where = "their own types" if self.wide is None else "float64"
        raise fail("V106", f"the matched ops cannot run in {where}", place, note=note)

    def left(self, probe: Probe, dtype: torch.dtype | None) -> Env:
        """The perturbed original on a probe."""
        module, moved = self.state.module, self.plan.moved if dtype is None else self.doubles
        env = {node: cast(value, dtype or _own_dtype(node)) for node, value in probe.values.items()}
        env |= weights_read(module, self.named, moved, dtype)
        return run_perturbed(module, self.site, self.plan, env, moved, dtype)

    def compare(self, probe: Probe, left: Env, dtype: torch.dtype | None) -> list[Comparison]:
        """The outputs of the rewrite against those of `left`, what the original made of `probe`.

        In the model's own precision the new layers themselves run, in float64 their meaning.
        """
        outside = {node: value for node, value in left.items() if node not in self.site.gone}
        try:
            right = (
                run_plan(self.plan, outside, dtype)
                if dtype is not None
                else run_emitted(self.plan, self.emitted, outside)
            )
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
            note = f"the rewrite cannot run: {str(error).splitlines()[0]}"
            return [Comparison("", math.inf, 0.0, note)]
        return [self._output(probe, name, left, right) for name in self.site.outputs]

    def _output(self, probe: Probe, name: str, left: Env, right: Env) -> Comparison:
        node, new = self.site.outputs[name], self.plan.outputs[name]
        before, after = left[node], operand_value(new, right)
        if _identical(before, after):
            return Comparison(name, 0.0, 0.0)
        if not _comparable(before, after):
            return _difference(name, before, after, (before, 0))
        if id(probe) not in self.scales:
            self.scales[id(probe)] = Scale(self.site, self.plan, self.doubles, left, right)
        judged = self.scales[id(probe)].of(node, new)
        own = [left[node] for node in self.site.nodes]
        sides = [*own, *self.plan.coarse], [right[op] for op in self.plan.ops]
        return _difference(name, before, after, judged, rounding(before, *sides))


def _own_dtype(node: fx.Node) -> torch.dtype | None:
    spec = node.meta.get("val")
    return spec.dtype if isinstance(spec, TensorSpec) else None


def _identical(left: Any, right: Any) -> bool:
    """Whether both sides are the same to the bit: then no rounding needs to be judged."""
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return left is right
    return left.dtype == right.dtype and torch.equal(left, right)


def _comparable(left: Any, right: Any) -> bool:
    """Whether magnitudes can be found that judge both sides."""
    tensors = isinstance(left, Tensor) and isinstance(right, Tensor)
    return tensors and left.shape == right.shape and left.dtype == right.dtype


def _difference(
    name: str,
    left: Any,
    right: Any,
    judged: tuple[Any, int],
    unit: torch.dtype = torch.float64,
) -> Comparison:
    """`judged`: the magnitude of the result, and how many terms its sums have."""
    scale, count = judged
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return Comparison(name, 0.0 if left == right else float("inf"), 0.0)
    if left.shape != right.shape or left.dtype != right.dtype:
        return Comparison(
            name, float("inf"), 0.0, f"`{name}` is {_spec(left)} before and {_spec(right)} after"
        )
    if not left.is_floating_point():
        return Comparison(name, float((left != right).sum()), 0.0)
    if not torch.equal(left.isnan(), right.isnan()):
        return Comparison(name, float("inf"), 0.0, f"`{name}` is NaN at other places")
    return _floating(name, left, right, scale, tolerance(unit, count))


def _floating(name: str, left: Tensor, right: Tensor, scale: Tensor, factor: float) -> Comparison:
    same = (left == right) | left.isnan()
    apart = torch.where(same, 0.0, (left.double() - right.double()).abs())
    allowed = (
        (scale.abs() * factor).clamp_min(torch.finfo(left.dtype).tiny).broadcast_to(apart.shape)
    )
    if not apart.numel():
        return Comparison(name, 0.0, 0.0)
    # Where a weight is nan or infinite so is the scale: such elements must be the same, and must
    # not hide the others.
    ratio = torch.where(same, 0.0, (apart / allowed).nan_to_num(torch.inf))
    index = int(torch.where(allowed.isinf() & ~same, torch.inf, ratio).argmax())
    return Comparison(name, float(apart.flatten()[index]), float(allowed.reshape(-1)[index]))


def _spec(value: Tensor) -> TensorSpec:
    return TensorSpec(tuple(value.shape), value.dtype)
