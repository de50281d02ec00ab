"""Whether a difference is a mistake of a kernel: each op beside its float64 twin.

Which kernel computes an op depends on precision, settings and processor, and a kernel may be wrong.
When two sides differ in the model's own precision though they agree in float64, they run again with
every op computed twice: as it is, and in float64 from the same numbers. An op far off its twin is a
fault, and the twin takes its place. If the sides agree then, the kernel is to blame and no rule.

Far is judged by what rounding could do at that op: its twin runs on numbers that are off by a unit
in the last place, as in rounding.py, which shows the size of the sums inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..torch_internals import TorchDispatchMode, schema_of, tree_leaves, tree_map
from .processor import processor_name
from .rounding import nudged

FAULTY = "V109"
"""The code of what is left because of a kernel."""

FAR = 16.0
"""How many times the effect of rounding a kernel's result must be off to be a mistake."""

NUDGES = 4
"""How often a twin runs on disturbed numbers."""

REPEATS = 2
"""How often a kernel runs again: what changes from run to run may be right once."""

TRIES = 3
"""How often a comparison is made again to find a fault that does not show each time."""

MOST = 100.0
"""Relative distances from here on are not told apart: the right result may be 0."""

NOT_JUDGED = ("empty", "rand", "bernoulli", "normal", "dropout", "multinomial")
"""Parts of the names of ops whose results are no function of their inputs."""

MOVES = frozenset({"set_", "copy_", "clone", "_to_copy", "resize_", "detach", "_unsafe_view"})
"""Ops that compute nothing."""


@dataclass(frozen=True, slots=True)
class KernelFault:
    """A kernel whose result is far off what float64 gives for the same numbers.

    off: relative L2 distance of the result that is furthest off. changes: whether it differs from
    run to run. settings: shapes and arguments of that call.
    """

    op: str
    dtype: str
    off: float
    changes: bool
    settings: str
    cpu: str

    @property
    def kernel(self) -> str:
        return f"{self.op} in {self.dtype}"

    @property
    def short(self) -> str:
        """What is wrong, in a few words."""
        far = f"{100 * self.off:.3g} %" if self.off < MOST else f"more than {100 * MOST:,.0f} %"
        again = " and changes from run to run" if self.changes else ""
        return f"kernel of {self.kernel} differs from its float64 by {far}{again}"

    @property
    def text(self) -> str:
        return f"{self.short} on this CPU ({self.cpu}): {self.settings}"


def kernel_faults(
    holds: Callable[[], bool], look: Callable[[], object] | None = None
) -> tuple[KernelFault, ...]:
    """The kernels that a failed comparison is owed to; none if it fails without their mistakes too.

    `holds` makes the comparison again, as often as it is asked. `look` only runs what is compared:
    where a comparison takes many runs, most of which find no fault, that costs far less.
    """
    for _ in range(TRIES):
        with Twins() as twins:
            agrees = holds() if look is None else look()
        if twins.faults and look is not None:
            with twins:
                agrees = holds()
        if twins.faults:
            return tuple(twins.faults.values()) if agrees else ()
    return ()


class Twins(TorchDispatchMode):
    """While it is active, every op runs beside its float64 twin, which takes its place where it is
    far off. `faults` holds the worst call of each kernel, in the order in which they were found.
    """

    def __init__(self) -> None:
        super().__init__()
        self.faults: dict[str, KernelFault] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = (args, kwargs or {})
        if not _is_judged(func, given):
            return func(*args, **(kwargs or {}))
        kept = tree_map(_copied, given)
        try:
            twin = _in_double(func, kept)
            slack = _slack(func, kept, twin)
        except (RuntimeError, ValueError, TypeError, NotImplementedError):
            return func(*args, **(kwargs or {}))  # no float64 kernel: nothing to compare with
        value = func(*args, **(kwargs or {}))
        again = [func(*a, **k) for a, k in (tree_map(_copied, kept) for _ in range(REPEATS))]
        worst = max((_off(each, twin, slack) for each in (value, *again)), default=0.0)
        if worst == 0.0:
            return value
        self._note(func, kept, worst, any(not _same(value, each) for each in again))
        return _replaced(value, twin)

    def _note(self, func: Any, given: tuple[Any, Any], off: float, changes: bool) -> None:
        fault = _fault(func, given, off, changes)
        known = self.faults.get(fault.kernel)
        if known is None or off > known.off:
            self.faults[fault.kernel] = fault


def faults_text(faults: Sequence[KernelFault]) -> str:
    """All of them in one line."""
    return "; ".join(fault.text for fault in faults)


# -- one op ----------------------------------------------------------------------------------------


def _is_judged(func: Any, given: tuple[Any, Any]) -> bool:
    """Whether an op computes numbers, from numbers of less than double precision."""
    name = func.overloadpacket.__name__
    if func.is_view or name in MOVES or any(part in name for part in NOT_JUDGED):
        return False
    return any(_is_narrow(value) for value in tree_leaves(given))


