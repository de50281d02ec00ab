"""Teachers: the original model, other models, several together, or outputs in a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from ...grammar.diagnostics import Label, Span, did_you_mean, fail
from ...grammar.documents import sha256
from ...grammar.tree import tree as t
from ...grammar.tree.fold import literal
from ..graph.digest import model_digest, tensor_digest
from ..graph.runs import own_inputs
from ..graph.writes import writes
from ..torch_internals import tree_leaves
from .data import TrainingData
from .learner import with_own_weights
from .recorded import read_recorded
from .settings import Number
from .streamed import Data
from .taps import tapped

RECORDED, PROBABILITIES = "recorded", "probabilities"
"""The words for a file of outputs, and for teachers that agree on probabilities."""

Places = Sequence[tuple[str, Span]]
"""Where a term looks inside, with what asks for it."""

Said = tuple[Any, Mapping[str, Tensor]]
"""Outputs, and values inside by their place."""


class Teacher(Protocol):
    """Gives outputs, and values inside, for inputs; rows: which samples of the data these are, None
    for others. It is never changed.
    """

    def __call__(self, args: tuple[Any, ...], rows: Tensor | None) -> Said: ...

    def digest(self) -> str:
        """SHA-256 of all that its answers follow from, beside what it is asked."""
        ...


@dataclass
class ModelTeacher:
    """One graph in eval mode, without gradients."""

    graph: fx.GraphModule
    places: Places = ()

    def __post_init__(self) -> None:
        self.source = self.graph
        self.taps = [place for place, _ in self.places]
        self.graph = tapped(self.graph, self.places, "the teacher").eval()
        self.device = torch.device("cpu")
        self.writes = any(writes(node, self.graph) for node in self.graph.graph.nodes)

    @torch.no_grad()
    def __call__(self, args: tuple[Any, ...], rows: Tensor | None) -> Said:
        self._go_to(args)
        outputs, values = self.graph(*(own_inputs(args) if self.writes else args))
        return outputs, dict(zip(self.taps, values, strict=True))

    def _go_to(self, args: tuple[Any, ...]) -> None:
        """Where the inputs are. Its weights are those of the graph that it was made of, which stays
        where it is.
        """
        devices = (leaf.device for leaf in tree_leaves(args) if isinstance(leaf, Tensor))
        device = next(devices, self.device)
        if device != self.device:
            self.graph, self.device = with_own_weights(self.graph).eval().to(device), device

    def digest(self) -> str:
        return model_digest(self.source)


@dataclass
class RecordedTeacher:
    """Outputs of a teacher that can only be asked: a row for each sample of the data."""

    outputs: Tensor

    def __call__(self, args: tuple[Any, ...], rows: Tensor | None) -> Said:
        assert rows is not None
        return self.outputs[rows], {}

    def digest(self) -> str:
        return tensor_digest(self.outputs)


@dataclass
class Ensemble:
    """The weighted mean of several teachers: of their logits, or of their probabilities, which come
    back as logarithms. Values inside are those of the first.
    """

    parts: Sequence[tuple[float, Teacher]]
    of_probabilities: bool = False

    def __call__(self, args: tuple[Any, ...], rows: Tensor | None) -> Said:
        found = [teacher(args, rows) for _, teacher in self.parts]
        outputs = [said for said, _ in found]
        if not all(isinstance(x, Tensor) and x.shape == outputs[0].shape for x in outputs):
            raise fail("F105", "teachers that are taken together give outputs of one shape")
        total = sum(weight for weight, _ in self.parts)
        shares = [weight / total for weight, _ in self.parts]
        return self._mean(outputs, shares), found[0][1]

    def _mean(self, outputs: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        pairs = list(zip(outputs, shares, strict=True))
        if not self.of_probabilities:
            return torch.stack([share * x for x, share in pairs]).sum(0)
        # Logarithms all the way: a probability that rounds to 0 has one, too.
        logarithms = [x.log_softmax(1) + math.log(share) for x, share in pairs]
        return torch.stack(logarithms).logsumexp(0)

    def digest(self) -> str:
        parts = [f"{weight!r} {teacher.digest()}" for weight, teacher in self.parts]
        return sha256("\n".join([str(self.of_probabilities), *parts]))


def graphs_of(teacher: Teacher) -> tuple[fx.GraphModule, ...]:
    """The graphs that a teacher asks."""
    if isinstance(teacher, ModelTeacher):
        return (teacher.graph,)
    if isinstance(teacher, RememberedTeacher):
        return graphs_of(teacher.teacher)
    parts = teacher.parts if isinstance(teacher, Ensemble) else ()
    return tuple(graph for _, part in parts for graph in graphs_of(part))


@dataclass
class RememberedTeacher:
    """A teacher that was asked once for each sample, where samples come unchanged every time."""

    teacher: Teacher
    outputs: Tensor

    def __call__(self, args: tuple[Any, ...], rows: Tensor | None) -> Said:
        return self.outputs[rows], {}

    def digest(self) -> str:
        return self.teacher.digest()


MOST = 1 << 28
"""Bytes of outputs that are remembered."""


def remembered(teacher: Teacher, data: Data) -> Teacher:
    """The same teacher, asked for every sample once, where the samples and what it says of them fit
    in memory and nothing inside is asked for.
    """
    if not isinstance(data, TrainingData):
        return teacher
    args = data.pairs[0][0]
    rows = torch.arange(data.sizes[0])
    first = teacher(args, rows)[0]
    if not isinstance(first, Tensor) or first.numel() == 0:
        return teacher
    if first.numel() / data.sizes[0] * first.element_size() * data.samples > MOST:
        return teacher
    outputs = data.answers(lambda args, rows: teacher(args, rows)[0])
    return teacher if outputs is None else RememberedTeacher(teacher, outputs)


# -- from the text of a program --------------------------------------------------------------------


def is_from_file(expr: t.Expr) -> bool:
    """Whether outputs in a file are among those who teach."""
    return any(isinstance(node, t.Name) and node.text == RECORDED for node in t.walk(expr))


@dataclass(frozen=True)
class TeacherReader:
    """What `teacher = ...` names. models: graphs by name, made when they are asked for; places:
    where terms look inside; folder: where files of recorded outputs lie.
    """

    models: Mapping[str, Callable[[], fx.GraphModule]]
    number: Number
    data: Data
    places: Places
    folder: Path

    def read(self, expr: t.Expr) -> Teacher:
        """Raises F105 where there is no such teacher, or it does not fit the data; U008 where it
        has no such place inside.
        """
        return self._together([expr], self.places)

    def _together(self, exprs: Sequence[t.Expr], places: Places, mixed: bool = False) -> Teacher:
        """Who is first is asked for what is inside."""
        found = [part for expr in exprs for part in self._parts(expr, 1.0)]
        made = [
            (weight, self._one(expr, () if number else places))
            for number, (weight, expr) in enumerate(found)
        ]
        return made[0][1] if len(made) == 1 and not mixed else Ensemble(made, mixed)

    def _parts(self, expr: t.Expr, factor: float) -> Iterator[tuple[float, t.Expr]]:
        if isinstance(expr, t.Binary) and expr.op == "+":
            yield from self._parts(expr.left, factor)
            yield from self._parts(expr.right, factor)
        elif isinstance(expr, t.Binary) and expr.op == "*":
            flipped = self._teaches(expr.left) or literal(expr.right) is not None
            weight, rest = (expr.right, expr.left) if flipped else (expr.left, expr.right)
            yield from self._parts(rest, factor * self._weight(weight))
        elif isinstance(expr, (t.List, t.Tuple)) and expr.items:
            for item in expr.items:
                yield from self._parts(item, factor)
        else:
            yield factor, expr

    def _teaches(self, expr: t.Expr) -> bool:
        """Whether a teacher is named in it."""
        names = (node.text for node in t.walk(expr) if isinstance(node, t.Name))
        return any(name in (*self.models, RECORDED, PROBABILITIES) for name in names)

    def _weight(self, expr: t.Expr) -> float:
        value = self.number(expr)
        if not isinstance(value, (int, float)) or not 0 < value < math.inf:
            message = f"`{expr.span.text}` is no weight of a teacher: a number greater than 0"
            raise fail("F105", message, Label(expr.span))
        return float(value)

    def _one(self, expr: t.Expr, places: Places) -> Teacher:
        called = expr.function if isinstance(expr, t.Call) and not expr.keywords else expr
        word = called.text if isinstance(called, t.Name) else ""
        if isinstance(expr, t.Call) and word == RECORDED and len(expr.args) == 1:
            return self._recorded(expr, expr.args[0], places)
        if isinstance(expr, t.Call) and word == PROBABILITIES and expr.args:
            return self._together(expr.args, places, mixed=True)
        if word not in self.models or isinstance(expr, t.Call):
            hint = next(iter(did_you_mean(word, self.models)), "")
            label = Label(expr.span, f"known: {', '.join(self.models)}")
            help = hint or 'give it in the model file: models = {"NAME": build}'
            raise fail("F105", f"there is no teacher `{expr.span.text}`", label, help=help)
        return ModelTeacher(self.models[word](), places)

    def _recorded(self, expr: t.Expr, name: t.Expr, places: Places) -> Teacher:
        if not isinstance(name, t.String):
            raise fail("F105", "the file of a teacher is a text", Label(name.span))
        place = Label(expr.span)
        if places:
            message = "a file holds outputs, and nothing from inside of a teacher"
            raise fail("F105", message, place, help="leave `hint` and `attention` out")
        if not isinstance(self.data, TrainingData):
            message = "outputs in a file are of samples in an order, and a stream has its own"
            raise fail(
                "F105", message, place, help="train on a sample in memory: `sample(SPLIT, all)`"
            )
        outputs, said = read_recorded(self.folder / name.value, place)
        if len(outputs) != self.data.samples or said.get("data") != self.data.inputs_digest():
            note = f"it holds {len(outputs):,} rows, the data has {self.data.samples:,} samples"
            hint = "record it anew: lissom record MODEL --split SPLIT -o FILE"
            raise fail("F105", "recorded outputs are of other data", place, note=note, help=hint)
        return RecordedTeacher(outputs)
