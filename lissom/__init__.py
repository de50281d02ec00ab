"""lissom: compression rules as text, applied to trained PyTorch networks and verified.

    result = lissom.compile(model, "shrink.lissom", inputs=(x,))
    result.save("small")
    model = lissom.load("small")
    lissom.export("small", "small.onnx")

`lissom.grammar` needs no torch; the names below load it when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Result, compile, export, load
    from .grammar.diagnostics import Diagnostic, LissomError

__all__ = ["Diagnostic", "LissomError", "Result", "compile", "export", "load"]

_HOME = {
    "Diagnostic": "grammar.diagnostics",
    "LissomError": "grammar.diagnostics",
    "Result": "api",
    "compile": "api",
    "export": "api",
    "load": "api",
}


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lissom' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
