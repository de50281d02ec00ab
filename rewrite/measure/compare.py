"""Whole-model checks: equality after exact stages, drift and metrics after others."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...grammar.diagnostics import Diagnostic, Label, LissomError, fail
from ..graph.building import without_checks
from ..graph.runs import RunFailed, innermost, on_copies, one_line, run_model
from ..graph.values import leaves
from ..journal import Verdict, VerdictKind
from ..ops.spec import spec_of
from ..torch_internals import tree_map
from .batches import Batches
from .given import Given
from .rounding import disturbed
from .samples import Example
from .twins import KernelFault, Twins, faults_text

Metric = Callable[[nn.Module, Batches], float]

UNTOUCHED = "weights outside the rewrites are untouched"
EQUALITY = "whole model equals the one before the stage"
RUNS = "the rewritten model runs"
DRIFT = "drift of the outputs from the original model"
SHAPES_KEPT = "outputs keep their shapes at other sizes"

REFUSALS = (RuntimeError, ValueError, IndexError, TypeError, AssertionError)
"""What torch raises for tensors that a kernel does not take."""

AMPLIFIED = 4.0
"""How many times its own rounding error a model may move when it is rewritten exactly."""

SUSPICIOUS = 0.05
"""A relative rounding error from here on may be a mistake of a kernel."""

MEANINGLESS = 0.5
"""A relative rounding error past which comparing outputs tells nothing."""


def outputs(model: nn.Module, args: tuple[Any, ...], what: str = "the example") -> list[Any]:
    """The leaves of what a model returns for copies of `args`. Raises RunFailed."""
    return [leaf for _, leaf in leaves(run_model(model, args, what=what))]


def equality_at(
    before: nn.Module, after: nn.Module, examples: Sequence[Example], nodes: int
) -> Verdict:
    """Whether two models compute the same on examples of several sizes: the verdict of the first,
    which names the others, or the first one that does not hold.
    """
    found = [model_equality(before, after, e.args, nodes, e.label) for e in examples]
    for example, verdict in zip(examples, found, strict=True):
        if not verdict.holds:
            return replace(verdict, detail=f"on {example.label}: {verdict.detail}")
    also = ", ".join(example.label for example in examples[1:])
    detail = f"{found[0].detail}; also at {also}" if also else found[0].detail
    return replace(found[0], detail=detail)


def runs_at(before: nn.Module, after: nn.Module, examples: Sequence[Example]) -> Verdict:
    """Whether a model that computes something else still gives outputs of the same structure,
    shapes and dtypes on examples of several sizes.
    """

    def verdict(holds: bool, said: str) -> Verdict:
        kind = VerdictKind.OUTPUT_SHAPES
        return Verdict(SHAPES_KEPT, "tested", holds, len(examples), detail=said, kind=kind)

    for example in examples:
        left = outputs(before, example.args, example.label)
        try:
            right = outputs(after, example.args, example.label)
        except RunFailed as error:
            said = f"on {example.label} it cannot run: {error.reason}"
            return verdict(False, said)
        if [spec_of(value) for value in left] != [spec_of(value) for value in right]:
            said = f"on {example.label} they have other shapes"
            return verdict(False, said)
    return verdict(True, ", ".join(example.label for example in examples))


def model_equality(
    before: nn.Module,
    after: nn.Module,
    args: tuple[Any, ...],
    nodes: int,
    what: str = "the example",
) -> Verdict:
    """Whether two models compute the same on the example inputs, up to rounding in the model's own
    precision.

    Some models amplify rounding. Where the plain tolerance is exceeded, the model's own rounding
    error is measured, and the rewritten model may be off by a few times that: its new weights were
    rounded once more. A mistake of a kernel is no rounding error (see twins.py); where there is one
    the verdict fails. One result may by luck be closer to the truth than the model deserves, so
    what rounding errors do that are put in counts as its own rounding error too.
    """
    left = outputs(before, args, what)
    worst, allowed, kind = _compare(left, outputs(after, args, what), nodes)
    if worst <= allowed:
        return _equality("tested", True, worst, allowed, f"relative L2, {kind}")
    own = _own_error(before, left, args, nodes, worst)
    faults = _faults(before, args) if own > SUSPICIOUS else ()
    if faults:
        return _equality("tested", False, worst, allowed, f"{kind}; {faults_text(faults)}")
    allowed = max(allowed, AMPLIFIED * own)
    detail = f"relative L2, {kind}; the model's own rounding error is {own:.2g}"
    how = "tested" if own <= MEANINGLESS else "not checked"
    return _equality(how, worst <= allowed, worst, allowed, detail)


def _equality(how: str, holds: bool, worst: float, allowed: float, said: str) -> Verdict:
    return Verdict(EQUALITY, how, holds, 1, worst, allowed, said, kind=VerdictKind.EQUALITY)


def _faults(model: nn.Module, args: tuple[Any, ...]) -> tuple[KernelFault, ...]:
    """The kernels whose mistakes look like rounding errors of the model."""
    with Twins() as twins:
        outputs(model, args)
    return tuple(twins.faults.values())


def _own_error(
    model: nn.Module, left: list[Any], args: tuple[Any, ...], nodes: int, worst: float
) -> float:
    """What rounding does to a model's outputs, `left`; looked for until it explains `worst`."""
    kind = _compare(left, left, nodes)[2]
    try:
        own = _own_rounding(model, left, args, nodes, double=kind == "float64")
    except RunFailed:  # a kernel may take an empty result in one precision only
        own = 0.0
    if worst > AMPLIFIED * own:  # rounding errors may cancel by luck
        own = max(own, _sensitivity(model, left, args, nodes))
    return own


