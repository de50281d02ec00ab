"""Teachers: the original model, other models, several together, or outputs in a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, fx

from ...grammar.diagnostics import Label, LissomError, did_you_mean, fail
from ...grammar.tree import tree as t
from .data import TrainingData
from .settings import Number
from .taps import tapped

RECORDED, OUTPUTS = "recorded", "outputs"
"""The word for a file of outputs, and the tensor that it holds, `[samples, ...]`."""


class Teacher(Protocol):
    """Gives outputs, and values inside, for inputs; rows: which samples of the data these are."""

    def __call__(
        self, args: tuple[Any, ...], rows: Tensor | None
    ) -> tuple[Any, Mapping[str, Tensor]]: ...


@dataclass
class ModelTeacher:
    """One graph, in eval mode, without gradients; it is never changed."""

    graph: fx.GraphModule
    places: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.graph = tapped(self.graph, self.places).eval()

    @torch.no_grad()
    def __call__(
        self, args: tuple[Any, ...], rows: Tensor | None
    ) -> tuple[Any, Mapping[str, Tensor]]:
        place = next((x.device for x in args if isinstance(x, Tensor)), torch.device("cpu"))
        outputs, values = self.graph.to(place)(*args)
        return outputs, dict(zip(self.places, values, strict=True))


@dataclass
class RecordedTeacher:
    """Outputs of a teacher that can only be asked: one row for each sample of the data."""

    outputs: Tensor

    def __call__(
        self, args: tuple[Any, ...], rows: Tensor | None
    ) -> tuple[Any, Mapping[str, Tensor]]:
        if rows is None:
            raise fail("F105", "recorded outputs need samples that fit into one table")
        return self.outputs[rows.cpu()], {}


@dataclass
class Ensemble:
    """The weighted mean of several teachers: of their logits, or of their probabilities, which come
    back as logarithms. Values inside are those of the first.
    """

    parts: Sequence[tuple[float, Teacher]]
    of_probabilities: bool = False

    def __call__(
        self, args: tuple[Any, ...], rows: Tensor | None
    ) -> tuple[Any, Mapping[str, Tensor]]:
        found = [(weight, teacher(args, rows)) for weight, teacher in self.parts]
        total = sum(weight for weight, _ in found)
        given = [weight / total * self._as_summed(outputs) for weight, (outputs, _) in found]
        mean = torch.stack(given).sum(0)
        return mean.log() if self.of_probabilities else mean, found[0][1][1]

    def _as_summed(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(1) if self.of_probabilities else outputs


@dataclass
class Remembered:
    """A teacher that is asked once for each sample, where samples come unchanged every time."""

    teacher: Teacher
    outputs: Tensor

    def __call__(
        self, args: tuple[Any, ...], rows: Tensor | None
    ) -> tuple[Any, Mapping[str, Tensor]]:
        return self.outputs[rows], {}


MOST = 1 << 28
"""Bytes of outputs that are remembered."""


def remembered(teacher: Teacher, data: TrainingData, batch: int) -> Teacher:
    """The same teacher; what it says of every sample is computed once, where that fits in memory
    and nothing inside is asked for.
    """
    if data.table is None or isinstance(teacher, RecordedTeacher):
        return teacher
    first = teacher(data.args_of(slice(0, 1))[0], torch.arange(1))[0]
    if (
        not isinstance(first, Tensor)
        or first[0].numel() * first.element_size() * data.samples > MOST
    ):
        return teacher
    rows = torch.arange(data.samples).split(batch)
    return Remembered(teacher, torch.cat([teacher(data.args_of(r)[0], r)[0] for r in rows]))


# -- from the text of a program --------------------------------------------------------------------


@dataclass(frozen=True)
class TeacherReader:
    """What `teacher = ...` names. models: graphs by name, made when they are asked for; folder:
    where files of recorded outputs lie.
    """

    models: Mapping[str, Callable[[], fx.GraphModule]]
    number: Number
    data: TrainingData
    places: Sequence[str]
    folder: Path

    def read(self, expr: t.Expr) -> Teacher:
        """Raises F105 where there is no such teacher, or it does not fit the data."""
        mixed = isinstance(expr, t.Call) and _name(expr.function) == "probabilities"
        parts = list(self._parts(expr.args[0] if mixed else expr, 1.0))  # type: ignore[attr-defined]
        if len(parts) == 1 and not mixed:
            return parts[0][1]
        return Ensemble(parts, mixed)

    def _parts(self, expr: t.Expr, factor: float) -> list[tuple[float, Teacher]]:
        if isinstance(expr, t.Binary) and expr.op == "+":
            return [*self._parts(expr.left, factor), *self._parts(expr.right, factor)]
        if isinstance(expr, t.Binary) and expr.op == "*":
            return self._parts(expr.right, factor * float(self.number(expr.left)))
        if isinstance(expr, (t.List, t.Tuple)):
            return [part for item in expr.items for part in self._parts(item, factor)]
        return [(factor, self._one(expr))]

    def _one(self, expr: t.Expr) -> Teacher:
        if isinstance(expr, t.Call) and _name(expr.function) == RECORDED and len(expr.args) == 1:
            return self._recorded(expr, expr.args[0])
        name = _name(expr)
        if name not in self.models:
            hint = next(iter(did_you_mean(name, self.models)), "")
            label = Label(expr.span, f"known: {', '.join(self.models)}")
            message = f"there is no teacher `{expr.span.text}`"
            help = hint or 'give it in the model file: models = {"NAME": build}'
            raise fail("F105", message, label, help=help)
        return ModelTeacher(self.models[name](), self.places)

    def _recorded(self, expr: t.Expr, name: t.Expr) -> Teacher:
        if not isinstance(name, t.String):
            raise fail("F105", "the file of a teacher is a text", Label(name.span))
        place = Label(expr.span)
        if self.places:
            message = "a file holds outputs, and nothing from inside of a teacher"
            raise fail("F105", message, place, help="leave `hint` and `attention` out")
        outputs, said = read_recorded(self.folder / name.value, place)
        if len(outputs) != self.data.samples or said.get("data") != self.data.inputs_digest():
            note = f"it holds {len(outputs):,} rows, the data has {self.data.samples:,} samples"
            hint = "record it anew: lissom record MODEL --split SPLIT -o FILE"
            raise fail("F105", "recorded outputs are of other data", place, note=note, help=hint)
        return RecordedTeacher(outputs)


def _name(expr: t.Node) -> str:
    return expr.text if isinstance(expr, t.Name) else ""


def read_recorded(path: Path, place: Label) -> tuple[Tensor, Mapping[str, Any]]:
    """The outputs of a file that `lissom record` wrote, and what it says of them. Raises F105."""
    try:
        with safe_open(path, "pt") as file:
            said = json.loads((file.metadata() or {}).get("lissom", "{}"))
            return file.get_tensor(OUTPUTS), said
    except (OSError, SafetensorError, ValueError, LissomError) as error:
        note = f"{type(error).__name__}: {error}"
        hint = "write one with `lissom record MODEL --split train -o FILE`"
        message = f"`{path.name}` holds no recorded outputs"
        raise fail("F105", message, place, note=note, help=hint) from None
