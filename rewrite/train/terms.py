"""The terms of a loss: what each one asks of outputs, targets, teachers and weights."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...grammar.diagnostics import Label, LissomError, fail
from ..graph.runs import innermost, one_line
from ..measure.gradients import Loss
from .settings import Called
from .taps import INSIDE, is_exit, is_score, name_of_place


@dataclass(slots=True)
class StepSeen:
    """What one step knows: outputs of the student and the teacher, the target; values inside, the
    student's by the name of an `InnerPlace`, adapted for hints, the teacher's by their glob.
    """

    outputs: Any
    target: Any
    taught: Any = None
    inside: Mapping[str, Tensor] = field(default_factory=dict)
    taught_inside: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def exits(self) -> list[Tensor]:
        """What each exit gives. Raises ValueError where there is none."""
        found = [value for name, value in self.inside.items() if is_exit(name)]
        if not found:
            raise ValueError("the model has no exit")
        return found


Term = Callable[[StepSeen], Tensor]

LABELLED = ("task", "cross_entropy", "exits", "sure")
"""Terms that need labels."""

TAUGHT = ("kl", "logits", *INSIDE)
"""Terms that follow a teacher."""


class Unfit(ValueError):
    """What the student gives and what its teacher gives cannot be compared."""


@dataclass(frozen=True, slots=True)
class PenalisedWeights:
    """The weights that penalties look at: scales of norms, and matrices and kernels."""

    scales: Callable[[], Sequence[Tensor]]
    matrices: Callable[[], Sequence[Tensor]]


@dataclass
class Losses:
    """The sum of the terms of a program."""

    calls: Sequence[Called]
    loss: Loss
    weights: PenalisedWeights

    def __post_init__(self) -> None:
        self.terms = [(call, self._term(call)) for call in self.calls]

    def __call__(self, seen: StepSeen) -> Tensor:
        """A scalar: means over the samples of the batch, and penalties. Raises F104 where a term
        needs what there is none of, F105 where the teacher does not fit the student.
        """
        found = [call.factor * self._valued(call, term, seen) for call, term in self.terms]
        return torch.stack(found).sum()

    def _valued(self, call: Called, term: Term, seen: StepSeen) -> Tensor:
        place, message = Label(call.span, "this term"), f"`{call.name}` cannot be computed"
        if call.name in LABELLED and seen.target is None:
            hint = "use `kl` or `logits` alone on samples without labels"
            raise fail("F104", "the data has no labels", place, help=hint)
        try:
            value = term(seen)
        except LissomError:
            raise
        except Unfit as error:
            place = Label(call.span, "follows a teacher")
            raise fail("F105", str(error), place, help=_REMEDIES.get(call.name, "")) from None
        except Exception as error:  # the loss of the task is code of the user
            where = innermost(error)
            places = (place, Label(None, where=where)) if where else (place,)
            note = f"{type(error).__name__}: {one_line(error)}"
            raise fail("F104", message, *places, note=note) from error
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            hint = "a loss gives one number, the mean over the samples: `loss.mean()`"
            raise fail("F104", message, place, note=f"it gives {_told(value)}", help=hint)
        return value.reshape(())

    def _term(self, call: Called) -> Term:
        makers: Mapping[str, Callable[..., Term]] = {
            "task": self._task, "cross_entropy": _cross_entropy, "kl": _kl, "logits": _logits,
            "hint": _hint, "attention": _attention, "norm_scales": self._norm_scales,
            "group_sparsity": self._group_sparsity, "exits": self._exits,
            "follow_last": _follow_last, "sure": _sure,
        }  # fmt: skip
        try:
            return makers[call.name](*call.args, **call.keywords)
        except (TypeError, ValueError) as error:
            said = re.sub(r"^[\w.]+\(\) ", "it ", str(error))  # Python names the maker
            message = f"`{call.name}` does not take this: {said}"
            raise fail("F004", message, Label(call.span)) from None

    def _task(self) -> Term:
        return lambda seen: self.loss(seen.outputs, seen.target)

    def _exits(self, weights: Sequence[float] | None = None) -> Term:
        """Of all exits together, each with its weight: Teerapittayanon et al. 2016,
        arXiv:1709.01686, equation 1.
        """

        def term(seen: StepSeen) -> Tensor:
            found, factors = seen.exits, weights or [1.0] * len(seen.exits)
            if len(factors) != len(found):
                raise ValueError(f"the model has {len(found)} exits, and these are {len(factors)}")
            pairs = zip(factors, found, strict=True)
            return torch.stack([w * self.loss(e, seen.target) for w, e in pairs]).sum()

        return term

    def _norm_scales(self) -> Term:
        """Network Slimming: Liu et al. 2017, arXiv:1708.06519."""

        def term(seen: StepSeen) -> Tensor:
            scales = self.weights.scales()
            if not scales:
                raise ValueError("no norm of the model has scales")
            return torch.stack([w.abs().sum() for w in scales]).sum()

        return term

    def _group_sparsity(self) -> Term:
        """Groups of outputs and of inputs: Wen et al. 2016, arXiv:1608.03665, section 3.1."""

        def term(seen: StepSeen) -> Tensor:
            groups = [_groups(w, axis) for w in self.weights.matrices() for axis in (0, 1)]
            return torch.stack([norms.sum() for norms in groups]).sum()

        return term


def _groups(w: Tensor, axis: int) -> Tensor:
    """The norms of what belongs to each position of an axis; that of zeros has the gradient 0."""
    squares = w.movedim(axis, 0).flatten(1).square().sum(1)
    return torch.where(squares > 0, squares, 1).sqrt() * (squares > 0)


def _told(value: Any) -> str:
    shape = f" {list(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else ""
    return f"a {type(value).__name__}{shape}"


def _cross_entropy(smoothing: float = 0.0) -> Term:
    """Label smoothing: Szegedy et al. 2016, arXiv:1512.00567, section 7."""

    def term(seen: StepSeen) -> Tensor:
        return functional.cross_entropy(seen.outputs, seen.target, label_smoothing=smoothing)

    return term


def _kl(temperature: float = 1.0) -> Term:
    """Soft targets: Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2. The square of the
    temperature keeps gradients as large as those of hard labels.
    """
    if not isinstance(temperature, (int, float)) or not 0 < temperature < math.inf:
        raise ValueError("`temperature` is a number greater than 0")

    def term(seen: StepSeen) -> Tensor:
        own = functional.log_softmax(seen.outputs / temperature, 1)
        taught = _comparable(seen.outputs, seen.taught)
        soft = functional.log_softmax(taught / temperature, 1)
        apart = functional.kl_div(own, soft, reduction="none", log_target=True).sum(1)
        return temperature**2 * apart.mean()

    return term


def _logits() -> Term:
    """Ba and Caruana 2014, arXiv:1312.6184."""

    def term(seen: StepSeen) -> Tensor:
        return functional.mse_loss(seen.outputs, _comparable(seen.outputs, seen.taught))

    return term


def _follow_last(temperature: float = 3.0) -> Term:
    """Exits follow what the network gives at its end: Phuong and Lampert 2019, "Distillation-based
    training for multi-exit architectures".
    """
    kl = _kl(temperature)

    def term(seen: StepSeen) -> Tensor:
        last = seen.outputs.detach()
        found = [kl(StepSeen(logits, None, last)) for logits in seen.exits]
        return torch.stack(found).sum()

    return term


def _sure() -> Term:
    """Scores that have weights of their own learn whether their exit names the right class: the
    cross-entropy of a probability.
    """

    def term(seen: StepSeen) -> Tensor:
        scores = [value for name, value in seen.inside.items() if is_score(name)]
        pairs = zip(seen.exits, scores, strict=True)
        found = [_right_or_wrong(logits, score, seen.target) for logits, score in pairs]
        return torch.stack(found).sum()

    return term


def _right_or_wrong(logits: Tensor, score: Tensor, target: Tensor) -> Tensor:
    right = (logits.detach().argmax(-1) == target).to(score.dtype)
    return functional.binary_cross_entropy(score.clamp(1e-6, 1 - 1e-6), right)


def _hint(at: str, of: str = "") -> Term:
    """FitNets: Romero et al. 2015, arXiv:1412.6550."""
    name = name_of_place("hint", at, of)

    def term(seen: StepSeen) -> Tensor:
        own = seen.inside[name]
        return functional.mse_loss(own, _comparable(own, seen.taught_inside[of or at]))

    return term


def _attention(at: str, of: str = "") -> Term:
    """Zagoruyko and Komodakis 2017, arXiv:1612.03928, equation 2, with means over positions."""
    name = name_of_place("attention", at, of)

    def term(seen: StepSeen) -> Tensor:
        own, taught = _map(seen.inside[name]), _map(seen.taught_inside[of or at])
        return (own - _comparable(own, taught)).square().sum(1).mean()

    return term


def _map(value: Tensor) -> Tensor:
    """How active each position of `[N, C, H, W]` is: `[N, H * W]` of length 1."""
    if value.dim() < 3:
        raise Unfit(f"a value of shape {_shape(value)} has no positions to be active at")
    return functional.normalize(value.square().mean(1).flatten(1), dim=1)


def _comparable(own: Any, taught: Any) -> Tensor:
    """What the teacher gives, in the dtype of the student's. Never spread over another shape: that
    would be a loss, and mean nothing.
    """
    if not isinstance(own, Tensor) or not isinstance(taught, Tensor):
        raise Unfit("the student and its teacher give one tensor each, or no term compares them")
    if own.shape != taught.shape:
        raise Unfit(f"the student gives {_shape(own)}, and its teacher {_shape(taught)}")
    return taught.to(own.dtype)


def _shape(value: Tensor) -> str:
    return f"[N{''.join(f', {size}' for size in value.shape[1:])}]"


_REMEDIES = {
    "kl": "follow a teacher with the same classes in its outputs",
    "logits": "follow a teacher with the same outputs",
    "hint": "name places whose values have the same sizes, but for one axis",
    "attention": "name places whose values have the same height and width",
}


def adapter(own: Tensor, taught: Tensor) -> nn.Module | None:
    """What makes one value comparable with another of which it differs along one axis: a linear
    layer along it, which for images is a convolution of 1x1.
    """
    pairs = enumerate(zip(own.shape, taught.shape, strict=False))
    axes = [axis for axis, (mine, theirs) in pairs if axis and mine != theirs]
    if own.dim() != taught.dim() or len(axes) != 1:
        return None
    return AlongAxis(axes[0], own.shape[axes[0]], taught.shape[axes[0]]).to(own.dtype)


class AlongAxis(nn.Module):
    """A linear layer along one axis of what it is given."""

    def __init__(self, axis: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.axis, self.linear = axis, nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, ..., inputs, ...]` to `[N, ..., outputs, ...]`."""
        return self.linear(x.movedim(self.axis, -1)).movedim(-1, self.axis)
