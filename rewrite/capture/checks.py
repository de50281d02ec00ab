"""Models that are refused before anything is run, and hooks worth a warning."""

from __future__ import annotations

import keyword
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ...grammar.diagnostics import Diagnostic, Label, LissomError, fail
from ..graph.modules import has_hooks, is_exported, is_parametrized
from .copy import unwrapped


def check_model(model: nn.Module) -> None:
    """Raise M001 for a model in training mode, M004 for a name that no graph can hold, M008 for
    state that rules cannot handle.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise _scripted(model)
    check_mode(model)
    for path, module in model.named_modules():
        # A scripted module's own mappings can be asked for keys only.
        held = (module._modules, module._parameters, module._buffers)
        for name in (name for names in held for name in names.keys()):  # noqa: SIM118
            if _unwritable(name):
                raise _bad_name(path, name)
    for kind, state in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for path, tensor in state:
            reason = _unfit(tensor, kind)
            if reason:
                raise _refused(kind, path, reason)


def check_mode(model: nn.Module) -> None:
    """Raise M001 for a model in training mode."""
    without_mode = _without_mode(model)
    for path, module in model.named_modules():
        if module.training and module not in without_mode:
            raise _training(path, module)


def _without_mode(model: nn.Module) -> set[nn.Module]:
    """Modules whose flag says nothing: wrappers, and exported programs, whose graph holds the mode
    that they were exported in, and which refuse `eval()`.
    """
    found: set[nn.Module] = set()
    for module in model.modules():
        if is_exported(module):
            found.update(module.modules())
        elif unwrapped(module) is not module:
            found.add(module)
    return found


def _unwritable(name: str) -> bool:
    """torch.fx writes names into generated source, keywords and quotes included."""
    return keyword.iskeyword(name) or not name.isprintable() or '"' in name or "\\" in name


def _bad_name(path: str, name: str) -> LissomError:
    return fail(
        "M004",
        f"a graph's generated code cannot hold the name {name!r}",
        Label(None, where=f"{path}.{name}".strip(".")),
        help="rename the module, parameter or buffer; Python keywords, quotes and backslashes fail",
    )


def _scripted(model: nn.Module) -> LissomError:
    return fail(
        "M004",
        f"the model itself is TorchScript (`{type(model).__name__}`): no Python forward to trace",
        Label(None, where=""),
        note="as a part of a larger model a scripted module stays one opaque node",
        help="capture the nn.Module that was scripted or traced",
    )


def _training(path: str, module: nn.Module) -> LissomError:
    where = f"`{path}` ({type(module).__name__})" if path else "the model"
    return fail(
        "M001",
        f"{where} is in training mode",
        Label(None, where=path),
        note="dropout and batch statistics make a training forward differ from call to call",
        help="call model.eval() first",
    )


def _refused(kind: str, path: str, reason: str) -> LissomError:
    remedy = {
        "lazy": "run the model once so that its lazy parameters get their shapes",
        "on the meta device": "load real weights first",
        "quantised": "capture the float model; integers are what the compression makes",
        "sparse": f"replace `{path}` by its to_dense()",
        "complex": f"store `{path}` as two real tensors (torch.view_as_real)",
    }
    return fail(
        "M008", f"{kind} `{path}` is {reason}", Label(None, where=path), help=remedy[reason]
    )


def _unfit(tensor: torch.Tensor, kind: str) -> str:
    if is_lazy(tensor):
        return "lazy"
    if tensor.is_meta:
        return "on the meta device"
    if tensor.is_quantized:
        return "quantised"
    if tensor.layout is not torch.strided and not tensor.is_mkldnn:
        return "sparse"
    return "complex" if tensor.is_complex() and kind == "parameter" else ""


def hook_notes(model: nn.Module) -> Iterator[Diagnostic]:
    """M007 for every module that keeps its hooks by staying one opaque node."""
    for path, module in model.named_modules():
        if has_hooks(module):
            yield _hooked(path, module)


def _hooked(path: str, module: nn.Module) -> Diagnostic:
    what = "parametrizations" if is_parametrized(module) else "hooks"
    whole = f"`{path}` has {what} and stays one opaque node" if path else f"the model has {what}"
    return Diagnostic(
        "M007",
        whole,
        (Label(None, where=path),),
        ("they keep running after capture, but no rule looks inside",),
        (f"remove the {what} before capturing to let rules see the module",),
        "warning",
    )
