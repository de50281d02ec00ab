"""Loads a model that is named `file.py:build` or `package.module:build`, with what its file gives.

The file is the user's own code and is run. What goes wrong in it is told as a diagnostic with the
line of that file; Python's traceback is printed with LISSOM_TRACEBACK=1.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from .grammar.diagnostics import Label, LissomError, did_you_mean, fail
from .rewrite.measure.gradients import Loss, loss_of_task

DEFAULT = "build"

Data = Callable[[str], list[Any]]


@dataclass(frozen=True)
class ModelFile:
    """A model and what its file says about it.

    `inputs`: one example batch, positional (tuple) or by name (dict), or None; `second`: another of
    other sizes, or a list of several. `data(split)` yields `(x, y)`. `metrics`: name -> `f(model,
    batches) -> float`. `functions` implement the program's own `extern fn`; `ops` are torch
    callables that its own `op` declarations name. `loss(outputs, targets)` gives a scalar.
    `models`: functions that build models, by the names that programs use for teachers and students.
    """

    name: str
    model: nn.Module
    module: ModuleType = field(repr=False)
    inputs: tuple[Any, ...] | dict[str, Any] | None = None
    data: Data | None = None
    metrics: Mapping[str, Callable[..., float]] = field(default_factory=dict)
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    ops: Mapping[str, Any] = field(default_factory=dict)
    loss: Loss = loss_of_task
    second: Any = None
    models: Mapping[str, Callable[[], nn.Module]] = field(default_factory=dict)


def load_model(name: str) -> ModelFile:
    """Import the file and build the model.

    Raises U002 for a name that leads nowhere, U003 for a function that is not there, M020 to M024
    where the file's own code fails or gives what is no model, inputs, data or metrics.
    """
    place, _, function = name.rpartition(":") if _has_function(name) else (name, "", DEFAULT)
    module = load_module(place)
    model = _build(module, function, name)
    return ModelFile(
        name,
        model,
        module,
        _inputs(module),
        _data(module),
        _metrics(module),
        _table(module, "functions"),
        _table(module, "ops"),
        getattr(module, "loss", loss_of_task),
        _second(module),
        _models(module),
    )


def load_tables(place: str) -> tuple[Mapping[str, Callable[..., Any]], Mapping[str, Any]]:
    """The `functions` and `ops` that a Python file gives; no model is built."""
    module = load_module(place)
    return _table(module, "functions"), _table(module, "ops")


def _has_function(name: str) -> bool:
    """Whether the last colon parts off a function: not the one of a drive letter."""
    return ":" in name and name.rpartition(":")[2].isidentifier()


# -- the file --------------------------------------------------------------------------------------


def load_module(place: str) -> ModuleType:
    """Import `file.py` or `package.module`. Raises U002 or M020."""
    if place.endswith(".py"):
        return _import_file(Path(place))
    return _import_module(place)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        nearby = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        hint = next(iter(did_you_mean(str(path), nearby)), "name it as file.py:build")
        raise fail(
            "U002", f"there is no model file `{path}`", Label(None, where=str(path)), help=hint
        )
    resolved = path.resolve()
    # As when Python runs a script: what lies beside the file can be imported by it.
    _put_first(str(resolved.parent))
    name = f"lissom_model_{resolved.stem}"
    spec = importlib.util.spec_from_file_location(name, resolved)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader = spec.loader
    _run(lambda: loader.exec_module(module), "M020", f"`{path}` cannot be imported", str(resolved))
    return module


def _import_module(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        hint = "name a model as file.py:build or package.module:build"
        raise fail("U002", f"`{name}` names no model", Label(None, where=name), help=hint)
    _put_first(str(Path.cwd()))
    try:
        spec = importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError):
        spec = None
    if spec is None:
        hint = "to name a file, end it in .py: file.py:build"
        raise fail("U002", f"there is no module `{name}`", Label(None, where=name), help=hint)
    text = f"`{name}` cannot be imported"
    return _run(lambda: importlib.import_module(name), "M020", text, spec.origin or "")


def _put_first(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


# -- what it gives ---------------------------------------------------------------------------------


def _build(module: ModuleType, function: str, name: str) -> nn.Module:
    where = Label(None, where=name)
    build = getattr(module, function, None)
    if build is None:
        known = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        hint = next(
            iter(did_you_mean(function, known)), "define `def build(): return model.eval()`"
        )
        raise fail("U003", f"the model file has no `{function}`", where, help=hint)
    model = build
    if not isinstance(build, nn.Module):
        model = _run(build, "M021", f"`{function}()` failed", module.__file__ or "")
    if not isinstance(model, nn.Module):
        note = f"it gave a {type(model).__qualname__}"
        hint = "return a torch.nn.Module in eval mode, with its weights loaded"
        raise fail("M021", f"`{function}` gives no model", where, note=note, help=hint)
    return model


def _inputs(module: ModuleType) -> tuple[Any, ...] | dict[str, Any] | None:
    given = getattr(module, "inputs", None)
    file = module.__file__ or ""
    value = _run(given, "M022", "`inputs()` failed", file) if callable(given) else given
    if value is None or isinstance(value, (tuple, dict)):
        return value
    if isinstance(value, list):
        return tuple(value)
    note = f"it is a {type(value).__qualname__}"
    hint = "give a tuple of positional inputs, `(x,)`, or a dict of inputs by name"
    raise fail("M022", "`inputs` gives no inputs", Label(None, where=file), note=note, help=hint)


def _second(module: ModuleType) -> Any:
    """Whatever `capture` takes as further examples, which tells what does not fit."""
    given = getattr(module, "second", None)
    file = module.__file__ or ""
    return _run(given, "M022", "`second()` failed", file) if callable(given) else given


def _data(module: ModuleType) -> Data | None:
    given = getattr(module, "data", None)
    if given is None:
        return None
    file = module.__file__ or ""
    if not callable(given) and not isinstance(given, Iterable):
        hint = "define `def data(split): ...` that yields batches (x, y), or a list of batches"
        message = "`data` is neither a function nor batches"
        raise fail("M023", message, Label(None, where=file), help=hint)
    return _guarded_data(given if callable(given) else lambda split: given, file)


def _guarded_data(given: Callable[[str], Iterable[Any]], file: str) -> Data:
    def data(split: str) -> list[Any]:
        # ValueError and KeyError mean "no such split"; whoever asked for the split says where.
        text = f'`data("{split}")` failed'
        return _run(lambda: list(given(split)), "M023", text, file, (ValueError, KeyError))

    return data


def _metrics(module: ModuleType) -> dict[str, Callable[..., float]]:
    given = getattr(module, "metrics", None)
    file = module.__file__ or ""
    table = _run(given, "M024", "`metrics()` failed", file) if callable(given) else given
    if table is None:
        return {}
    if not isinstance(table, Mapping) or not all(map(callable, table.values())):
        hint = 'define `metrics = {"accuracy": f}` with f(model, batches) -> float'
        raise fail("M024", "`metrics` is no table of functions", Label(None, where=file), help=hint)
    return {str(name): _metric(str(name), metric, file) for name, metric in table.items()}


def _metric(name: str, metric: Callable[..., float], file: str) -> Callable[..., float]:
    def measured(model: nn.Module, batches: Any) -> float:
        return _run(lambda: float(metric(model, batches)), "M024", f"metric `{name}` failed", file)

    return measured


def _models(module: ModuleType) -> dict[str, Callable[[], nn.Module]]:
    """Each is built when a program asks for it. Raises M021 for a table of something else."""
    table = _table(module, "models")
    wrong = [name for name, build in table.items() if not callable(build)]
    if wrong:
        where = Label(None, where=module.__file__ or "")
        hint = 'define `models = {"small": build_small}` with functions that build models'
        raise fail("M021", f"`models` holds no function as `{wrong[0]}`", where, help=hint)
    return {str(name): _builder(module, str(name), build) for name, build in table.items()}


def _builder(module: ModuleType, name: str, build: Any) -> Callable[[], nn.Module]:
    if isinstance(build, nn.Module):
        return lambda: build
    text = f"`{name}` of `models` failed"
    return lambda: _run(build, "M021", text, module.__file__ or "")


def _table(module: ModuleType, name: str) -> dict[str, Any]:
    found = getattr(module, name, None)
    return dict(found) if isinstance(found, Mapping) else {}


# -- running the user's code -----------------------------------------------------------------------


def _run(
    call: Callable[[], Any],
    code: str,
    text: str,
    file: str,
    passed: tuple[type[Exception], ...] = (),
) -> Any:
    """What `call` gives. Any exception that is not `passed` on becomes a diagnostic."""
    try:
        return call()
    except LissomError:
        raise
    except passed:
        raise
    except (Exception, SystemExit) as error:
        said = f"{type(error).__name__}: {error}".strip().removesuffix(":")
        hint = "set LISSOM_TRACEBACK=1 to see Python's traceback"
        raise fail(
            code, text, Label(None, where=_line(error, file)), note=said, help=hint
        ) from error


def _line(error: BaseException, file: str) -> str:
    """The last line of the user's own file that was running; where Python could not even read the
    file, the line it says.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame.lineno for frame in frames if frame.filename == file]
    return f"{file}:{own[-1]}" if own else file
