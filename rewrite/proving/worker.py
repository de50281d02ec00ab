"""A process of its own for trials: one that kills it, as a kernel may, costs that trial alone."""

from __future__ import annotations

import gc
import multiprocessing
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

import torch

END = 5.0
"""Seconds that a process gets to end when it is no longer needed."""


class Died(Exception):
    """The process that ran a call ended before there was a result; the text says how."""


@dataclass(frozen=True, slots=True)
class Death:
    """A trial that ended its process. `trial` names it by stage, seed and number."""

    trial: str
    how: str

    @property
    def text(self) -> str:
        return f"{self.trial}: {self.how}"


class Worker:
    """Runs a function in a forked process, which is started anew where a call kills it.

    The process is a copy of this one as it is at the first call: nothing but arguments and results
    is sent, and what the function keeps lasts until the process ends. Where no process can be
    forked safely, calls run in this one.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._process: Any = None
        self._connection: Connection[Any, Any] | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def __call__(self, *args: Any) -> Any:
        """What the function gives. Raises `Died`, and whatever the function raises."""
        if not forks():
            return self.function(*args)
        connection = self._connected()
        try:
            connection.send(args)
            answered = connection in wait([connection, self._process.sentinel])
            done, value = connection.recv() if answered else (False, Died(self._ended()))
        except (EOFError, OSError):
            raise Died(self._ended()) from None
        if not done:
            raise value
        return value

    def close(self) -> None:
        """Ends the process; the next call starts another one."""
        if self._connection is not None:
            with suppress(OSError):  # it may be gone
                self._connection.send(None)
            self._connection.close()
            self._process.join(END)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
            self._process.close()
        self._process = self._connection = None

    def _connected(self) -> Connection[Any, Any]:
        if self._connection is None:
            context = multiprocessing.get_context("fork")
            here, there = context.Pipe()
            torch.compiler.disable(_said)  # loads what each copy would load anew by itself
            self._process = context.Process(target=_serve, args=(self.function, there, here))
            with warnings.catch_warnings():
                # The threads that Python warns of are torch's, and the copy uses one thread only.
                warnings.simplefilter("ignore", DeprecationWarning)
                self._process.start()
            there.close()
            self._connection = here
        return self._connection

    def _ended(self) -> str:
        """How the process came to its end, which is near."""
        self._process.join(END)
        code = self._process.exitcode
        self.close()
        return _said(code)


def survived(died: list[Death], trial: str, worker: Worker, *args: Any) -> Any:
    """What a call gives; None where it killed the process, which is written down."""
    try:
        return worker(*args)
    except Died as death:
        died.append(Death(trial, str(death)))
        return None


def forks() -> bool:
    """Whether a copy of this process can be made that may compute: not where libraries of the
    system forbid it (macOS) or there is no such thing, nor inside a process that may have none.
    """
    able = "fork" in multiprocessing.get_all_start_methods() and sys.platform != "darwin"
    return able and not multiprocessing.current_process().daemon


def _said(code: int | None) -> str:
    if code is None:
        return "it no longer answers"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit with code {code}"


def _serve(function: Callable[..., Any], connection: Any, other: Any) -> None:
    """Answers calls until the process that asks is gone or wants no more."""
    other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the asking process is told, and closes
    gc.freeze()  # what is shared with that process stays shared
    torch.set_num_threads(1)  # its threads do not exist here
    while True:
        try:
            args = connection.recv()
        except EOFError:
            return
        if args is None:
            return
        try:
            answer = True, function(*args)
        except Exception as error:  # belongs to whoever asked
            error.add_note(traceback.format_exc())
            answer = False, error
        try:
            connection.send(answer)
        except Exception as error:
            connection.send((False, TypeError(f"a result cannot be sent: {error}")))
