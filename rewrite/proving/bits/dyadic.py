"""Does the pass do what its rule says, to the bit?

Weights, constants and inputs of a grown model become small whole numbers times powers of two, in
float64. As long as every sum fits into 53 bits there is no rounding at all, so a correct exact
rewrite by the real engine, on torch's real kernels, must give the same bits. That no rounding took
place is checked: the magnitude of every sum (see rounding_model.py) times 2^(bits behind the
point) has to stay below 2^53.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from ....grammar.diagnostics import LissomError
from ...apply.engine import anchor, apply, ready_at
from ...apply.perturbed import perturbed_model
from ...graph.index import GraphView
from ...graph.snapshot import finish, snapshot
from ...ops.call import OpCall, tensor_at
from ...ops.opspec import OpSpec
from ...rules.binding import NoMatch
from ...rules.state import State
from ..models.double import widen
from ..models.grown import Grown
from ..models.pattern_builder import Planted
from ..subject import Subject
from ..trial import bound, condition, is_random, names_types, state_of
from .exactness import Sums

BIT_EQUAL, DIFFERS, NOT_APPLICABLE = "bit_equal", "differs", "not applicable"

WIDTHS = (14, 10, 7, 4)
"""Bits of a weight, widest first: a weight that was stored in half a float shows only in wide
ones."""

EPS = 2.0**-4
"""Epsilon of every batch norm: large enough that a rule which forgets it is far off."""


@dataclass(frozen=True, slots=True)
class DyadicResult:
    """What became of the instances in one model.

    reason: why nothing can be said. output, index, before, after: the first number that differs.
    width: bits of the weights it was found with.
    """

    verdict: str
    reason: str = ""
    output: int = 0
    index: tuple[int, ...] = ()
    before: float = 0.0
    after: float = 0.0
    width: int = 0


def check_dyadic(subject: Subject, grown: Grown, seed: int = 0) -> DyadicResult:
    """Applies the rule to the dyadic model and compares the outputs bit by bit; zeros of either
    sign are one number. `grown` stays as it is.
    """
    if names_types(state_of(subject, grown)):
        return DyadicResult(NOT_APPLICABLE, "an op names a type of numbers")
    result = DyadicResult(NOT_APPLICABLE, "no width of numbers fits")
    for width in WIDTHS:
        result = _tried(subject, dyadic(subject, grown, seed, width), width)
        if not result.reason.startswith(PREMISE):
            break
    return result


# -- the model -------------------------------------------------------------------------------------


def dyadic(subject: Subject, grown: Grown, seed: int = 0, width: int = WIDTHS[0]) -> Grown:
    """The same model in float64 with dyadic numbers, of `width` bits in weights and of 5 in inputs.

    Signs and zeros of weights stay, since rules look at them. The variance of a batch norm is s^2 -
    eps for a power of two s, its gain a multiple of s; divisors are powers of two. Functions around
    the instances that have many digits (tanh) give way to neg.
    """
    module = copy.deepcopy(grown.module).double()
    named = {node.name: node for node in module.graph.nodes}
    planted = [_elsewhere(instance, named) for instance in grown.planted]
    _Numbers(module, subject, planted, width, seed).set()
    generator = torch.Generator().manual_seed(seed + 1)
    inputs = tuple(_input(value, generator) for value in grown.inputs)
    widen(module.graph)
    module.recompile()
    return replace(grown, module=module, inputs=inputs, planted=planted)


def _elsewhere(planted: Planted, named: Mapping[str, fx.Node]) -> Planted:
    def find(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(find, value))
        return named[value.name] if isinstance(value, fx.Node) else value

    return Planted(
        {name: find(value) for name, value in planted.values.items()},
        {index: named[node.name] for index, node in planted.nodes.items()},
        {i: [named[node.name] for node in chain] for i, chain in planted.chains.items()},
    )


def _input(value: Tensor, generator: torch.Generator) -> Tensor:
    if not value.is_floating_point():
        return value
    return torch.randint(-31, 32, value.shape, generator=generator).double() / 4


class _Numbers:
    """Writes dyadic numbers into a model."""

    def __init__(
        self,
        module: fx.GraphModule,
        subject: Subject,
        planted: list[Planted],
        width: int,
        seed: int,
    ) -> None:
        self.module, self.width, self.planted = module, width, planted
        view = GraphView(module, subject.vocabulary)
        found = [view.call(node) for node in module.graph.nodes if node.op != "output"]
        self.calls = [call for call in found if call is not None]
        self.generator = torch.Generator().manual_seed(seed)

    def set(self) -> None:
        held = [*self.module.parameters(), *self.module.buffers()]
        for tensor in held:
            if tensor.is_floating_point():
                self._write(tensor, self._whole(tensor, self.width) / 2 ** (self.width - 4))
        matched = {node for p in self.planted for node in p.nodes.values()}
        matched |= {node for p in self.planted for chain in p.chains.values() for node in chain}
        for call in self.calls:
            if call.op.keeps_statistics:
                self._norm(call)
            elif _divides(call.op):
                self._divisor(call)
            elif _rounds(call.op) and call.node not in matched:
                call.node.target, call.node.kwargs = torch.neg, {}

    def _write(self, held: Tensor, value: Tensor) -> None:
        with torch.no_grad():
            held.copy_(value)

    def _whole(self, like: Tensor, width: int) -> Tensor:
        """Odd numbers of up to `width` bits, with the signs and zeros of `like`."""
        drawn = torch.randint(0, 1 << (width - 1), like.shape, generator=self.generator)
        return like.detach().sign() * (2 * drawn + 1)

    def _power(self, shape: Any) -> Tensor:
        """1/2, 1, 2 or 4."""
        return 2.0 ** torch.randint(-1, 3, shape, generator=self.generator).double()

    def _norm(self, call: OpCall) -> None:
        variance = call.tensor("running_var")
        if variance is None:
            return
        _set_eps(call)
        root = self._power(variance.shape)
        self._write(variance, root * root - EPS)
        gain = call.tensor("weight")
        if gain is not None:
            self._write(gain, root * self._whole(gain, 3))

    def _divisor(self, call: OpCall) -> None:
        divisor = call.inputs[1]
        if isinstance(divisor, fx.Node) and divisor.op == "get_attr":
            held = tensor_at(self.module, str(divisor.target))
            self._write(held, held.sign() * self._power(held.shape))
        elif divisor == 3:
            call.node.args = tuple(4 if arg == 3 else arg for arg in call.node.args)
            for planted in self.planted:
                planted.values.update((n, 4) for n, v in planted.values.items() if v == 3)


def _divides(op: OpSpec) -> bool:
    """Whether the result is the first input times a function of the second that is not it."""
    product = op.traits >= {"elementwise", "linear_in_x"} and len(op.inputs) == 2
    return product and "commutative" not in op.traits


def _rounds(op: OpSpec) -> bool:
    """Whether it is a function of one number, which gives numbers with many digits."""
    plain = op.traits & {"unrounded", "linear_in_x", "additive"}
    return "elementwise" in op.traits and len(op.inputs) == 1 and not (plain or op.attrs)


def _set_eps(call: OpCall) -> None:
    if call.node.op == "call_module":
        call.root.get_submodule(str(call.node.target)).eps = EPS  # type: ignore[assignment]
    else:
        call.node.kwargs = {**call.node.kwargs, "eps": EPS}


# -- the rule on it --------------------------------------------------------------------------------

PREMISE = "premise fails: "


def _tried(subject: Subject, grown: Grown, width: int) -> DyadicResult:
    """All instances; the first difference counts, then what cannot be said, then equality."""
    try:
        with torch.no_grad():
            grown.module.forward(*grown.inputs)
    except (RuntimeError, ValueError, IndexError) as error:
        note = str(error).splitlines()[0]
        return DyadicResult(NOT_APPLICABLE, f"the model cannot run in float64: {note}")
    state = state_of(subject, grown)
    state.verify = False  # the bits are the judge here
    found = []
    for planted in grown.planted:
        try:
            found.append(_one(state, grown, planted, width))
        except LissomError as error:
            first = error.diagnostics[0]
            found.append(DyadicResult(NOT_APPLICABLE, f"{first.code}: {first.message}"))
    order = (DIFFERS, BIT_EQUAL, NOT_APPLICABLE)
    return min(found, key=lambda result: order.index(result.verdict))


def _one(state: State, grown: Grown, planted: Planted, width: int) -> DyadicResult:
    bindings = bound(state, grown.rule, planted)
    if isinstance(bindings, str):
        return DyadicResult(NOT_APPLICABLE, bindings)
    start = anchor(state, grown.rule)
    ready = ready_at(state, grown.rule, planted.nodes[start.index], start)
    if isinstance(ready, NoMatch):
        return DyadicResult(NOT_APPLICABLE, f"silent: {condition(ready)}")
    if grown.rule.kind == "approx" and not ready.plan.perturbs:
        return DyadicResult(NOT_APPLICABLE, "the rule has no `perturb`, and so no exact half")
    moves = ready.plan.perturbs
    before = (
        perturbed_model(state.module, ready.site, ready.plan) if moves else snapshot(state.module)
    )
    sums = Sums(state, ready)
    apply(state, "dyadic", ready, 0.0)
    finish(state.module)
    if is_random(state):
        return DyadicResult(NOT_APPLICABLE, "the model draws random numbers")
    with torch.no_grad():
        pairs = list(zip(before(*grown.inputs), state.module(*grown.inputs), strict=True))
    return _compared(pairs, sums, width)


def _compared(pairs: list[tuple[Any, Any]], sums: Sums, width: int) -> DyadicResult:
    for output, (before, after) in enumerate(pairs):
        if before.shape != after.shape:
            return DyadicResult(DIFFERS, f"{list(before.shape)} became {list(after.shape)}", output)
        apart = (before != after) & ~(before.isnan() & after.isnan())
        if not bool(apart.any()):
            continue
        index = tuple(int(i) for i in apart.nonzero()[0])
        numbers = float(before[index]), float(after[index])
        # A difference that rounding cannot explain needs no premise.
        far = bool((before.double() - after.double()).abs().max() > sums.rounding)
        if sums.rounded and not far:
            return DyadicResult(NOT_APPLICABLE, PREMISE + sums.rounded, width=width)
        return DyadicResult(DIFFERS, "", output, index, *numbers, width)
    return DyadicResult(BIT_EQUAL, width=width)
