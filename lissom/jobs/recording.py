"""Outputs of a model for a split of its data, asked without looking into the model."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..grammar.diagnostics import Label, fail
from ..model_file import ModelFile
from ..rewrite.capture.checks import check_mode
from ..rewrite.capture.inputs import as_case, check_bindable
from ..rewrite.graph.runs import run_model
from ..rewrite.measure.batches import Taken
from ..rewrite.measure.samples import Samples
from ..rewrite.pipeline.compile import example_of
from ..rewrite.train.data import TrainingData
from ..rewrite.train.recorded import require_numbers, write_recorded


def record_outputs(file: ModelFile, split: str, count: int | None, path: Path) -> dict[str, Any]:
    """Writes them, and returns what the file says of itself, with their shape.

    Raises D001, D002 or D007 for data that is not there or does not fit, M001 for a model in
    training mode, V108 where it cannot be run, F105 for outputs that no student can follow, U005.
    """
    check_mode(file.model)
    place = Label(None, where=f"--split {split}")
    call = _call_of(file)
    samples = Samples(call.taken.example, file.data, taken=call.taken)
    samples.define(split, split, count, place)
    data = TrainingData(list(map(call.taken.pair, samples.batches(split, place))), place)
    what = f"a batch of `{split}`"
    outputs = data.answers(lambda args, rows: run_model(file.model, *call.split(args), what))
    said = {
        "data": data.inputs_digest(),
        "split": split,
        "samples": data.samples,
        "torch": torch.__version__,
    }
    held = _required(outputs, file.name)
    write_recorded(path, held, said)
    return said | {"shape": list(held.shape), "output": str(path)}


@dataclass(frozen=True)
class _Call:
    """How a model that is not looked into is called: the first inputs by position, the others by
    name.
    """

    taken: Taken
    by_position: int

    def split(self, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        count = self.by_position
        return args[:count], dict(zip(self.taken.names[count:], args[count:], strict=False))


def _call_of(file: ModelFile) -> _Call:
    """As the example calls it. Raises M004 where it does not fit the model, M010 without one."""
    given = file.inputs if file.inputs is not None else example_of(file.data, file.model)
    case = as_case(given)
    check_bindable(file.model, case)
    parameters = inspect.signature(file.model.forward).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    several = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    declared = {p.name: p.default for p in named}
    names = (*declared, *(name for name in case.kwargs if name not in declared))
    defaults = {
        name: value for name, value in declared.items() if value is not inspect.Parameter.empty
    }
    example = case.args or tuple(case.kwargs.values())
    count = sum(p.kind is not p.KEYWORD_ONLY for p in named)
    return _Call(Taken(names, defaults, example), len(case.args) if several else count)


def _required(outputs: Tensor | None, name: str) -> Tensor:
    where = Label(None, where=name)
    if outputs is None:
        hint = "return one tensor [N, ...]: logits, say"
        message = "a teacher gives one tensor with a row for each sample, of one shape and type"
        raise fail("F105", message, where, help=hint)
    try:
        require_numbers(outputs)
    except ValueError as error:
        raise fail("F105", "no student can follow these outputs", where, note=str(error)) from None
    return outputs
