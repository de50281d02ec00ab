"""Whether a capture hears on this torch what it has to hear. Asked once, before the first capture:
a release that reports its calls otherwise must not end in a graph that no rule fits.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import fx, nn

from ...grammar.diagnostics import Label, LissomError, fail
from ..torch_internals import absent
from .tracer import CallRecorder


class _Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2


class _Model(nn.Module):
    """One of each: a layer, a function of autograd, a method, a function, `len`, an operator."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(_Twice.apply(self.layer(x)).tanh()) * len(x)


_EXPECTED = ["x", "layer", "_Twice", "tanh", "relu", "size", "mul", "output"]


@functools.cache
def check_instruments() -> None:
    """Raises T008 where this torch hides a call from a capture."""
    missing = absent()
    if missing:
        raise _hidden(f"{', '.join(missing)} is not there")
    try:
        found = [_name(node) for node in _recorded().nodes]
    except Exception as error:
        raise _hidden(f"recording fails with {type(error).__name__}: {error}") from error
    if found != _EXPECTED:
        raise _hidden(f"{', '.join(_EXPECTED)} are recorded as {', '.join(found)}")


def _recorded() -> fx.Graph:
    recorder = CallRecorder(_Model().eval())
    return recorder.trace(recorder.placeholder("x", (), torch.ones(2)))


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else node.target.__name__


def _hidden(reason: str) -> LissomError:
    return fail(
        "T008",
        f"torch {torch.__version__} hides calls from a capture",
        Label(None, where="the self-check before the first capture"),
        note=reason,
        help="docs/versions.md names the releases of torch that pass all tests",
    )
