"""The terms of a loss: what each one asks of outputs, targets, teachers and weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...grammar.diagnostics import Label, LissomError, fail
from ..measure.gradients import Loss
from .settings import Called


@dataclass(slots=True)
class StepSeen:
    """What one step knows: outputs of the student and the teacher, values inside of both by the
    glob of their place, the target.
    """

    outputs: Any
    target: Any
    taught: Any = None
    inside: Mapping[str, Tensor] = field(default_factory=dict)
    taught_inside: Mapping[str, Tensor] = field(default_factory=dict)


Term = Callable[[StepSeen], Tensor]

INSIDE = ("hint", "attention")
"""Terms that look at values inside; `at` names the student's, `of` the teacher's."""

TAUGHT = ("kl", "logits", *INSIDE)
"""Terms that follow a teacher."""


@dataclass(frozen=True, slots=True)
class PenalisedWeights:
    """The weights that penalties look at: scales of norms, and matrices and kernels."""

    scales: Callable[[], Sequence[Tensor]]
    matrices: Callable[[], Sequence[Tensor]]


@dataclass
class Losses:
    """The sum of the terms of a program. adapters: layers that make what the student holds as wide
    as what the teacher holds; they are trained along and belong to no model.
    """

    calls: Sequence[Called]
    loss: Loss
    weights: PenalisedWeights
    adapters: nn.ModuleDict = field(default_factory=nn.ModuleDict)

    def __post_init__(self) -> None:
        self.terms = [(call, self._term(call)) for call in self.calls]

    def __call__(self, seen: StepSeen) -> Tensor:
        """A scalar: means over the samples of the batch, and penalties. Raises F104 where a term
        needs what there is none of.
        """
        found = [call.factor * self._valued(call, term, seen) for call, term in self.terms]
        return torch.stack(found).sum()

    def _valued(self, call: Called, term: Term, seen: StepSeen) -> Tensor:
        try:
            return term(seen)
        except LissomError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            note = f"{type(error).__name__}: {error}"
            place = Label(call.span, "this term")
            raise fail("F104", f"`{call.name}` cannot be computed", place, note=note) from error

    def _term(self, call: Called) -> Term:
        makers: Mapping[str, Callable[..., Term]] = {
            "task": self._task, "cross_entropy": _cross_entropy, "kl": _kl, "logits": _logits,
            "hint": self._hint, "attention": _attention, "norm_scales": self._norm_scales,
            "group_sparsity": self._group_sparsity,
        }  # fmt: skip
        try:
            return makers[call.name](*call.args, **call.keywords)
        except TypeError as error:
            place = Label(call.span)
            raise fail("F004", f"`{call.name}` does not take this: {error}", place) from None

    def _task(self) -> Term:
        return lambda seen: self.loss(seen.outputs, _labelled(seen))

    def _hint(self, at: str, of: str = "") -> Term:
        """FitNets: Romero et al. 2015, arXiv:1412.6550."""

        def term(seen: StepSeen) -> Tensor:
            own, taught = seen.inside[at], seen.taught_inside[of or at]
            return functional.mse_loss(self.adapted(at, own, taught), taught)

        return term

    def adapted(self, at: str, own: Tensor, taught: Tensor) -> Tensor:
        """`own` as wide as `taught`: through an adapter where their widths differ."""
        key = at.replace(".", "/")
        if key in self.adapters:
            return self.adapters[key](own)
        return own

    def adapt(self, at: str, own: Tensor, taught: Tensor) -> None:
        """Makes the adapter of a place, once: 1x1 for images, a linear layer for vectors."""
        if own.shape == taught.shape:
            return
        axis = 1 if own.dim() == 4 else -1
        inputs, outputs = own.shape[axis], taught.shape[axis]
        layer = nn.Conv2d(inputs, outputs, 1) if own.dim() == 4 else nn.Linear(inputs, outputs)
        self.adapters[at.replace(".", "/")] = layer

    def _norm_scales(self) -> Term:
        """Network Slimming: Liu et al. 2017, arXiv:1708.06519."""
        return lambda seen: torch.stack([w.abs().sum() for w in self.weights.scales()]).sum()

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


def _labelled(seen: StepSeen) -> Any:
    if seen.target is None:
        hint = "use `kl` or `logits` alone on samples without labels"
        raise fail("F104", "a term of the loss needs labels, and the data has none", help=hint)
    return seen.target


def _cross_entropy(smoothing: float = 0.0) -> Term:
    """Label smoothing: Szegedy et al. 2016, arXiv:1512.00567, section 7."""

    def term(seen: StepSeen) -> Tensor:
        return functional.cross_entropy(seen.outputs, _labelled(seen), label_smoothing=smoothing)

    return term


def _kl(temperature: float = 1.0) -> Term:
    """Soft targets: Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2. The square of the
    temperature keeps gradients as large as those of hard labels.
    """

    def term(seen: StepSeen) -> Tensor:
        own = functional.log_softmax(seen.outputs / temperature, 1)
        taught = functional.log_softmax(seen.taught / temperature, 1)
        apart = functional.kl_div(own, taught, reduction="none", log_target=True).sum(1)
        return temperature**2 * apart.mean()

    return term


def _logits() -> Term:
    """Ba and Caruana 2014, arXiv:1312.6184."""
    return lambda seen: functional.mse_loss(seen.outputs, seen.taught)


def _attention(at: str, of: str = "") -> Term:
    """Zagoruyko and Komodakis 2017, arXiv:1612.03928, equation 2, with means over positions."""

    def term(seen: StepSeen) -> Tensor:
        own, taught = _map(seen.inside[at]), _map(seen.taught_inside[of or at])
        return (own - taught).square().sum(1).mean()

    return term


def _map(value: Tensor) -> Tensor:
    """How active each position of `[N, C, H, W]` is: `[N, H * W]` of length 1."""
    return functional.normalize(value.square().mean(1).flatten(1), dim=1)
