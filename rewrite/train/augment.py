"""How samples are changed each time they are seen: images moved, mirrored, parts of them erased."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...grammar.diagnostics import Label, fail
from ..torch_internals import tree_leaves, tree_map
from .settings import Called, Settings

Change = Callable[[Tensor, torch.Generator], Tensor]


def changes_of(calls: Sequence[Called]) -> list[Change]:
    """The changes that a program names, in order. Raises F004 for settings that do not fit."""
    return [_change(call) for call in calls]


def _change(call: Called) -> Change:
    makers = {maker.__name__: maker for maker in (_shift, _flip, _erase, _noise)}
    try:
        change = makers[f"_{call.name}"](*call.args, **call.keywords)
        change(torch.zeros(1, 1, 8, 8), torch.Generator())  # said before training
    except (TypeError, ValueError, RuntimeError) as error:
        raise fail("F004", f"`{call.name}` does not take this: {error}", Label(call.span)) from None
    return change


def augmented(
    args: tuple[Any, ...], changes: Sequence[Change], generator: torch.Generator
) -> tuple[Any, ...]:
    """Inputs with each image `[N, C, H, W]` among them changed. Raises D007 where there is none."""
    if not changes:
        return args
    images = [isinstance(x, Tensor) and x.dim() == 4 and x.is_floating_point() for x in args]
    if not any(images):
        hint = "leave `augment` out, or let the data change what it yields"
        raise fail("D007", "`augment` changes images [N, C, H, W], and no input is one", help=hint)
    return tuple(
        _all(x, changes, generator) if is_ else x for x, is_ in zip(args, images, strict=True)
    )


def _all(x: Tensor, changes: Sequence[Change], generator: torch.Generator) -> Tensor:
    for change in changes:
        x = change(x, generator)
    return x


def _shift(pixels: int = 2) -> Change:
    """Each image by up to so many pixels up or down, left or right; zeros move in."""

    def change(x: Tensor, generator: torch.Generator) -> Tensor:
        count, _, height, width = x.shape
        down, right = torch.randint(0, 2 * pixels + 1, (2, count), generator=generator)
        padded = functional.pad(x, (pixels,) * 4)
        rows = down[:, None, None, None] + torch.arange(height)[None, None, :, None]
        columns = right[:, None, None, None] + torch.arange(width)[None, None, None, :]
        at = torch.arange(count)[:, None, None, None]
        channels = torch.arange(x.shape[1])[None, :, None, None]
        return padded[at, channels, rows, columns]

    return change


def _flip() -> Change:
    def change(x: Tensor, generator: torch.Generator) -> Tensor:
        mirrored = torch.rand(len(x), generator=generator) < 0.5
        return torch.where(mirrored[:, None, None, None], x.flip(-1), x)

    return change


def _erase(size: int = 8) -> Change:
    """Cutout: DeVries and Taylor 2017, arXiv:1708.04552. Squares may reach beyond the image."""

    def change(x: Tensor, generator: torch.Generator) -> Tensor:
        count, _, height, width = x.shape
        centre = torch.rand(2, count, 1, 1, 1, generator=generator)
        rows = (torch.arange(height)[:, None] - centre[0] * height).abs() <= size / 2
        columns = (torch.arange(width)[None, :] - centre[1] * width).abs() <= size / 2
        return x.masked_fill(rows & columns, 0.0)

    return change


def _noise(deviation: float = 0.1) -> Change:
    def change(x: Tensor, generator: torch.Generator) -> Tensor:
        return x + deviation * torch.randn(x.shape, generator=generator, dtype=x.dtype)

    return change


def classes_of(targets: Any, settings: Settings) -> int:
    """How many classes there are for `disturb` to draw. Raises F104 where there are none."""
    labels = tree_leaves(targets) if settings.disturb else []
    if settings.disturb and not (labels and all(map(_is_label, labels))):
        hint = "leave `disturb` out, or give a `sample` with classes that are whole numbers"
        message = "`disturb` draws labels anew, and the data has none"
        raise fail("F104", message, Label(settings.span), help=hint)
    return max((int(y.max()) + 1 for y in labels), default=0)


def _is_label(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and not leaf.is_floating_point()


def disturbed(target: Any, share: float, generator: torch.Generator, classes: int) -> Any:
    """Labels int64 of which this share is drawn anew from all classes: DisturbLabel (Xie et al.
    2016, arXiv:1605.00055).
    """
    return tree_map(lambda y: _drawn(y, share, generator, classes), target) if share else target


def _drawn(labels: Tensor, share: float, generator: torch.Generator, classes: int) -> Tensor:
    """Labels below 0 are left out by losses, and stay."""
    drawn = torch.randint(0, classes, labels.shape, generator=generator).to(labels.dtype)
    chosen = (torch.rand(labels.shape, generator=generator) < share) & (labels >= 0)
    return torch.where(chosen, drawn, labels)
