"""What observers keep of a value while calibration data runs, and the ranges that follow from it.

An observer sees each batch once. The ends of a range are exact; histograms count some of the
numbers of a batch, evenly spaced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .tensors import require

SAMPLED = 1 << 16
"""So many numbers of one batch a histogram counts at most: counting costs 50 times as much as
looking for the ends."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a value held: its least and its most number, nan or infinite where one was, and of a
    histogram how many numbers lie in bins of `width`, the first from `start * width` on.
    """

    least: float
    most: float
    counts: Tensor | None = field(default=None, compare=False)
    width: float = 0.0
    start: int = 0

    def __str__(self) -> str:
        return f"{self.least:.4g} ... {self.most:.4g}"


# -- observers -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MinMax:
    """The ends over all batches, or their moving average: `share` of each new batch, the rest of
    what there was.
    """

    share: float | None = None

    def begin(self) -> _Ends:
        return _Ends(self.share)


@dataclass(frozen=True, slots=True)
class Histogram:
    """The ends, and counts in at most `bins` bins."""

    bins: int

    def begin(self) -> _Counts:
        return _Counts(self.bins)


@dataclass(slots=True)
class _Ends:
    share: float | None
    ends: tuple[float, float] | None = None

    def update(self, value: Tensor) -> None:
        least, most = (end.item() for end in value.aminmax())
        if self.ends is None:
            self.ends = least, most
        elif self.share is None:
            # Not min and max of Python, which drop a nan that comes first.
            both = torch.tensor([[*self.ends], [least, most]], dtype=torch.float64)
            self.ends = both[:, 0].min().item(), both[:, 1].max().item()
        else:
            old, a = self.ends, self.share
            self.ends = old[0] + a * (least - old[0]), old[1] + a * (most - old[1])

    def result(self) -> Seen | None:
        return None if self.ends is None else Seen(*self.ends)


@dataclass(slots=True)
class _Counts:
    """Bins are `width` wide, a power of two, and begin at multiples of it. Where more numbers come
    than `bins` of them hold, pairs of neighbours become one: counts stay exact, whatever the order
    of the batches.
    """

    bins: int
    ends: _Ends = field(default_factory=lambda: _Ends(None))
    exponent: int = -126
    counts: dict[int, int] = field(default_factory=dict)

    def update(self, value: Tensor) -> None:
        self.ends.update(value)
        assert self.ends.ends is not None
        least, most = self.ends.ends
        if math.isfinite(least) and math.isfinite(most):
            self._widen(least, most)
            self._count(_spaced(value))

    def _widen(self, least: float, most: float) -> None:
        exponent = self.exponent
        while math.floor(most / 2.0**exponent) - math.floor(least / 2.0**exponent) >= self.bins:
            exponent += 1
        shift, self.exponent = exponent - self.exponent, exponent
        old, self.counts = self.counts, {}
        for place, count in old.items():
            self.counts[place >> shift] = self.counts.get(place >> shift, 0) + count

    def _count(self, numbers: Tensor) -> None:
        places = (numbers.double() * 2.0**-self.exponent).floor_().long()
        low = int(places.min())
        for offset, count in enumerate(torch.bincount(places - low).tolist()):
            if count:
                self.counts[low + offset] = self.counts.get(low + offset, 0) + count

    def result(self) -> Seen | None:
        ends = self.ends.result()
        if ends is None or not self.counts:
            return ends
        start, stop = min(self.counts), max(self.counts)
        counts = torch.tensor([self.counts.get(i, 0) for i in range(start, stop + 1)])
        return Seen(ends.least, ends.most, counts, 2.0**self.exponent, start)


def _spaced(value: Tensor) -> Tensor:
    """At most `SAMPLED` numbers, evenly spaced, by a step that meets all places of every axis."""
    flat = value.reshape(-1)
    step = -(-flat.numel() // SAMPLED)
    while step > 1 and any(math.gcd(step, size) > 1 for size in value.shape if size > 1):
        step += 1
    return flat[::step]


def min_max() -> MinMax:
    """Watches the least and the most number of all data."""
    return MinMax()


def moving_average(share: float = 0.01) -> MinMax:
    """Watches the ends of each batch and averages them: each new batch counts `share`."""
    require(0 < share <= 1, "moving_average", f"a share of {share} is none")
    return MinMax(float(share))


def histogram(bins: int = 2048) -> Histogram:
    """Watches the ends, and how numbers are spread between them in at most `bins` bins."""
    require(bins >= 2, "histogram", f"{bins} bins show nothing")
    return Histogram(int(bins))


@dataclass(frozen=True, slots=True)
class ChannelPeaks:
    """The largest magnitude of each channel, along an axis."""

    axis: int

    def begin(self) -> _Peaks:
        return _Peaks(self.axis)


@dataclass(slots=True)
class _Peaks:
    axis: int
    peaks: Tensor | None = None

    def update(self, value: Tensor) -> None:
        channels = value.movedim(self.axis, 0).reshape(value.shape[self.axis], -1)
        found = channels.abs().amax(1).double()
        self.peaks = found if self.peaks is None else torch.maximum(self.peaks, found)

    def result(self) -> Tensor | None:
        return self.peaks


def channel_peaks(axis: int = 1) -> ChannelPeaks:
    """Watches the largest magnitude of each channel along an axis, float64 [C]; nan where one
    was.
    """
    return ChannelPeaks(int(axis))


# -- ranges ----------------------------------------------------------------------------------------


def clip_range(seen: Seen, method: str = "min_max", bits: int = 8, share: float = 1e-4) -> Seen:
    """A range for codes of `bits` bits. `min_max`: all that was seen. The others want a histogram:
    `percentile` leaves `share` of the numbers out at each end that is not zero; `mse` has the least
    squared error, rounding and clipping together; `entropy` the least Kullback-Leibler divergence
    between the histogram and that of the codes (Migacz, 8-bit inference with TensorRT, 2017).

    Raises K001 for another method, and where there is no histogram.
    """
    require(method in _METHODS, "clip_range", f"`{method}` is none of {', '.join(_METHODS)}")
    if method == "min_max" or not (math.isfinite(seen.least) and math.isfinite(seen.most)):
        return seen
    fix = "attach histogram() on x as x.range"
    require(seen.counts is not None, "clip_range", f"`{method}` needs a histogram", fix)
    least, most = _METHODS[method](_Spread.of(seen), bits, share)
    return Seen(max(least, seen.least), min(most, seen.most), seen.counts, seen.width, seen.start)


@dataclass(frozen=True, slots=True)
class _Spread:
    """A histogram: the ends of what was seen, and bins by their middles, float64 [B]."""

    least: float
    most: float
    counts: Tensor
    middles: Tensor
    width: float

    @classmethod
    def of(cls, seen: Seen) -> _Spread:
        assert seen.counts is not None
        places = torch.arange(len(seen.counts), dtype=torch.float64) + (seen.start + 0.5)
        middles = (places * seen.width).clamp(seen.least, seen.most)
        return cls(seen.least, seen.most, seen.counts.double(), middles, seen.width)

    def candidates(self, count: int = 64) -> list[tuple[float, float]]:
        """Ranges that shrink towards zero, both ends alike."""
        parts = [1 - part / count for part in range(count)]
        return [(min(self.least, 0.0) * part, max(self.most, 0.0) * part) for part in parts]


def _whole(spread: _Spread, bits: int, share: float) -> tuple[float, float]:
    return spread.least, spread.most


def _percentile(spread: _Spread, bits: int, share: float) -> tuple[float, float]:
    below = spread.counts.cumsum(0) / spread.counts.sum()
    first = int((below > share).nonzero()[0])
    last = int((below >= 1 - share).nonzero()[0])
    half = spread.width / 2
    least = spread.middles[first].item() - half if spread.least < 0 else spread.least
    most = spread.middles[last].item() + half if spread.most > 0 else spread.most
    return least, most


def _least_error(spread: _Spread, bits: int, share: float) -> tuple[float, float]:
    def error(range_: tuple[float, float]) -> float:
        codes, step = _codes(spread.middles, range_, bits)
        moved = spread.middles.clamp(*range_) - spread.middles
        inside = ((codes * step - spread.middles) ** 2).where(moved == 0, moved**2)
        return (spread.counts * inside).sum().item()

    return min(filter(_is_wide, spread.candidates()), key=error)


def _entropy(spread: _Spread, bits: int, share: float) -> tuple[float, float]:
    """What lies outside counts at the end, in what is coded; codes that no number has stay out."""

    def divergence(range_: tuple[float, float]) -> float:
        codes, _ = _codes(spread.middles, range_, bits)
        groups = (codes - codes.min()).long()
        inside = (spread.middles >= range_[0]) & (spread.middles <= range_[1])
        held = spread.counts * inside
        used = (held > 0).double()
        total, places = _summed(groups, held), _summed(groups, used)
        coded = (total / places.clamp(min=1))[groups] * used
        clipped = held.clone()
        ends = _ends_of(inside)
        clipped[ends[0]] += spread.counts[: ends[0]].sum()
        clipped[ends[1]] += spread.counts[ends[1] + 1 :].sum()
        return _divergence(clipped, coded)

    return min(filter(_is_wide, spread.candidates()), key=divergence)


def _is_wide(range_: tuple[float, float]) -> bool:
    return range_[1] > range_[0]


def _codes(numbers: Tensor, range_: tuple[float, float], bits: int) -> tuple[Tensor, float]:
    """Multiples of a step that numbers are rounded to, and the step."""
    step = (range_[1] - range_[0]) / (2**bits - 1)
    return (numbers.clamp(*range_) / step).round(), step


def _summed(groups: Tensor, numbers: Tensor) -> Tensor:
    return torch.zeros(int(groups.max()) + 1, dtype=numbers.dtype).index_add(0, groups, numbers)


def _ends_of(inside: Tensor) -> tuple[int, int]:
    places = inside.nonzero()
    return (int(places[0]), int(places[-1])) if len(places) else (0, len(inside) - 1)


def _divergence(of: Tensor, by: Tensor) -> float:
    """Kullback-Leibler, of counts; infinite where `by` has none of what is there."""
    p, q = of / of.sum(), by / by.sum().clamp(min=1e-300)
    there = p > 0
    return (p[there] * (p[there] / q[there].clamp(min=1e-300)).log()).sum().item()


_METHODS: Mapping[str, Callable[[_Spread, int, float], tuple[float, float]]] = {
    "min_max": _whole,
    "percentile": _percentile,
    "mse": _least_error,
    "entropy": _entropy,
}

FUNCTIONS = (min_max, moving_average, histogram, channel_peaks, clip_range)
