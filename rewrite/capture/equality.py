"""Evidence that a captured graph is the model: equal outputs, bit for bit, on every case tried."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from ...grammar.diagnostics import Diagnostic, Label, fail
from ..graph.runs import Watcher, innermost, one_line
from ..graph.values import children, is_structure, path_text, tensors
from ..measure.unsteady import Unsteady, told
from ..torch_internals import version_of
from .inputs import Case, placeholder_values

_BOOKKEEPING = {"_parameters", "_buffers", "_modules", "training"}


def first_difference(expected: Any, actual: Any, at: str = "") -> str | None:
    """Where and how two results differ, None if they are the same. NaN equals NaN; nothing else is
    forgiven.
    """
    if isinstance(expected, torch.Tensor) and isinstance(actual, torch.Tensor):
        return _tensor_difference(expected, actual, at or "the output")
    if is_structure(expected) and type(expected) is type(actual):
        return _structure_difference(expected, actual, at)
    if type(expected) is not type(actual):
        return f"{at or 'the output'} is a {_kind(actual)} instead of a {_kind(expected)}"
    known = isinstance(expected, (int, float, str, bool, type(None)))
    if known and expected != actual and not (expected != expected and actual != actual):
        return f"{at or 'the output'} is {actual!r} instead of {expected!r}"
    return None


def _structure_difference(expected: Any, actual: Any, at: str) -> str | None:
    ours, theirs = list(children(expected)), list(children(actual))
    if [step for step, _ in ours] != [step for step, _ in theirs]:
        return f"{at or 'the output'} has {len(theirs)} parts, not the expected {len(ours)}"
    for (step, left), (_, right) in zip(ours, theirs, strict=True):
        found = first_difference(left, right, at + path_text((step,)))
        if found:
            return found
    return None


def _tensor_difference(expected: torch.Tensor, actual: torch.Tensor, at: str) -> str | None:
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return f"{at} is {_shape(actual)} instead of {_shape(expected)}"
    if torch.equal(expected, actual):
        return None
    off = ~((expected == actual) | ((expected != expected) & (actual != actual)))
    if not off.any():
        return None
    count, total = int(off.sum()), off.numel()
    return f"{at} differs in {count} of {total} values, {_largest(expected, actual)}"


def _largest(expected: torch.Tensor, actual: torch.Tensor) -> str:
    wide = torch.complex128 if expected.is_complex() else torch.float64
    gap = (expected.to(wide) - actual.to(wide)).abs().nan_to_num(nan=float("inf"))
    return f"at most by {float(gap.max()):.3g}"


def _shape(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _kind(value: Any) -> str:
    return type(value).__name__


# -- the eager model itself ----------------------------------------------------------------------


def eager_output(
    model: nn.Module, case: Case, *, exported: bool = False
) -> tuple[Any, list[Diagnostic]]:
    """Run a model twice. Raises M003 if it changes its own state, M002 if it disagrees with itself.

    `exported`: whether a part of it comes from torch.export and has no mode to change.

    Returns the output, and a warning for every attribute that only the first call sets (a cache).
    """
    start = _state(model)
    first = run_eager(model, case)
    settled = _state(model)
    second = run_eager(model, case)
    changed = _changed(settled, _state(model))
    if changed:
        raise _mutates(*changed[0])
    difference = first_difference(first, second)
    if difference:
        _require_open(model, case)
        with Unsteady() as seen:
            run_eager(model, case)
        why, remedy = told(seen)
        raise fail(
            "M002",
            "the model is not deterministic: two calls on the same input disagree",
            note=f"in the second call {difference}" + (f"; {why}" if why else ""),
            help=remedy or (_AGAIN if exported else _SETTLED),
        )
    caches = [place for place in _changed(start, settled) if not _left_out(model, *place)]
    return first, [_cache(path, name) for path, name in caches]


_SETTLED = "pass random numbers as an input; write F.dropout(x, p, training=self.training)"
_AGAIN = "export it again in eval mode: torch.export.export(model.eval(), args).module()"
"""For a model in eval mode, which draws numbers all the same; for one that has no mode any more."""


def _require_open(model: nn.Module, case: Case) -> None:
    """Raises M003 for a scripted part that a call changes: its state is in no attribute of Python,
    so that only what it would be stored as shows it.
    """
    parts = [(p, m) for p, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)]
    before = [_stored(part) for _, part in parts]
    run_eager(model, case)
    for (path, part), held in zip(parts, before, strict=True):
        if held and held != _stored(part):
            raise fail(
                "M003",
                f"the scripted part `{path}` changes its own state in every call",
                Label(None, where=path),
                note="a graph would freeze the state that the capture saw",
                help="return the state as an output and take it as an input, then script it again",
            )


def _stored(part: torch.jit.ScriptModule) -> bytes:
    """A scripted module as torch stores it; empty where it cannot."""
    buffer = io.BytesIO()
    try:
        torch.jit.save(part, buffer)
    except RuntimeError:
        return b""
    return buffer.getvalue()


def run_eager(model: nn.Module, case: Case) -> Any:
    """The output of the eager model. Raises M004 with the model's own line if it fails."""
    try:
        return case.run(model)
    except Exception as error:
        raise fail(
            "M004",
            f"the model itself fails on {case.label}: {type(error).__name__}: {one_line(error)}",
            Label(None, where=innermost(error)),
            help="check that model(*inputs) runs before capturing it",
        ) from error