def checked(model: nn.Module, *asked: Callable[[], tuple[Verdict, ...]]) -> tuple[Verdict, ...]:
    """The verdicts on a rewritten model; one that does not run is a verdict too. What else fails
    (the original, on data that it does not take) is raised.
    """
    try:
        return tuple(verdict for ask in asked for verdict in ask())
    except RunFailed as error:
        if error.model is not model:
            raise
        said = f"on {error.what}: {error.reason}"
        return (Verdict(RUNS, "tested", False, 1, detail=said, kind=VerdictKind.RUNS),)


def _own_rounding(
    model: nn.Module, left: list[Any], args: tuple[Any, ...], nodes: int, *, double: bool
) -> float:
    """The distance between a model's outputs in its own precision and in float64.

    Nothing is more precise than float64; there it is the distance to float32, scaled down by the
    ratio of both units: what amplifies one rounding error amplifies the other.
    """
    if double:
        single = outputs(_loose(model).float(), tree_map(_single_tensor, args))
        apart, _, _ = _compare(left, [_double_tensor(value) for value in single], nodes)
        scaled = apart * torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
        return scaled if math.isfinite(scaled) else 0.0
    exact = outputs(_double(model), tree_map(_double_tensor, args))
    return _compare(exact, [_double_tensor(value) for value in left], nodes)[0]


def _sensitivity(model: nn.Module, left: list[Any], args: tuple[Any, ...], nodes: int) -> float:
    """How far rounding errors that are put in move a model's outputs, at most: of what overflows
    with or without them, nothing is said.
    """
    pairs = (zip(*map(_both_finite, left, found), strict=True) for found in disturbed(model, args))
    apart = (_compare([*old], [*new], nodes)[0] for old, new in pairs)
    return max((distance for distance in apart if math.isfinite(distance)), default=0.0)


def _both_finite(left: Any, right: Any) -> tuple[Any, Any]:
    """Two values with zeros where one of them is not finite."""
    floating = isinstance(left, Tensor) and left.is_floating_point()
    if not floating or not isinstance(right, Tensor) or left.shape != right.shape:
        return left, right
    finite = left.isfinite() & right.isfinite()
    return torch.where(finite, left, 0.0), torch.where(finite, right, 0.0)


def _compare(left: list[Any], right: list[Any], nodes: int) -> tuple[float, float, str]:
    """The largest relative difference of the outputs, what is allowed, and the precision."""
    if len(left) != len(right):
        return math.inf, 0.0, "structure"
    worst, eps, kind = 0.0, 0.0, "no tensors"
    for a, b in zip(left, right, strict=True):
        if not isinstance(a, Tensor) or not a.is_floating_point():
            worst = max(worst, 0.0 if _same(a, b) else math.inf)
            continue
        if torch.finfo(a.dtype).eps > eps:
            eps, kind = torch.finfo(a.dtype).eps, str(a.dtype).removeprefix("torch.")
        worst = max(worst, distance(a, b))
    return worst, 32 * eps * math.sqrt(max(nodes, 1)), kind


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    return type(a) is type(b) and a == b


