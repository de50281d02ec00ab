"""The models of the capture benchmark, built with random weights: name, kind, and how to build it.

A builder returns the model in eval mode and a tuple of example inputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

Build = Callable[[], tuple[nn.Module, tuple[Any, ...]]]
Entry = tuple[str, str, Build]

# -- timm: one model for every pair of module and family, the smallest by its name ---------------

_SMALL_FIRST = [
    "test_",
    "atto",
    "femto",
    "pico",
    "nano",
    "xxtiny",
    "xtiny",
    "xxs",
    "_xs",
    "mini",
    "tiny",
    "micro",
    "wee",
    "small",
    "_s",
    "_t0",
    "_b0",
    "_0",
    "18",
    "x0",
    "050",
    "lite",
    "b1",
    "_m",
    "medium",
    "26",
    "50",
    "base",
]
_BIG = (
    "huge",
    "giant",
    "gigantic",
    "_g_",
    "enormous",
    "so400m",
    "xlarge",
    "large",
    "384",
    "448",
    "512",
)


def timm_entries() -> Iterator[Entry]:
    import timm

    chosen: dict[tuple[str, str], tuple[Any, ...]] = {}
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            family = "test" if name.startswith("test_") else re.match("[a-z]+", name)[0]
            rank = _timm_rank(name)
            chosen[module, family] = min(chosen.get((module, family), rank), rank)
    for (module, _), rank in sorted(chosen.items(), key=lambda item: item[1][-1]):
        yield rank[-1], module, timm_builder(rank[-1])


def _timm_rank(name: str) -> tuple[Any, ...]:
    size = next((i for i, word in enumerate(_SMALL_FIRST) if word in name), len(_SMALL_FIRST))
    return any(word in name for word in _BIG), size, len(name), name


def timm_builder(name: str) -> Build:
    def build() -> tuple[nn.Module, tuple[Any, ...]]:
        import timm

        model = timm.create_model(name, pretrained=False).eval()
        config = getattr(model, "pretrained_cfg", None) or model.default_cfg
        return model, (torch.rand(1, *config["input_size"]),)

    return build


# -- torchvision ---------------------------------------------------------------------------------

_KINDS = ("segmentation", "video", "quantization")


def torchvision_entries() -> Iterator[Entry]:
    from torchvision import models

    special = {n: k for k in _KINDS for n in models.list_models(module=getattr(models, k))}
    skipped = {
        n for k in ("detection", "optical_flow") for n in models.list_models(getattr(models, k))
    }
    for name in models.list_models():
        if name not in skipped:
            kind = special.get(name, "classification")
            yield name, kind, _torchvision_builder(name, kind)


def _torchvision_builder(name: str, kind: str) -> Build:
    def build() -> tuple[nn.Module, tuple[Any, ...]]:
        from torchvision import models

        options: dict[str, Any] = {"weights": None}
        if kind == "segmentation":
            options["weights_backbone"] = None
        if "inception" in name or "googlenet" in name:
            options["init_weights"] = False
        model = models.get_model(name, **options).eval()
        return model, (torch.rand(1, *_torchvision_shape(name, kind)),)

    return build


def _torchvision_shape(name: str, kind: str) -> tuple[int, ...]:
    if kind == "video":
        size = 112 if name in ("mc3_18", "r2plus1d_18", "r3d_18") else 224
        return 3, 16, size, size
    size = 299 if "inception" in name else 224
    return 3, size, size


def detection_entries() -> Iterator[Entry]:
    from torchvision import models

    for name in models.list_models(module=models.detection):
        yield name, "backbone", _backbone_builder(name)


def _backbone_builder(name: str) -> Build:
    def build() -> tuple[nn.Module, tuple[Any, ...]]:
        from torchvision import models

        whole = models.get_model(name, weights=None, weights_backbone=None).eval()
        return whole.backbone, (torch.rand(1, 3, 320, 320),)

    return build