# -- where a graph goes wrong --------------------------------------------------------------------


def failing_node(model: nn.Module, module: fx.GraphModule, case: Case) -> fx.Node | None:
    """The node at which a graph raises on `case`."""
    watch = Watcher(module)
    try:
        _interpret(watch, model, case)
    except Exception:
        return watch.at
    return None


def diverging_node(model: nn.Module, module: fx.GraphModule, case: Case) -> fx.Node | None:
    """The first submodule call whose result differs from the one in the eager model."""
    seen: dict[str, list[Any]] = {}
    called = {node.target for node in module.graph.nodes if node.op == "call_module"}
    hooks = [
        part.register_forward_hook(lambda _, __, out, path=path: _note(seen, path, out))
        for path, part in model.named_modules()
        if path in called
    ]
    try:
        case.run(model)
    finally:
        for hook in hooks:
            hook.remove()
    found: list[fx.Node] = []

    def compare(node: fx.Node, result: Any) -> None:
        expected = seen.get(str(node.target)) if node.op == "call_module" else None
        if expected and not found and expected.pop(0) != _digest(result):
            found.append(node)

    _interpret(Watcher(module, compare), model, case)
    return next(iter(found), None)


def _note(seen: dict[str, list[Any]], path: str, output: Any) -> None:
    seen.setdefault(path, []).append(_digest(output))


def _digest(value: Any) -> list[Any]:
    return [
        (tuple(t.shape), float(t.double().sum()), float(t.double().abs().sum()))
        for t in tensors(value)
        if not (t.is_complex() or t.is_nested)
    ]


def _interpret(watch: Watcher, model: nn.Module, case: Case) -> None:
    graph: Any = watch.graph
    with torch.no_grad():
        watch.run(initial_env=placeholder_values(graph, model.forward, case))


def _state(model: nn.Module) -> dict[tuple[str, str], Any]:
    """A fingerprint of every attribute of every module.

    Parameters and buffers go by identity and version counter. Other tensors go by value: a module
    that recomputes an attribute in every call (weight_norm, a stored attention map) is only at
    fault if a later call can see it.
    """
    return {
        (path, name): value
        for path, module in model.named_modules()
        for name, value in _attributes(module)
    }


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        yield name, (id(tensor), None if tensor is None else version_of(tensor))
    # A scripted module keeps its methods as attributes once they were asked for.
    known = _BOOKKEEPING | ({"forward"} if isinstance(module, torch.jit.ScriptModule) else set())
    for name, value in module.__dict__.items():
        if name not in known and not name.endswith("_hooks"):
            yield name, _print(value)


def _print(value: Any, depth: int = 3) -> Any:
    if isinstance(value, (int, float, str, bool, type(None))):
        return repr(value)
    if isinstance(value, torch.Tensor):
        return repr(_digest(value))
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        return type(value), tuple(_print(item, depth - 1) for item in value)
    if depth and isinstance(value, dict):
        return tuple((repr(key), _print(item, depth - 1)) for key, item in value.items())
    return id(value)


def _changed(before: dict[Any, Any], after: dict[Any, Any]) -> list[tuple[str, str]]:
    keys = dict.fromkeys([*before, *after])
    return [key for key in keys if before.get(key, keys) != after.get(key, keys)]


def _mutates(path: str, name: str) -> Exception:
    owner = f"`{path}`" if path else "the model"
    return fail(
        "M003",
        f"forward changes `{name}` of {owner}",
        Label(None, where=f"{path}.{name}".strip(".")),
        note="a graph would freeze the value that the capture saw",
        help=f"return what changes `{name}` needs as an output, or update it outside of forward",
    )


def _left_out(model: nn.Module, path: str, name: str) -> bool:
    """Whether copies of a module are made without an attribute: a cache by its own word."""
    owner = model.get_submodule(path)
    if type(owner).__getstate__ is object.__getstate__:
        return False
    try:
        kept = owner.__getstate__()
    except Exception:  # there are modules that refuse to be copied
        return False
    held = kept.get(name) if isinstance(kept, dict) else owner
    return held is None or (isinstance(held, (dict, list, set)) and not held)


def _cache(path: str, name: str) -> Diagnostic:
    return Diagnostic(
        "M003",
        f"the first call sets `{name}`; later calls leave it alone, so it is taken for a cache",
        (Label(None, where=f"{path}.{name}".strip(".")),),
        severity="warning",
    )
