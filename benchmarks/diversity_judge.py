"""Whether two networks compute the same, judged without any of lissom's code.

A network here is a list of steps, so that it can be run again with every weight and every value off
by a few units in the last place (Monte Carlo arithmetic: Parker 1997), and in float64. The span of
such runs, of the network's own result and of the exact one is what rounding may do to an element. A
rewritten network has to stay within that span and as much again on either side. That bounds its
error by a multiple of the original's own, wherever that comes from: a sum that cancels, a division
by almost nothing, a floor beside an integer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

UNITS = 4.0
"""Units in the last place by which a number is off in a run, at most."""
RUNS = (8, 56)
"""So many runs, and so many more before a difference is called one."""
MARGIN = 1.0
"""How many times its own width the span is made wider on either side."""
SLACK = 4.0
"""Units in the last place that are allowed in any case."""
LOOSE = 1e-2
"""A result whose span is wider than this, relative to its size, says little about a rewrite."""

EXACT = frozenset((
    "Abs", "Ceil", "Clip", "ConstPad", "Constant", "ExpandLast1", "ExpandLast2", "ExpandLast3",
    "ExpandLast4", "Concat1", "Concat2", "Concat3", "Concat4", "Concat5", "CastBool", "CastI32",
    "CastI64", "Flatten", "Floor", "Max", "MaxPool2d", "Min", "NearestInterp", "Neg", "ReLU",
    "ReduceMax", "ReduceMin", "ReflectPad", "ReplicatePad", "Reshape", "Round", "Slice",
    "Squeeze", "Transpose", "Tril", "Triu", "Where",
))  # fmt: skip
"""Ops that round nothing."""


@dataclass(frozen=True)
class Step:
    """`out = call(*args)`, by names of values. `layer` is a place in the network's layers, where it
    is one; `wide` stands for `call` in float64, where that names a narrower type.
    """

    op: str
    args: tuple[str, ...]
    out: str
    layer: int | None = None
    call: Callable[..., Any] | None = None
    wide: Callable[..., Any] | None = None


Touch = Callable[[Step, Tensor], Tensor]


def as_it_is(step: Step, value: Tensor) -> Tensor:
    return value


class Net(nn.Module):
    """Runs steps in order. Inputs are positional; returns a tuple of tensors."""

    def __init__(
        self,
        layers: Sequence[nn.Module],
        steps: Sequence[Step],
        inputs: Sequence[str],
        outputs: Sequence[str],
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.steps, self.inputs, self.outputs = tuple(steps), tuple(inputs), tuple(outputs)

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        return self.run(given)

    def run(self, given: Sequence[Tensor], touch: Touch = as_it_is) -> tuple[Tensor, ...]:
        """Results, with the value of every step replaced by what `touch` makes of it."""
        values = dict(zip(self.inputs, given, strict=True))
        for step in self.steps:
            call = step.call if step.layer is None else self.layers[step.layer]
            assert call is not None
            values[step.out] = touch(step, call(*(values[name] for name in step.args)))
        return tuple(values[name] for name in self.outputs)


class OfOne(Net):
    def forward(self, a: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return self.run((a,))


class OfTwo(Net):
    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return self.run((a, b))


class OfThree(Net):
    def forward(  # type: ignore[override]
        self, a: Tensor, b: Tensor, c: Tensor
    ) -> tuple[Tensor, ...]:
        return self.run((a, b, c))


NAMED: dict[int, type[Net]] = {1: OfOne, 2: OfTwo, 3: OfThree}
"""Networks whose inputs have names, as those of most models do; more than three come as a list."""


# -- what rounding may do --------------------------------------------------------------------------


def inexact(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def widen(value: Tensor) -> Tensor:
    """float64 or complex128, or the value as it is if it is not inexact."""
    if not inexact(value.dtype):
        return value
    return value.to(torch.complex128 if value.is_complex() else torch.float64)


def widened(net: Net) -> Net:
    """A copy that computes in float64."""
    copied = copy.deepcopy(net)
    copied._apply(widen)
    copied.steps = tuple(replace(step, call=step.wide or step.call) for step in copied.steps)
    return copied


class Rounding:
    """Runs of one network on the same inputs, each with other rounding errors.

    They run in the network's own precision: what a kernel loses inside, as gelu does where one plus
    erf is almost nothing, is then lost in other ways as well.
    """

    def __init__(self, net: Net, given: Sequence[Tensor], seed: int) -> None:
        self.net, self.given = copy.deepcopy(net), given
        self.generator = torch.Generator().manual_seed(seed)
        weights = [*self.net.parameters(), *self.net.buffers()]
        self.weights = [(weight, weight.detach().clone()) for weight in weights]
        self.original = net.run(given)
        self.results = [self.original, widened(net).run([widen(value) for value in given])]

    def run(self, times: int) -> None:
        for _ in range(times):
            for weight, value in self.weights:
                weight.data = self._off(value)
            self.results.append(self.net.run(self.given, self._touch))

    def _touch(self, step: Step, value: Tensor) -> Tensor:
        return value if step.op in EXACT else self._off(value)

    def _off(self, value: Tensor) -> Tensor:
        """Off by a few units in the last place of its own type."""
        if not inexact(value.dtype):
            return value
        unit = UNITS * torch.finfo(value.dtype).eps
        noise = torch.rand(value.shape, generator=self.generator, dtype=torch.float64)
        return (widen(value) * (1 + unit * (2 * noise - 1))).to(value.dtype)

    def span(self, index: int) -> Span:
        return Span([parts(result[index]) for result in self.results], self.original[index].dtype)


def parts(value: Tensor) -> Tensor:
    """Real numbers, in a type that holds them: complex ones are two."""
    if value.is_complex():
        return torch.view_as_real(value.resolve_conj()).double()
    return value.double() if value.is_floating_point() else value.long()


class Span:
    """From the least to the greatest of several results, element by element, `[...]` each."""

    def __init__(self, results: Sequence[Tensor], dtype: torch.dtype) -> None:
        self.all, self.dtype = (
            torch.stack([result.broadcast_to(results[0].shape) for result in results]),
            dtype,
        )
        self.rounded = inexact(dtype)
        finite = self.all.isfinite()
        top = torch.inf if self.rounded else torch.iinfo(torch.int64).max
        self.low = torch.where(finite, self.all, top).amin(0)
        self.high = torch.where(finite, self.all, -top).amax(0)

    @property
    def room(self) -> Tensor:
        """How far beyond the span a result may be; not a number where no result was finite."""
        if not self.rounded:
            return torch.zeros_like(self.low)
        info = torch.finfo(self.dtype)
        size = torch.maximum(self.low.abs(), self.high.abs())
        return MARGIN * (self.high - self.low) + SLACK * (info.eps * size + info.tiny)

    def outside(self, value: Tensor) -> Tensor:
        """Where a result is not among what rounding may do."""
        found = parts(value)
        kept = (found >= self.low - self.room) & (found <= self.high + self.room)
        strange = ((self.all == found) | (self.all.isnan() & found.isnan())).any(0)
        return ~torch.where(found.isfinite(), kept, strange)

    @property
    def loose(self) -> bool:
        """Whether half of the elements have a span so wide that it says little."""
        if not self.rounded or not self.low.numel():
            return False
        size = torch.maximum(self.low.abs(), self.high.abs()).clamp_min(1e-300)
        return bool(((self.high - self.low) / size).nan_to_num(1.0).median() > LOOSE)


# -- the judgement ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judgement:
    """`wrong` is "" where the networks agree. `border`: the results differ where rounding decides
    between values that are far apart. `loose`: some result says little.
    """

    wrong: str = ""
    border: bool = False
    loose: bool = False


def judge(
    net: Net, rewritten: nn.Module, given: Sequence[Tensor], *, seed: int = 0, bits: bool = False
) -> Judgement:
    """Compares the results on these inputs; with `bits` they have to be the same to the bit."""
    with torch.no_grad():
        found = rewritten(*given)
        expected = net(*given)
        wrong = _different_form(expected, found)
        if wrong or all(map(same, expected, found)):
            return Judgement(wrong)
        if bits:
            return Judgement("nothing was rewritten, and the bits are others")
        return _judge_rounding(Rounding(net, given, seed), found)


def _different_form(expected: Sequence[Tensor], found: Any) -> str:
    if not isinstance(found, tuple) or len(found) != len(expected):
        return f"{len(expected)} results, and now {type(found).__name__}"
    for index, (a, b) in enumerate(zip(expected, found, strict=True)):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            return f"result {index} was {a.dtype} {[*a.shape]}, is {b.dtype} {[*b.shape]}"
    return ""


def same(left: Tensor, right: Tensor) -> bool:
    a, b = parts(left), parts(right)
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _judge_rounding(rounding: Rounding, found: Sequence[Tensor]) -> Judgement:
    wrong, spans = "", []
    for more in RUNS:
        rounding.run(more)
        spans = [rounding.span(index) for index in range(len(found))]
        outside = [span.outside(value) for span, value in zip(spans, found, strict=True)]
        wrong = _said(spans, found, outside)
        if not wrong:
            break
    border = any(map(_strays, rounding.original, found))
    return Judgement(wrong, border, any(span.loose for span in spans))


def _strays(original: Tensor, found: Tensor) -> bool:
    """Whether a result differs that is a whole number or a truth value, or no number at all."""
    a, b = parts(original), parts(found)
    both = a.isfinite() & b.isfinite()
    if not inexact(original.dtype):
        return not torch.equal(a, b)
    return not bool((both | (a == b) | (a.isnan() & b.isnan())).all())


def _said(spans: Sequence[Span], found: Sequence[Tensor], outside: Sequence[Tensor]) -> str:
    """The first result that rounding does not explain, with the element that is farthest off."""
    for index, mask in enumerate(outside):
        if not bool(mask.any()):
            continue
        span, value = spans[index], parts(found[index])
        beyond = torch.maximum(span.low - value, value - span.high).double()
        ranked = torch.where(mask, beyond.nan_to_num(torch.inf), -torch.inf).flatten()
        at = int(ranked.argmax())
        low, high, got = (float(t.flatten()[at]) for t in (span.low, span.high, value))
        count = f"{int(mask.sum())} of {mask.numel()} elements of result {index}"
        return f"{count}: {got:.9g}, where rounding gives {low:.9g} to {high:.9g}"
    return ""