def distance(reference: Tensor, value: Tensor) -> float:
    """Relative L2 distance of the finite numbers; infinite where shapes, dtypes, or the places of
    NaN or of an infinity differ.
    """
    if reference.shape != value.shape or reference.dtype != value.dtype:
        return math.inf
    if not torch.equal(reference.isnan(), value.isnan()):
        return math.inf
    same = (reference == value) | reference.isnan()
    if bool((~same & (reference.isinf() | value.isinf())).any()):
        return math.inf
    apart = torch.where(same, 0.0, value.double() - reference.double()).norm()
    finite = torch.nan_to_num(reference.double(), nan=0.0, posinf=0.0, neginf=0.0)
    return float(apart / finite.norm().clamp_min(1e-300))


def _double(model: nn.Module) -> nn.Module:
    return _loose(model).double()


def _loose(model: nn.Module) -> nn.Module:
    """A copy that takes numbers of any type."""
    return without_checks(copy.deepcopy(model))


def _single_tensor(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _double_tensor(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def untouched(
    before: Mapping[str, tuple[int, int]], after: Mapping[str, tuple[int, int]]
) -> Verdict:
    """Whether every weight still in the model is the very tensor it was, never written to.

    Both are what `digest.weights_at` gives.
    """
    kept = before.keys() & after.keys()
    changed = sorted(path for path in kept if before[path] != after[path])
    detail = f"`{changed[0]}` was changed" if changed else f"{len(kept)} compared by identity"
    kind = VerdictKind.UNTOUCHED
    return Verdict(UNTOUCHED, "proved", not changed, len(kept), detail=detail, kind=kind)


# -- against the original model --------------------------------------------------------------------


def drift(original: nn.Module, model: nn.Module, batches: Sequence[tuple[Any, ...]]) -> float:
    """Relative L2 distance of all outputs on the given inputs."""

    def given(one: nn.Module) -> Iterator[list[Any]]:
        return (outputs(one, args, "the data") for args in batches)

    return drift_of(given(original), given(model))


def drift_from(given: Given, model: nn.Module) -> float:
    """The same from what the original gives."""
    return drift_of(given, given.beside(model))


def drift_of(given: Iterable[list[Any]], found: Iterable[list[Any]]) -> float:
    """The same from both outputs for each batch."""
    apart, size = 0.0, 0.0
    for before, after in zip(given, found, strict=True):
        for reference, value in zip(before, after, strict=True):
            if isinstance(reference, Tensor) and reference.is_floating_point():
                apart += float((value.double() - reference.double()).square().sum())
                size += float(reference.double().square().sum())
    return math.sqrt(apart / size) if size else 0.0


class Metrics:
    """Task metrics on named data; the original model's values are computed once."""

    def __init__(self, original: nn.Module, metrics: Mapping[str, Metric]) -> None:
        self.original = original
        self.metrics = metrics
        self._reference: dict[tuple[str, str], float] = {}

    def require(self, name: str, place: Label) -> None:
        """Raises D004 for a metric that the user did not give."""
        if name in self.metrics:
            return
        known = ", ".join(self.metrics) or "none"
        hint = "give it in `metrics=` or in the model file's `metrics`"
        raise fail(
            "D004", f"no metric is called `{name}`", place, note=f"known: {known}", help=hint
        )

    def value(self, model: nn.Module, name: str, batches: Batches, place: Label) -> float:
        """The metric of `model`, which gets copies of the data. Raises D004 for a metric that the
        user did not give, M024 where it cannot be computed.
        """
        self.require(name, place)
        try:
            with torch.no_grad(), on_copies(model):
                return float(self.metrics[name](model, batches))
        except LissomError as error:
            raise RunFailed(model, "the data", *error.diagnostics) from error
        except Exception as error:
            raise RunFailed(model, "the data", _no_metric(name, error)) from error

    def reference(self, name: str, data: str, batches: Batches, place: Label) -> float:
        key = (name, data)
        if key not in self._reference:
            self._reference[key] = self.value(self.original, name, batches, place)
        return self._reference[key]


def _no_metric(name: str, error: Exception) -> Diagnostic:
    where = innermost(error)
    return Diagnostic(
        "M024",
        f"metric `{name}` failed",
        (Label(None, where=where),) if where else (),
        (f"{type(error).__name__}: {one_line(error)}",),
        ("a metric is `f(model, batches) -> float`; try it on the model by itself",),
    )
