"""Gradients of the loss for the parameters of the working model, on calibration data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from ...grammar.diagnostics import Label, LissomError, fail
from ..graph.runs import own_inputs
from ..torch_internals import tree_flatten, tree_unflatten
from .batches import Pairs, batch_size, pieces

Loss = Callable[[Any, Any], Tensor]
"""`f(outputs, targets)` gives a scalar, the mean over the samples of a batch."""

TOGETHER = 1 << 28
"""Bytes of gradients of single samples that are held at a time."""

VECTORLESS = (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError, LissomError)
"""What a model or a loss raises that cannot be vectorised over samples. One that cannot be computed
at all says so when it is run for a single sample.
"""


def loss_of_task(outputs: Any, targets: Any) -> Tensor:
    """Cross-entropy of logits [N, K, ...] against classes int64 [N, ...], the mean squared error
    of numbers against numbers of the same shape. Raises D006 for anything else.
    """
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        raise _no_loss("the model's output and the target are not one tensor each")
    if not targets.is_floating_point() and targets.ndim == outputs.ndim - 1:
        return functional.cross_entropy(outputs, targets.long())
    if targets.is_floating_point() and targets.shape == outputs.shape:
        return functional.mse_loss(outputs, targets)
    shapes = f"outputs are {list(outputs.shape)}, targets {list(targets.shape)}"
    raise _no_loss(f"{shapes} of {str(targets.dtype).removeprefix('torch.')}")


def _no_loss(note: str) -> Exception:
    hint = "pass `loss=` to lissom.compile, or define loss(outputs, targets) in the model file"
    return fail("D006", "the loss cannot be computed", Label(None), note=note, help=hint)


def slopes(
    module: fx.GraphModule, batches: Pairs, loss: Loss, *, squared: bool
) -> dict[int, Tensor]:
    """For each parameter, by its identity, the mean gradient of the loss over all samples; or the
    mean of the squared gradients of single samples. Parameters that the loss does not depend on
    are left out. Neither the module nor its parameters are changed.

    Raises D006 where the loss cannot be computed.
    """
    named = dict(module.named_parameters())
    own = {name: p.detach().requires_grad_() for name, p in named.items() if p.is_floating_point()}
    totals: dict[str, Tensor] = {}
    count, found = 0, _squares if squared else _sums
    for x, y in batches:
        count += batch_size(x)
        for name, part in found(module, own, loss, x, y).items():
            totals[name] = totals[name] + part if name in totals else part
    return {id(named[name]): total / max(count, 1) for name, total in totals.items()}


def _sums(
    module: fx.GraphModule, own: dict[str, Tensor], loss: Loss, x: Any, y: Any
) -> dict[str, Tensor]:
    """The gradients of the samples of a batch, added up: the loss is their mean."""
    size = batch_size(x)
    return {k: slope.double() * size for k, slope in _slopes(module, own, loss, x, y).items()}


def _squares(
    module: fx.GraphModule, own: dict[str, Tensor], loss: Loss, x: Any, y: Any
) -> dict[str, Tensor]:
    """The squared gradients of the samples of a batch, added up: many samples at a time where torch
    can vectorise the model and the loss, else one after the other.
    """
    numbers = sum(parameter.numel() for parameter in own.values())
    size = max(1, TOGETHER // max(4 * numbers, 1))
    totals: dict[str, Tensor] = {}
    for args, target in pieces(x, y, size):
        try:
            found = _squares_together(module, own, loss, args, target)
        except VECTORLESS:
            found = _squares_apart(module, own, loss, args, target)
        for name, part in found.items():
            totals[name] = totals[name] + part if name in totals else part
    return totals


def _squares_together(
    module: fx.GraphModule, own: dict[str, Tensor], loss: Loss, x: Any, y: Any
) -> dict[str, Tensor]:
    size = batch_size(x)
    leaves, shape = tree_flatten((x, y))
    along = [isinstance(v, Tensor) and v.dim() > 0 and v.shape[0] == size for v in leaves]

    def of_one(weights: dict[str, Tensor], *parts: Tensor) -> Tensor:
        given = iter(parts)
        # Copies, for the model may write to them; under vmap nothing but `clone` makes one.
        one = [
            next(given)[None].clone() if split else own_inputs(v)
            for v, split in zip(leaves, along, strict=True)
        ]
        args, target = tree_unflatten(one, shape)
        return loss(functional_call(module, weights, args), target)

    each = vmap(grad(of_one), in_dims=(None, *(0 for split in along if split)))
    apart = each(own, *(v for v, split in zip(leaves, along, strict=True) if split))
    return {name: slope.detach().double().square().sum(0) for name, slope in apart.items()}


def _squares_apart(
    module: fx.GraphModule, own: dict[str, Tensor], loss: Loss, x: Any, y: Any
) -> dict[str, Tensor]:
    totals: dict[str, Tensor] = {}
    for args, target in pieces(x, y, 1):
        for name, slope in _slopes(module, own, loss, args, target).items():
            part = slope.double().square()
            totals[name] = totals[name] + part if name in totals else part
    return totals


def _slopes(
    module: fx.GraphModule, own: dict[str, Tensor], loss: Loss, x: Any, y: Any
) -> dict[str, Tensor]:
    """The gradient of the loss of one batch for each parameter that it depends on."""
    try:
        with torch.enable_grad():
            value = loss(functional_call(module, own, own_inputs(x)), y)
            found = torch.autograd.grad(value, list(own.values()), allow_unused=True)
    except LissomError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise _no_loss(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
    return {name: slope for name, slope in zip(own, found, strict=True) if slope is not None}