def _is_narrow(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64


def _copied(value: Any) -> Any:
    """Ops that write in place get numbers of their own each time they run."""
    return value.clone() if isinstance(value, Tensor) else value


def _widened(value: Any) -> Any:
    return value.double() if _is_narrow(value) else _copied(value)


def _in_double(func: Any, given: tuple[Any, Any], disturb: Any = None) -> Any:
    """The op in float64, on the same numbers or on such that are off by a unit of their own."""
    moved = given if disturb is None else tree_map(lambda v: nudged(v, disturb), given)
    args, kwargs = tree_map(_widened, moved)
    return func(*args, **kwargs)


def _slack(func: Any, given: tuple[Any, Any], twin: Any) -> list[Tensor | None]:
    """For each result what rounding of the numbers read may do to it, element by element."""
    generator = torch.Generator().manual_seed(0)
    exact = tree_leaves(twin)
    widest: list[Tensor | None] = [
        torch.zeros_like(v) if isinstance(v, Tensor) and v.dtype == torch.float64 else None
        for v in exact
    ]
    for _ in range(NUDGES):
        moved = tree_leaves(_in_double(func, given, generator))
        for at, (one, other) in enumerate(zip(exact, moved, strict=True)):
            before = widest[at]
            if before is not None and one.shape == other.shape:
                widest[at] = before.maximum((one - other).abs())
    return widest


def _off(value: Any, twin: Any, slack: list[Tensor | None]) -> float:
    """How far a result is off its twin, relative L2; 0 where rounding may have done it."""
    triples = zip(tree_leaves(value), tree_leaves(twin), slack, strict=True)
    return max((_off_one(a, b, s) for a, b, s in triples if s is not None), default=0.0)


def _off_one(value: Tensor, twin: Tensor, slack: Tensor) -> float:
    if value.shape != twin.shape or not value.numel():
        return 0.0
    exact = twin.to(value.dtype).double()  # what overflows in the narrow type is no mistake
    same = (value.double() == exact) | (value.isnan() & exact.isnan()) | ~exact.isfinite()
    apart = torch.where(same, 0.0, (value.double() - exact).abs())
    unit = torch.finfo(value.dtype)
    usual = torch.where(slack.isfinite(), slack, 0.0).square().mean().sqrt()
    # Nudges may cancel at one element: what they do to the others counts there too.
    allowed = FAR * (slack.maximum(usual) + unit.eps * exact.abs()) + unit.tiny
    if not bool((~same & ~(apart <= allowed)).any()):
        return 0.0
    size = torch.where(exact.isfinite(), exact, 0.0).norm().clamp_min(unit.tiny)
    ratio = float(apart.norm() / size)
    return ratio if math.isfinite(ratio) else math.inf


def is_alike(value: Any, other: Any) -> bool:
    """Whether two results hold the same numbers, bit for bit."""
    return all(
        bool(((a == b) | ((a != a) & (b != b))).all())
        for a, b in zip(tree_leaves(value), tree_leaves(other), strict=True)
        if isinstance(a, Tensor)
    )


def _same(value: Any, other: Any) -> bool:
    pairs = zip(tree_leaves(value), tree_leaves(other), strict=True)
    return all(bool(((a == b) | ((a != a) & (b != b))).all()) for a, b in pairs if _is_narrow(a))


def _replaced(value: Any, twin: Any) -> Any:
    """The result with the twin's numbers in it, rounded: what is written in place stays so."""
    for own, exact in zip(tree_leaves(value), tree_leaves(twin), strict=True):
        if _is_narrow(own):
            own.copy_(exact)
    return value


# -- in words --------------------------------------------------------------------------------------


def _fault(func: Any, given: tuple[Any, Any], off: float, changes: bool) -> KernelFault:
    narrow = (v.dtype for v in tree_leaves(given) if _is_narrow(v))
    dtype = str(min(narrow, key=lambda d: torch.finfo(d).bits)).removeprefix("torch.")
    name, settings = _call(func, given)
    return KernelFault(name, dtype, off, changes, settings, processor_name())


def call_text(func: Any, given: tuple[Any, Any]) -> str:
    """An op with the types, shapes and arguments of a call."""
    tensors = (value for value in tree_leaves(given) if isinstance(value, Tensor))
    dtypes = dict.fromkeys(str(value.dtype).removeprefix("torch.") for value in tensors)
    name, settings = _call(func, given)
    return f"{name} in {', '.join(dtypes)}; {settings};"


def _call(func: Any, given: tuple[Any, Any]) -> tuple[str, str]:
    """The op as people call it, and its settings."""
    named = dict(_arguments(func, given))
    shapes = ", ".join(str(list(v.shape)) for v in tree_leaves(given) if isinstance(v, Tensor))
    plain = [f"{k}={v}" for k, v in named.items() if not _holds_tensor(v) and v is not None]
    return _name(func, named), ", ".join([f"shapes {shapes}", *plain])


def _arguments(func: Any, given: tuple[Any, Any]) -> Iterator[tuple[str, Any]]:
    args, kwargs = given
    names = [argument.name for argument in schema_of(func).arguments]
    yield from zip(names, args, strict=False)
    yield from kwargs.items()


def _name(func: Any, named: dict[str, Any]) -> str:
    """The op as people call it: all convolutions are one op here."""
    name, weight = func.overloadpacket.__name__, named.get("weight")
    if name != "convolution" or not isinstance(weight, Tensor):
        return name.strip("_")
    return f"conv{'_transpose' if named.get('transposed') else ''}{weight.dim() - 2}d"


def _holds_tensor(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))
