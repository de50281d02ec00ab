"""Dense convolution = depthwise then pointwise, by one small SVD for every input channel.

Guo, Li, Lin, Chen, Li: Network Decoupling: From Regular to Depthwise Separable Convolutions. BMVC
2018, arXiv:1808.05517.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

from .tensors import finite, require, svd, wide


def separable_svd(w: Tensor, m: int = 1) -> tuple[Tensor, Tensor]:
    """Depthwise `[I * m, 1, ...]` and pointwise `[O, I * m, 1, ...]` for `w [O, I, ...]`.

    The slice of one input channel is a matrix, outputs by taps. Its best rank-m part (Eckart and
    Young) is m spatial filters with their output mixes; the slices share nothing, so the whole is
    optimal too. With m equal to the number of taps nothing is lost. The root of each singular value
    goes to either factor. dtype of `w`. Raises K001 unless 1 <= m <= taps, K002 unless `w` is
    finite.
    """
    outputs, inputs = w.shape[:2]
    slices = finite("separable_svd", w).flatten(2).transpose(0, 1)
    taps = slices.shape[2]
    require(
        1 <= m <= taps,
        "separable_svd",
        f"multiplier {m} is outside 1..{taps}",
        f"{taps} filters already span every kernel of {taps} taps",
    )
    u, s, v = svd(slices)
    u, root, v = _exactly(m, u[..., :m], s[:, :m].sqrt(), v[:, :m])
    depthwise = (root[:, :, None] * v).reshape(inputs * m, 1, *w.shape[2:])
    pointwise = (u * root[:, None, :]).transpose(0, 1).reshape(outputs, inputs * m)
    return depthwise.to(w.dtype), _pointwise(pointwise, w.ndim).to(w.dtype)


def _exactly(m: int, u: Tensor, root: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Silent filters up to m: fewer outputs than m leave less than m singular values."""
    lack = m - root.shape[1]
    return pad(u, (0, lack)), pad(root, (0, lack)), pad(v, (0, 0, 0, lack))


def _pointwise(matrix: Tensor, ndim: int) -> Tensor:
    return matrix.reshape(*matrix.shape, *[1] * (ndim - 2))


def separable_join(dw: Tensor, pw: Tensor, m: int = 1) -> Tensor:
    """What depthwise `dw`, then pointwise `pw` of `separable_svd` equal: `[O, I, ...]`.

    Summed in float64 and rounded once. Raises K001 if the factors do not fit each other.
    """
    require(
        dw.shape[0] == pw.shape[1] and dw.shape[1] == 1 and dw.shape[0] % m == 0,
        "separable_join",
        f"{list(dw.shape)} and {list(pw.shape)} do not pair with multiplier {m}",
    )
    inputs = dw.shape[0] // m
    filters = wide(dw).reshape(inputs, m, -1)
    mixes = wide(pw).reshape(pw.shape[0], inputs, m).transpose(0, 1)
    dense = (mixes @ filters).transpose(0, 1)
    return dense.reshape(pw.shape[0], inputs, *dw.shape[2:]).to(dw.dtype)


def separable_svd_1d(w: Tensor, m: int = 1) -> tuple[Tensor, Tensor]:
    """`separable_svd` of `w [O, I, K]`: the declaration of a rule function fixes the axes."""
    return separable_svd(w, m)


def separable_join_1d(dw: Tensor, pw: Tensor, m: int = 1) -> Tensor:
    """`separable_join` of the factors of `w [O, I, K]`."""
    return separable_join(dw, pw, m)


FUNCTIONS = (separable_svd, separable_join, separable_svd_1d, separable_join_1d)
