"""The general numeric functions that rules may call: pure, float64 inside, rounded once at the end.

Weights come back in the dtype they came in. A result may share memory with an argument but never
writes to it; whoever stores one makes the copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..grammar.diagnostics import fail

Number = int | float


def wide(tensor: Tensor) -> Tensor:
    """The tensor without history, in float64 if it is floating."""
    detached = tensor.detach()
    return detached.double() if detached.is_floating_point() else detached


def finite(name: str, weight: Tensor) -> Tensor:
    """`weight` in float64. Raises K002 for inf and nan, which no decomposition survives."""
    widened = wide(weight)
    bad = int((~torch.isfinite(widened)).sum())
    if bad:
        raise fail(
            "K002",
            f"`{name}` got a tensor with {bad} of {widened.numel()} values infinite or nan",
            help="repair the weights, or leave this layer out with `at`",
        )
    return widened


def require(held: bool, name: str, message: str, fix: str = "") -> None:
    """Raises K001: the numeric function `name` got an argument outside its domain."""
    if not held:
        raise fail("K001", f"`{name}`: {message}", help=fix)


# -- decomposition ---------------------------------------------------------------------------------


def svd(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`w [..., M, N] = u [..., M, R] @ diag(s [..., R]) @ v [..., R, N]`, R = min(M, N), s falling.

    The entry of largest magnitude in each column of `u` is positive: of the two valid signs, the
    linear algebra library may return either. Raises K002 unless all of `w` is finite.
    """
    u, s, v = torch.linalg.svd(finite("svd", w), full_matrices=False)
    sign = pivot_sign(u)
    return u.mul_(sign).to(w.dtype), s.to(w.dtype), v.mul_(sign.mT).to(w.dtype)


