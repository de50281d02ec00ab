"""Encoder layers that torch runs as one fused kernel, where that differs from their own operations.

In eval mode `nn.TransformerEncoderLayer` may take a fast path. Without masks it gives the bits that
the layer's operations give one by one, so that the layer is traced through; with masks it does not,
and the layer must stay whole to compute what the model computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ...grammar.diagnostics import Diagnostic, Label
from ..torch_internals import FUSED_ENCODER
from .attempts import CaptureAttempt, CaptureFailure
from .inputs import Case
from .patches import replaced

REASON = "runs as one fused kernel"
REMEDY = "torch.backends.mha.set_fastpath_enabled(False) before capturing lets rules look inside"


def fused_layers(model: nn.Module, cases: Iterable[Case]) -> dict[str, str]:
    """The paths of the modules that run fused on one of the cases, each with the reason; "" is the
    model itself.

    Of a layer that is given a nested tensor it is the encoder around it, which makes that tensor.
    """
    layers = {
        id(layer.self_attn.in_proj_weight): path
        for path, layer in model.named_modules()
        if isinstance(layer, nn.TransformerEncoderLayer)
    }
    found: dict[str, str] = {}

    def watched(eager: Callable[..., Any]) -> Callable[..., Any]:
        def call(src: torch.Tensor, width: int, heads: int, weight: Any, *more: Any) -> Any:
            path = layers.get(id(weight), "")
            found[_encoder(model, path) if src.is_nested else path] = REASON
            return eager(src, width, heads, weight, *more)

        return call

    if layers:
        with replaced(torch, FUSED_ENCODER, watched):
            for case in cases:
                case.run(model)
    return {path: reason for path, reason in found.items() if not _inside(path, found)}


def _inside(path: str, others: Iterable[str]) -> bool:
    return any(path.startswith(f"{other}.") for other in others)


def _encoder(model: nn.Module, path: str) -> str:
    """The path of the encoder that the layer at `path` is part of."""
    while path and not isinstance(model.get_submodule(path), nn.TransformerEncoder):
        path = path.rpartition(".")[0]
    return path


def noted_fused(
    outcome: CaptureAttempt | CaptureFailure, fused: Iterable[str]
) -> CaptureAttempt | CaptureFailure:
    """An attempt that holds, with a note about the layers that no rule can look into."""
    paths = tuple(fused)
    if isinstance(outcome, CaptureFailure) or not paths:
        return outcome
    return replace(outcome, notes=(_note(paths), *outcome.notes))


def _note(paths: tuple[str, ...]) -> Diagnostic:
    what = f"`{paths[0]}` runs" if len(paths) == 1 else f"{len(paths)} encoder layers run"
    return Diagnostic(
        "M011",
        f"{what} as one fused kernel and stay opaque",
        tuple(Label(None, where=path) for path in paths),
        ("with these masks its results differ in the last bits from those of the operations",),
        (REMEDY,),
        "warning",
    )
