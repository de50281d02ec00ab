"""Values of attributes, weights and inputs for generated models."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ....grammar.checks.kind import DTYPES
from ...ops.attributes import AttrSpec
from ...runtime.int8 import ACTIVATIONS
from ..choices.source import ChoiceSource

# -- attributes ------------------------------------------------------------------------------------


ANY: Any = object()
"""Stands for no value in particular."""


def setting(
    source: ChoiceSource,
    spec: AttrSpec,
    default: Any,
    shape: Sequence[int],
    unlike: Any = ANY,
    alone: bool = False,
    hints: Sequence[int | float] = (),
) -> Any:
    """A value of the declared type; `shape` is that of the op's first input. `unlike`: a value that
    it should not be. `alone`: whether the op has no other setting, and is for this one. `hints`:
    numbers that the rule's guards mention.

    Not every one is legal for the op: running it decides.
    """
    if hints and spec.type in ("int", "float") and source.chance(35):
        return _near(source, spec, source.choice(hints))
    if spec.name in CODES and spec.type == _CODE_TYPES.get(spec.name):
        return source.choice(CODES[spec.name]) if default is None or source.chance(60) else default
    if spec.type in ("any", "str"):
        return _word(source, spec, default, unlike)
    if spec.type not in _KINDS:
        return default
    if spec.type == "dtype" and unlike is ANY and not source.chance(95 if alone else 10):
        return default
    asked = unlike is not ANY and (default == unlike or source.chance(50))
    if asked or default is None or source.chance(35):
        return _KINDS[spec.type](source, default, shape)
    return default


def _near(source: ChoiceSource, spec: AttrSpec, number: int | float) -> int | float:
    """A number at a border that a guard draws, or past it."""
    found = source.choice((number, 2 * number, number - 1, number + 1))
    return int(found) if spec.type == "int" else float(found)


def _word(source: ChoiceSource, spec: AttrSpec, default: Any, unlike: Any) -> Any:
    """A word or a number that torch takes for a setting of this name."""
    plain = WORDS if spec.type == "str" or isinstance(default, str) else NUMBERS
    known = WORDS_OF.get(spec.name, plain)
    known = tuple(word for word in known if isinstance(word, str)) if spec.type == "str" else known
    others = [value for value in known if value not in (default, unlike)]
    if unlike is not ANY and default != unlike:
        return source.choice([default, *others])
    if others and (unlike is not ANY or source.chance(20 if default is None else 35)):
        return source.choice(others)
    return default


def spelled(source: ChoiceSource, number: Any) -> Any:
    """The number in any of the ways in which it may be written: 1, 1.0 or True."""
    if not isinstance(number, (int, float)) or not source.chance(25):
        return number
    truths = [bool(number)] if number in (0, 1) else []
    return source.choice([float(number), *truths])


def _whole(source: ChoiceSource, default: Any, shape: Sequence[int]) -> int:
    rank = len(shape)
    if default is None:  # a size or an axis
        return source.choice([2, 1, 3]) if source.chance(50) else source.integer(-rank, rank)
    return source.choice([default, 1, 2, 3, 0, -1] if default < 0 else [default, 1, 2, 3, 0])


def _several(width: int) -> Callable[[ChoiceSource, Any, Sequence[int]], tuple[int, ...]]:
    def draw(source: ChoiceSource, default: Any, shape: Sequence[int]) -> tuple[int, ...]:
        low = 0 if default == (0,) * width else 1
        first = source.choice([1, 2, 3, low])
        return (first, *(source.choice([first, 1, 2, low]) for _ in range(width - 1)))

    return draw


def _list(source: ChoiceSource, default: Any, shape: Sequence[int]) -> tuple[int, ...]:
    """What a list of whole numbers may mean: an order of the axes, a shape, some axes."""
    kind = source.choice(("order", "shape", "itself", "axes", "open"))
    if kind == "order":
        return permutation(source, len(shape))
    if kind == "open" and shape:
        at = source.integer(0, len(shape) - 1)
        return (*shape[:at], -1, *shape[at + 1 :])
    if kind == "axes":
        return tuple(range(source.integer(0, max(0, len(shape) - 1)), len(shape)))
    return tuple(shape) if kind == "itself" else factors(source, math.prod(shape))


def permutation(source: ChoiceSource, size: int) -> tuple[int, ...]:
    left = list(range(size))
    return tuple(left.pop(source.integer(0, len(left) - 1)) for _ in range(size))


def factors(source: ChoiceSource, number: int) -> tuple[int, ...]:
    """A shape with `number` elements; one extent may be left open."""
    found = []
    for _ in range(source.integer(0, 2)):
        divisor = source.choice(divisors(max(number, 1)))
        found.append(divisor)
        number //= divisor
    return (*found, -1 if source.chance(25) else number)


def sections(
    source: ChoiceSource, attrs: Mapping[str, Any], shape: Sequence[int], count: int
) -> dict[str, Any]:
    """Settings with which an op cuts an axis into `count` parts; none where it has no such axis."""
    dim = attrs.get("dim", 0)
    if not isinstance(dim, int) or not -len(shape) <= dim < len(shape):
        return {}
    extent = shape[dim]
    sizes = [extent // count] * (count - 1)
    each = (*sizes, extent - sum(sizes)) if source.chance(30) else -(-extent // count)
    return {name: v for name, v in (("chunks", count), (PARTS, each)) if name in attrs}


def divisors(number: int) -> list[int]:
    """1 first, so that draws shrink to it."""
    return [n for n in range(1, number + 1) if number % n == 0]


_KINDS: dict[str, Callable[[ChoiceSource, Any, Sequence[int]], Any]] = {
    "int": _whole,
    "int2": _several(2),
    "int3": _several(3),
    "ints": _list,
    "float": lambda source, default, shape: source.choice([0.5, 1.0, 0.0, 2.0, 6.0, -1.0, 1e-3]),
    "dtype": lambda source, default, shape: source.choice(TYPES),
    "bool": lambda source, default, shape: not default or source.chance(50),
}
PARTS = "split_size_or_sections"
TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool)
"""Types that a setting may name."""
NUMBERS = (2, 1, 0.5, -1, 3.0)
WORDS = ("floor", "trunc", "tanh", "reflect", "replicate", "circular", "nearest", "bilinear")
WORDS_OF: dict[str, tuple[Any, ...]] = {
    "rounding_mode": (None, "floor", "trunc"),
    "approximate": ("none", "tanh"),
    "mode": (
        "constant",
        "reflect",
        "replicate",
        "circular",
        "nearest",
        "bilinear",
        "linear",
        "area",
    ),
    "padding_mode": ("zeros", "reflect", "replicate", "circular"),
    "align_corners": (None, True, False),
    "recompute_scale_factor": (None, True, False),
    "p": ("fro", 1, 2, 3, math.inf),
    "padding_idx": (None, 0, 1),
    "activation": tuple(ACTIVATIONS),
    PARTS: (1, 2, 3),
    "index": (0, -1, slice(None), slice(0, 1), slice(None, None, 2)),
}
"""What torch takes for settings whose declared type says little; running the op decides."""


ZEROS, STEPS = (0, 7, 128, 255), (0.5, 0.037, 1.0, 0.02)
CODES: dict[str, tuple[Any, ...]] = {
    "zero": ZEROS, "output_zero": ZEROS, "other_zero": ZEROS,
    "scale": STEPS, "output_scale": STEPS, "other_scale": STEPS,
}  # fmt: skip
"""Zero points and scales of codes."""
_CODE_TYPES = {name: "int" if name.endswith("zero") else "float" for name in CODES}


# -- numbers ---------------------------------------------------------------------------------------

WEIGHTS = ("normal", "low rank", "small", "sparse", "zero", "one", "negative", "large", "positive")
"""Kinds of weights. Rules look at numbers: at rank, sign, zeros."""


def weight(
    source: ChoiceSource, name: str, shape: Sequence[int], generator: torch.Generator
) -> Tensor:
    """A weight in float32. Variances are positive nine times in ten."""
    if name == "running_var" and source.chance(90):
        return 0.5 + 1.5 * torch.rand(tuple(shape), generator=generator)
    likely = ("normal", "low rank") if len(shape) > 1 else ("normal", "positive")
    kind = source.choice(WEIGHTS if source.chance(25) else likely)
    return _WEIGHTS[kind](tuple(shape), generator)


def _low_rank(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """One direction and a little noise, along every pair of axes."""
    value = torch.ones(())
    for axis, size in enumerate(shape):
        along = torch.randn(size, generator=generator)
        value = value * along.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return value.expand(shape) + 0.01 * torch.randn(shape, generator=generator)


def _sparse(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Half of the numbers are zero, and some rows and columns as a whole."""
    value = torch.randn(shape, generator=generator)
    for axis, extent in enumerate(shape[:2] if len(shape) > 1 else ()):
        along = [-1 if i == axis else 1 for i in range(len(shape))]
        value = value * (torch.rand(extent, generator=generator) < 0.75).reshape(along)
    return value * (torch.rand(shape, generator=generator) < 0.5)


