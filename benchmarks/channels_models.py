"""The models of the channel benchmark with weights that let every cut show, and the processes that
they are measured in.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import capture_models
import capture_transformers
import torch
from capture_models import Build, Entry
from torch import Tensor, nn

from lissom.grammar.diagnostics import LissomError

Row = dict[str, Any]
Key = tuple[str, ...]
Measure = Callable[[Row], None]


def _torchvision() -> Iterator[Entry]:
    """Without the quantized ones, which are the same networks again."""
    return (e for e in capture_models.torchvision_entries() if e[1] != "quantization")


SETS: dict[str, Callable[[], Iterator[Entry]]] = {
    "torchvision": _torchvision,
    "timm": capture_models.timm_entries,
    "transformers": capture_transformers.transformers_entries,
    "detection": capture_models.detection_entries,
}


def alive(build: Build) -> Build:
    """Builds the model with every constant parameter drawn anew.

    A head of zeros, a layer scale of 1e-6 or a norm that does nothing would hide what a cut does.
    """

    def built() -> tuple[nn.Module, tuple[Any, ...]]:
        torch.manual_seed(0)
        model, inputs = build()
        enliven(model)
        return model, inputs

    return built


def enliven(model: nn.Module, seed: int = 1) -> None:
    """Draws constant parameters and the statistics of batch norms."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and _is_constant(parameter):
                _draw(parameter, generator)
        for module in model.modules():
            if getattr(module, "running_mean", None) is not None:
                module.running_mean.normal_(generator=generator).mul_(0.3)
                module.running_var.uniform_(0.5, 2, generator=generator)


def _is_constant(parameter: Tensor) -> bool:
    first = parameter.reshape(-1)[:1]
    return parameter.numel() > 0 and bool((parameter == first).all())


def _draw(parameter: Tensor, generator: torch.Generator) -> None:
    """Matrices keep the scale of what they read; gains have both signs; biases are small."""
    if parameter.ndim > 1 and parameter.shape[1:].numel() > 1:
        parameter.normal_(generator=generator).mul_(parameter.shape[1:].numel() ** -0.5)
    elif bool(parameter.any()):
        parameter.uniform_(-1.5, 1.5, generator=generator)
    else:
        parameter.normal_(generator=generator).mul_(0.3)


# -- processes -------------------------------------------------------------------------------------


class TimeLimit(BaseException):
    """A model took too long; no `except Exception` on the way may take it for its own."""


@dataclass
class _Running:
    key: Key
    process: BaseProcess
    until: float


def in_processes(
    tasks: Iterable[tuple[Key, Measure]], jobs: int, seconds: int
) -> Iterator[tuple[Key, Row]]:
    """Runs every task in a forked process of its own, `jobs` at a time; what one of them does to
    itself reaches no other. Gives their rows as they end.
    """
    waiting, running = iter(tasks), {}
    while True:
        while len(running) < jobs and (task := next(waiting, None)) is not None:
            pipe, started = _start(*task, seconds)
            running[pipe] = started
        if not running:
            return
        soonest = min(each.until for each in running.values())
        ready = wait(list(running), timeout=max(0.0, soonest - time.monotonic()))
        late = [p for p, each in running.items() if not ready and each.until <= time.monotonic()]
        for pipe in (*ready, *late):
            yield _ended(pipe, running.pop(pipe), pipe in ready)  # type: ignore[index,arg-type]


def _start(key: Key, measure: Measure, seconds: int) -> tuple[Connection, _Running]:
    context = multiprocessing.get_context("fork")
    read, write = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(measure, seconds, write), daemon=True)
    process.start()
    write.close()
    # An alarm waits for the interpreter; a kernel that does not come back is killed later.
    return read, _Running(key, process, time.monotonic() + seconds + 20)


def _ended(pipe: Connection, done: _Running, spoke: bool) -> tuple[Key, Row]:
    if not spoke:
        done.process.kill()
        row: Row = {"error": "TimeLimit: killed", "stage": "?"}
    else:
        try:
            row = json.loads(pipe.recv_bytes())
        except EOFError:
            row = {}
    done.process.join()
    pipe.close()
    if not row:
        row = {"error": f"Died: the process ended with {done.process.exitcode}", "stage": "?"}
    return done.key, row


def _child(measure: Measure, seconds: int, pipe: Connection) -> None:
    signal.signal(signal.SIGALRM, _expired)
    signal.alarm(seconds)
    row = guarded(measure)
    signal.alarm(0)
    row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    pipe.send_bytes(json.dumps(row).encode())


def guarded(measure: Measure) -> Row:
    """What the measurement wrote, and the error that ended it, if one did."""
    row: Row = {"stage": "build"}
    try:
        measure(row)
    except LissomError as error:
        row["refused"] = [each.code for each in error.diagnostics]
        row["error"] = f"LissomError: {error}"[:2000]
    except (Exception, TimeLimit) as error:
        row["error"] = f"{type(error).__name__}: {error}"[:2000]
        row["at"] = _place(error)
    return row


def _place(error: BaseException) -> str:
    """The innermost lines that raised, the last first."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames))


def _expired(*_: Any) -> None:
    raise TimeLimit
