"""Import a torchvision wheel whose compiled library does not load beside this torch.

A torchvision wheel built for CUDA imports next to a CPU-only torch as soon as the operators that
its Python side describes are declared. Models then build, run and can be captured; the box
operators themselves have no kernel, so whole detection models do not run. Does nothing where the
real operators are present.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

_BOXES = "Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width"
_SIZES = "SymInt batch_size, SymInt channels, SymInt height, SymInt width"
_GRAD = _BOXES.replace("Tensor input", "Tensor grad")
_DEFORM = "Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias"
_GEOMETRY = ", ".join(
    f"SymInt {name}_{axis}" for name in ("stride", "pad", "dilation") for axis in ("h", "w")
)
_GEOMETRY += ", SymInt groups, SymInt offset_groups, bool use_mask"
_FIVE = ", ".join(["Tensor"] * 5)

_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    f"roi_align({_BOXES}, int sampling_ratio, bool aligned) -> Tensor",
    f"_roi_align_backward({_GRAD}, {_SIZES}, int sampling_ratio, bool aligned) -> Tensor",
    f"roi_pool({_BOXES}) -> (Tensor, Tensor)",
    "_roi_pool_backward("
    f"{_GRAD.replace('Tensor rois,', 'Tensor rois, Tensor argmax,')}, {_SIZES}) -> Tensor",
    f"ps_roi_align({_BOXES}, int sampling_ratio) -> (Tensor, Tensor)",
    "_ps_roi_align_backward("
    f"{_GRAD.replace('Tensor rois,', 'Tensor rois, Tensor channel_mapping,')}, "
    f"int sampling_ratio, {_SIZES}) -> Tensor",
    f"ps_roi_pool({_BOXES}) -> (Tensor, Tensor)",
    "_ps_roi_pool_backward("
    f"{_GRAD.replace('Tensor rois,', 'Tensor rois, Tensor channel_mapping,')}, {_SIZES}) -> Tensor",
    f"deform_conv2d({_DEFORM}, {_GEOMETRY}) -> Tensor",
    f"_deform_conv2d_backward(Tensor grad, {_DEFORM}, {_GEOMETRY}) -> ({_FIVE})",
)
_declared: list[torch.library.Library] = []


def prepare() -> None:
    """Declare torchvision's operators if its compiled library is missing or does not load."""
    if _declared or _has_operators():
        return
    library = torch.library.Library("torchvision", "DEF")
    for schema in _OPERATORS:
        library.define(schema)
    _declared.append(library)


def _has_operators() -> bool:
    spec = importlib.util.find_spec("torchvision")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for binary in Path(folder).glob("_C*.so"):
            _load(binary)
    return hasattr(torch.ops.torchvision, "nms")


def _load(binary: Path) -> None:
    try:
        torch.ops.load_library(str(binary))
    except OSError as error:
        print(f"{binary.name} does not load: {str(error)[:80]}", file=sys.stderr)