_WEIGHTS: dict[str, Callable[[tuple[int, ...], torch.Generator], Tensor]] = {
    "normal": lambda shape, g: torch.randn(shape, generator=g),
    "low rank": _low_rank,
    "small": lambda shape, g: 1e-4 * torch.randn(shape, generator=g),
    "sparse": _sparse,
    "zero": lambda shape, g: torch.zeros(shape),
    "one": lambda shape, g: torch.ones(shape),
    "positive": lambda shape, g: torch.rand(shape, generator=g) + 0.1,
    "negative": lambda shape, g: -torch.rand(shape, generator=g) - 0.1,
    "large": lambda shape, g: 100 * torch.randn(shape, generator=g),
}


WHOLE = (torch.int64, torch.int32, torch.int16, torch.uint8)
"""Types of whole numbers that are no indices."""


def kind_of_number(source: ChoiceSource) -> str | torch.dtype:
    """What an operand that may be of any type is made of, if not of floating numbers."""
    return "b" if source.chance(30) else source.choice(WHOLE)


def sample(kind: str | torch.dtype, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """An input of the model: floating, `b`, whole numbers of a type, or with `i` such as may be
    indices; with the name of a type all numbers that it has, its ends more often than others.
    """
    if kind in DTYPES:
        return _all_of(getattr(torch, kind), tuple(shape), generator)
    if isinstance(kind, torch.dtype):
        low = 0 if kind == torch.uint8 else -5
        return torch.randint(low, 6, tuple(shape), generator=generator).to(kind)
    if kind == "i":
        return torch.randint(0, 2, tuple(shape), generator=generator)
    if kind == "b":
        return torch.rand(tuple(shape), generator=generator) < 0.5
    return torch.randn(tuple(shape), generator=generator)


def _all_of(dtype: torch.dtype, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    ends = torch.iinfo(dtype)
    value = torch.randint(ends.min, ends.max + 1, shape, generator=generator)
    where = torch.rand(shape, generator=generator)
    value = torch.where(where < 0.05, ends.min, torch.where(where < 0.1, ends.max, value))
    return value.to(dtype)


def is_scale(name: str) -> bool:
    """Whether a weight is called so as what sums of codes are multiplied by."""
    return name == "scale" or name.endswith("_scale")


def scales(source: ChoiceSource, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """What sums of codes are multiplied by: positive; powers of two, at which results lie between
    two codes, half of the time.
    """
    power = 2.0 ** -torch.randint(6, 13, tuple(shape), generator=generator)
    return (
        power if source.chance(50) else power * (0.5 + torch.rand(power.shape, generator=generator))
    )


def laid_out(source: ChoiceSource, value: Tensor) -> Tensor:
    """The same numbers; now and then in another order in memory, or with gaps."""
    if not value.numel() or not value.dim() or not source.chance(10):
        return value
    kind = source.choice(("channels last", "reversed", "gaps"))
    if kind == "gaps" or value.dim() == 1:
        return torch.stack((value, torch.full_like(value, 7)), -1)[..., 0]
    order = [*range(value.dim() - 1, -1, -1)]
    if kind == "channels last":
        order = [0, *range(2, value.dim()), 1]
    back = sorted(range(value.dim()), key=order.__getitem__)
    return value.permute(order).contiguous().permute(back)
