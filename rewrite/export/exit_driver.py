"""Runs a network with exits that was exported to ONNX: `NAME.onnx.json` and the parts beside it.

It needs NumPy and ONNX Runtime, and nothing else; a copy of it stands beside the parts.

    from NAME_exits import ExitNetwork
    model = ExitNetwork("NAME.onnx.json")
    outputs, exits = model(x)               # arrays, as the parts take them; exits count from 1
"""

from __future__ import annotations

import json
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

TESTS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


class ExitNetwork:
    """The parts, each a session. Samples that pass the test of an exit leave with its logits."""

    def __init__(self, path: str | Path, options: Any = None) -> None:
        self.path, self.options = Path(path), options
        said = json.loads(self.path.read_text("utf-8"))
        self.exits: list[dict[str, Any]] = said["exits"]
        self.bodies = [self._session(name) for name in said["bodies"]]
        self.heads = [self._session(one["head"]) for one in self.exits]

    def _session(self, name: str) -> Any:
        file, providers = str(self.path.with_name(name)), ["CPUExecutionProvider"]
        return ort.InferenceSession(file, self.options, providers=providers)

    def __call__(self, *inputs: Any) -> tuple[Any, Any]:
        """Outputs [N, ...] in the order of the samples, and the exit of each, int64 [N]."""
        values, left = _run(self.bodies[0], inputs), []
        rows, agreed = None, Agreement()
        for at, one in enumerate(self.exits):
            logits, score = _run(self.heads[at], values)
            rows = np.arange(len(logits)) if rows is None else rows
            score = agreed.with_next(logits) if one["counts"] else score
            leaves = TESTS[one["test"]](score, one["limit"])
            left.append((rows[leaves], logits[leaves], at + 1))
            rows, agreed = rows[~leaves], agreed.of(~leaves)
            if not len(rows):
                return _together(left)
            pairs = zip(values, one["by_row"], strict=True)
            values = [value[~leaves] if by_row else value for value, by_row in pairs]
            values = _run(self.bodies[at + 1], values)
        return _together([*left, (rows, values[0], len(self.bodies))])


class Agreement:
    """How many exits in a row named the same class, for each sample that is still there."""

    def __init__(self, named: Any = None, streak: Any = None) -> None:
        self.named, self.streak = named, streak

    def with_next(self, logits: Any) -> Any:
        named = logits.argmax(-1)
        same = np.zeros_like(named) if self.named is None else self.streak * (named == self.named)
        self.named, self.streak = named, 1 + same
        return self.streak

    def of(self, stay: Any) -> Agreement:
        return self if self.named is None else Agreement(self.named[stay], self.streak[stay])


def _run(session: Any, values: Sequence[Any]) -> list[Any]:
    names = [one.name for one in session.get_inputs()]
    return session.run(None, dict(zip(names, values, strict=True)))


def _together(left: Sequence[tuple[Any, Any, int]]) -> tuple[Any, Any]:
    order = np.argsort(np.concatenate([rows for rows, _, _ in left]))
    exits = np.concatenate([np.full(len(rows), at) for rows, _, at in left])
    return np.concatenate([logits for _, logits, _ in left])[order], exits[order]