def halves(w: Tensor, rows: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """`left [M, R] @ right [R, N]` is the matrix `[M, N]` of `w`, whose first `rows` axes are its
    rows; R = min(M, N). `s [R]` are its singular values, falling, with the root of each on either
    side. All in float64.

    The vectors of the shorter side are those of the Gram matrix, which takes half the time and half
    the memory of an SVD. The product is right to the last places all the same, because they are
    orthonormal, and a value is the length of what its vector gives. Only the order of directions
    below some 1e-8 of the largest value is lost by squaring. Signs as in `svd`.
    """
    unit, wide_one = _unit(w), w.shape[:rows].numel() < w.shape[rows:].numel()

    def tall() -> Tensor:  # made twice: it would stand beside what LAPACK works with
        matrix = (w / unit).flatten(rows).flatten(0, rows - 1)
        return matrix.T if wide_one else matrix

    vectors = _eigenvectors(_products(tall()))
    given = tall() @ vectors
    s, order = torch.linalg.vector_norm(given, dim=0).sort(descending=True, stable=True)
    root = s.sqrt()
    vectors = vectors[:, order].mul_(root)
    given = given[:, order].div_(root.clamp_min(torch.finfo(root.dtype).tiny))
    left, right = (vectors, given.T) if wide_one else (given, vectors.T)
    sign = pivot_sign(left) * unit**0.5
    return left.mul_(sign), s * unit, right.mul_(sign.T)


def _products(matrix: Tensor) -> Tensor:
    return matrix.T @ matrix


def _eigenvectors(gram: Tensor) -> Tensor:
    """Those of a symmetric matrix `[N, N]`, in its memory: LAPACK works in place."""
    columns, values = gram.T, gram.new_empty(len(gram))
    return torch.linalg.eigh(columns, out=(values, columns))[1]


def _unit(matrix: Tensor) -> float:
    """A power of 4 near the largest magnitude: squares of what is divided by it stay in range."""
    largest = float(matrix.abs().max()) if matrix.numel() else 0.0
    return 4.0 ** (math.frexp(largest)[1] // 2)


def pivot_sign(columns: Tensor) -> Tensor:
    """+1 or -1 for each column, `[..., 1, R]`: the sign of its largest entry."""
    pivot = columns.abs().argmax(dim=-2, keepdim=True)
    return torch.where(columns.gather(-2, pivot) < 0, -1.0, 1.0).to(columns.dtype)


# -- products --------------------------------------------------------------------------------------


def einsum(equation: str, *xs: Tensor) -> Tensor:
    """Einstein summation; the dtype is the one of the first operand."""
    return torch.einsum(equation, *map(wide, xs)).to(xs[0].dtype)


def matvec(w: Tensor, x: Tensor | Number) -> Tensor | Number:
    """`w [O, I] @ x [I]`. A number is a constant vector; 0 gives 0, so `bias or 0` may be x."""
    if isinstance(x, Tensor):
        return (wide(w) @ wide(x)).to(w.dtype)
    return 0 if x == 0 else (wide(w).sum(dim=1) * x).to(w.dtype)


def scale(w: Tensor | None, gain: Tensor | Number, axis: int = 0) -> Tensor | None:
    """Slice i of `w` along `axis` times `gain[i]`; a number scales everything, none stays none."""
    if w is None:
        return None
    if not isinstance(gain, Tensor) or gain.ndim == 0:
        return (wide(w) * gain).to(w.dtype)
    require(
        gain.ndim == 1 and -w.ndim <= axis < w.ndim and gain.numel() == w.shape[axis],
        "scale",
        f"{list(gain.shape)} factors do not fit axis {axis} of {list(w.shape)}",
    )
    shape = [1] * w.ndim
    shape[axis] = -1
    return (wide(w) * wide(gain).reshape(shape)).to(w.dtype)


# -- shapes ----------------------------------------------------------------------------------------


def diag(x: Tensor) -> Tensor:
    """The square matrix with `x [N]` on its diagonal."""
    return torch.diag(x.detach())


def transpose(x: Tensor) -> Tensor:
    """`[O, I]` as `[I, O]`."""
    return x.detach().T


def reshape(x: Tensor, shape: Sequence[int]) -> Tensor:
    """The same elements in the same order under another shape; -1 is what is left."""
    return x.detach().reshape(tuple(shape))


def concat(*xs: Tensor, axis: int = 0) -> Tensor:
    return torch.cat([x.detach() for x in xs], dim=axis)


def zeros(*shape: int) -> Tensor:
    """Zeros in float64; what they are assigned to gives them its dtype."""
    return torch.zeros(shape, dtype=torch.float64)


def ones(*shape: int) -> Tensor:
    """Ones in float64; what they are assigned to gives them its dtype."""
    return torch.ones(shape, dtype=torch.float64)


def kaiming(*shape: int) -> Tensor:
    """A weight that training is to start from (He et al. 2015, arXiv:1502.01852): uniform in
    float64, with the variance 1 / fan-in, the same each time.
    """
    made = torch.empty(shape, dtype=torch.float64)
    drawn = torch.Generator().manual_seed(0)
    return nn.init.kaiming_uniform_(made, nonlinearity="linear", generator=drawn)


def numel(w: Tensor) -> int:
    return w.numel()


def inverse_dims(p: Sequence[int], q: Sequence[int]) -> bool:
    """Whether permuting axes by `p`, then by `q`, changes nothing; -1 is the last axis."""
    rank = len(p)
    return len(q) == rank and all(p[axis % rank] % rank == i for i, axis in enumerate(q))


# -- numbers one by one ----------------------------------------------------------------------------


def sqrt(x: Tensor | Number) -> Tensor | float:
    return _each(torch.sqrt, x)


def exp(x: Tensor | Number) -> Tensor | float:
    return _each(torch.exp, x)


def log(x: Tensor | Number) -> Tensor | float:
    return _each(torch.log, x)


def _each(function: Callable[[Tensor], Tensor], x: Tensor | Number) -> Tensor | float:
    """`function` in float64; a tensor keeps its dtype, a number gives a number."""
    if isinstance(x, Tensor):
        return function(wide(x)).to(x.dtype)
    return function(torch.tensor(x, dtype=torch.float64)).item()


def abs_(x: Tensor | Number) -> Tensor | Number:
    return abs(x.detach() if isinstance(x, Tensor) else x)


def round_up(x: Number, multiple: int) -> int:
    """The least multiple of `multiple` that is not below `x`, to within rounding of `x`."""
    require(multiple >= 1, "round_up", f"{multiple} is not a positive multiple")
    steps = x / multiple
    whole = round(steps)
    near = abs(steps - whole) <= 1e-9 * max(1.0, abs(steps))
    return multiple * (whole if near else int(-(-x // multiple)))


def round_to(x: Tensor, dtype: str) -> Tensor:
    """Each number as the nearest that a float type of torch has, in the type that it came in.

    dtype: the type's name. Raises K001 for any other word.
    """
    return x.to(_float_type("round_to", dtype)).to(x.dtype)


def as_type(x: Tensor | None, dtype: str) -> Tensor | None:
    """Each number as the nearest that a float type of torch has, in that type: a layer that is
    built of them stores them so. What is absent stays absent.

    dtype: the type's name. Raises K001 for any other word, and for a number beyond its largest.
    """
    kind = _float_type("as_type", dtype)
    if x is None:
        return None
    found = x.to(kind)
    require(not bool((found.isinf() & x.isfinite()).any()), "as_type", f"numbers beyond {dtype}")
    return found


def _float_type(name: str, dtype: str) -> torch.dtype:
    found = getattr(torch, dtype, None)
    if isinstance(found, torch.dtype) and found.is_floating_point:
        return found
    message, fix = f"`{name}`: `{dtype}` is no float type", 'say "bfloat16" or "float16"'
    raise fail("K001", message, help=fix)


# -- reductions ------------------------------------------------------------------------------------


def min_(*xs: Tensor | Sequence[Number] | Number) -> Number:
    """The least of the numbers, or of the elements of one tensor or tuple; nan if one is nan."""
    return _extreme("min", torch.amin, xs)


def max_(*xs: Tensor | Sequence[Number] | Number) -> Number:
    """The greatest of the numbers, or of the elements of one tensor or tuple; nan if one is nan."""
    return _extreme("max", torch.amax, xs)


def _extreme(
    name: str, best: Callable[[Tensor], Tensor], xs: tuple[Tensor | Sequence[Number] | Number, ...]
) -> Number:
    """Numbers go through float64 only if one of them is a float: integers stay exact."""
    found = xs[0] if len(xs) == 1 else xs
    values = (
        found.detach() if isinstance(found, Tensor) else torch.tensor(found, dtype=_kind(found))
    )
    require(values.numel() > 0, name, "there is nothing to compare")
    return best(values).item()


def _kind(numbers: Sequence[object] | Number) -> torch.dtype:
    listed = numbers if isinstance(numbers, Sequence) else (numbers,)
    return torch.int64 if all(isinstance(n, int) for n in listed) else torch.float64


def sum_(x: Tensor, axis: int | None = None) -> Tensor | Number:
    """The sum of all elements as a number, or along one axis as a tensor of the dtype of `x`."""
    return wide(x).sum().item() if axis is None else wide(x).sum(dim=axis).to(x.dtype)


def mean(x: Tensor, axis: int | None = None) -> Tensor | Number:
    """The mean of all elements as a number, or along one axis as a tensor of the dtype of `x`."""
    return wide(x).mean().item() if axis is None else wide(x).mean(dim=axis).to(x.dtype)


def variance(x: Tensor, axis: int | None = None) -> Tensor | Number:
    """The mean squared distance from the mean, of all elements or along one axis."""
    if axis is None:
        return wide(x).var(correction=0).item()
    return wide(x).var(dim=axis, correction=0).to(x.dtype)


def rows(w: Tensor | None, first: int, last: int) -> Tensor | None:
    """Rows `first` to `last - 1` of `w [R, ...]`; an absent weight stays absent."""
    if w is None:
        return None
    require(0 <= first <= last <= len(w), "rows", f"{first} to {last} of {len(w)} rows")
    return w[first:last]


def nonzeros(x: Tensor | Number) -> int:
    """How many numbers are not zero."""
    return int(torch.count_nonzero(x)) if isinstance(x, Tensor) else int(x != 0)


def all_zero(x: Tensor | Number | None) -> bool:
    """Whether every number is 0; what is absent counts as 0."""
    return x is None or nonzeros(x) == 0


FUNCTIONS = (
    svd, einsum, matvec, scale, diag, transpose, reshape, concat, zeros, ones, kaiming, numel,
    inverse_dims,     sqrt, exp, log, abs_, rows, round_up, min_, max_, sum_, mean, variance,
    nonzeros, all_zero, round_to, as_type,
)  # fmt: skip
"""Rules call them by these names; a trailing underscore only keeps Python's own name free."""
