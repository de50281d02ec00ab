"""Optimisers of torch.optim by their names, and how the learning rate goes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ...grammar.diagnostics import Label, did_you_mean, fail
from .settings import Called

Rate = Callable[[float], float]
"""The factor of the learning rate when this share of the training is done, 0..1."""


def optimizer_class(call: Called) -> type[torch.optim.Optimizer]:
    """The class of torch.optim. Raises F004 where there is none."""
    found = getattr(torch.optim, call.name, None)
    if isinstance(found, type) and issubclass(found, torch.optim.Optimizer):
        return found
    known = known_optimizers()
    hint = next(iter(did_you_mean(call.name, known)), "")
    label = Label(call.span, f"known: {', '.join(known)}")
    raise fail("F004", f"torch.optim has no `{call.name}`", label, help=hint)


def known_optimizers() -> list[str]:
    """The names of what torch.optim has."""
    base = torch.optim.Optimizer
    found = (n for n, c in vars(torch.optim).items() if isinstance(c, type) and issubclass(c, base))
    return sorted(name for name in found if name != "Optimizer")


def make_optimizer(call: Called, weights: Iterable[Tensor]) -> torch.optim.Optimizer:
    """Weight decay is for matrices and kernels alone: biases, and scales of norms, are left out of
    it. A number that a mask holds at 0 is 0 for the optimiser too, and decay leaves it there.

    Raises F004 where the class does not take the settings or the weights.
    """
    kind = optimizer_class(call)
    held = list(weights)
    if call.keywords.get("fused") and not all(weight.is_contiguous() for weight in held):
        message = f"`{call.name}` cannot be fused: a weight does not lie in one piece"
        note = "on the CPU fused steps take numbers in the order of memory, and train other ones"
        raise fail("F004", message, Label(call.span), note=note, help="leave `fused` out")
    groups: Any = held
    if _decays(kind, call):
        few = [weight for weight in held if weight.dim() < 2]
        many = [weight for weight in held if weight.dim() >= 2]
        parts = [{"params": many}, {"params": few, "weight_decay": 0.0}]
        groups = [part for part in parts if part["params"]]
    try:
        return kind(groups, *call.args, **call.keywords)
    except (TypeError, ValueError) as error:
        note = f"{type(error).__name__}: {error}"
        place = Label(call.span, f"it takes {', '.join(_settings(kind))}")
        raise fail("F004", f"`{call.name}` does not take this", place, note=note) from error


def _settings(kind: type) -> Iterator[str]:
    """`lr = 0.001`, and so on: those that may be given by position, with their defaults."""
    for one in list(inspect.signature(kind.__init__).parameters.values())[2:]:
        if one.kind is one.POSITIONAL_OR_KEYWORD:
            yield one.name if one.default is one.empty else f"{one.name} = {one.default}"


def _decays(kind: type, call: Called) -> bool:
    known = inspect.signature(kind.__init__).parameters.get("weight_decay")
    default = 0 if known is None else known.default
    return bool(call.keywords.get("weight_decay", default)) and kind is not torch.optim.Muon


# -- the learning rate -----------------------------------------------------------------------------


def rate_of(call: Called) -> Rate:
    """A schedule as a function of the share of training that is done. It has no memory, so that a
    run that goes on later has nothing to remember. Raises F004.
    """
    try:
        rate = _rate(call)
        [float(rate(done / 4)) for done in range(4)]  # what does not fit is said before training
    except (TypeError, ValueError, ArithmeticError) as error:
        raise fail("F004", f"`{call.name}` does not take this: {error}", Label(call.span)) from None
    return rate


def _rate(call: Called) -> Rate:
    given = dict(call.keywords)
    warmup = float(given.pop("warmup", 0.0))
    makers = {make.__name__: make for make in (_constant, _linear, _cosine, _one_cycle, _step)}
    rate = makers[f"_{call.name}"](*call.args, **given)
    return rate if warmup <= 0 else lambda done: min(1.0, done / warmup) * rate(done)


def _constant() -> Rate:
    return lambda done: 1.0


def _linear(end: float = 0.0) -> Rate:
    return lambda done: 1 + (end - 1) * done


def _cosine(end: float = 0.0) -> Rate:
    return lambda done: end + (1 - end) * (1 + math.cos(math.pi * done)) / 2


def _one_cycle(rise: float = 0.3, start: float = 0.04) -> Rate:
    """Smith and Topin 2018, arXiv:1708.07120: up along half a cosine, then down to 0."""

    def rate(done: float) -> float:
        if done < rise:
            return start + (1 - start) * (1 - math.cos(math.pi * done / rise)) / 2
        return (1 + math.cos(math.pi * (done - rise) / (1 - rise))) / 2

    return rate


def _step(at: tuple[float, ...] = (0.5, 0.75), factor: float = 0.1) -> Rate:
    return lambda done: factor ** sum(done >= place for place in at)
