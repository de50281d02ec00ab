"""What is exported: the model of an artifact, and the inputs that its certificate names."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from ...grammar.diagnostics import Label, LissomError, fail
from ..evidence.artifact import behind_in, examples_of
from ..evidence.certificate import RELOAD_TOLERANCE
from ..exits.segments import Behind
from ..measure.samples import Example
from ..store.folder import load
from ..torch_internals import tree_flatten, tree_unflatten


@dataclass(frozen=True, slots=True)
class Exportable:
    """A model, and examples of one structure in several sizes, the one that is traced first.
    behind: what goes on behind its exits.
    """

    module: fx.GraphModule
    examples: tuple[Example, ...]
    folder: Path
    behind: Behind = field(default_factory=Behind)

    @property
    def args(self) -> tuple[Any, ...]:
        return self.examples[0].args

    @property
    def types(self) -> set[torch.dtype]:
        """Of its inputs, weights and buffers."""
        tensors = [*self.module.parameters(), *self.module.buffers(), *tensors_in(self.args)]
        return {tensor.dtype for tensor in tensors}

    def rounding(self, wanted: Iterable[Tensor]) -> float:
        """The relative L2 distance by which other kernels may move outputs: a few units in the last
        place of the coarsest type, if that is more than usual.
        """
        numbers = (t for t in {*self.types, *(v.dtype for v in wanted)} if t.is_floating_point)
        return max([RELOAD_TOLERANCE, *(8 * torch.finfo(t).eps for t in numbers)])

    def refused(self, message: str, note: str = "", help: str = "") -> LissomError:
        return fail("A040", message, Label(None, where=str(self.folder)), note=note, help=help)


def exportable(folder: Path) -> Exportable:
    """Reads an artifact. Raises A-codes for damage, A040 where it holds no inputs to trace."""
    loaded = load(folder)
    examples = examples_of(loaded, folder)
    first = tuple(_traceable_first(examples))
    found = Exportable(loaded.module, first, folder, behind_in(loaded.documents))
    if not examples:
        said = "an input is an object of a class of its own, which is not recorded"
        raise found.refused("there are no inputs to export with", said)
    return found


def _traceable_first(examples: Sequence[Example]) -> list[Example]:
    """torch.export takes a size of 0 or 1 for a constant: one with larger sizes comes first."""
    return sorted(examples, key=lambda e: any(n < 2 for n in _lengths(e)))


def _lengths(example: Example) -> Iterator[int]:
    tensors = (v for v in tree_flatten(example.args)[0] if isinstance(v, Tensor))
    return (n for tensor in tensors for n in tensor.shape)


def traced(given: Exportable) -> torch.export.ExportedProgram:
    """The model as torch.export has it. Sizes that differ between the examples stay free. Raises
    A040 where torch.export refuses.
    """
    sizes = free_sizes(given.examples)
    try:
        with torch.no_grad(), quiet():
            return torch.export.export(given.module, given.args, dynamic_shapes=sizes, strict=False)
    except Exception as error:
        raise given.refused("torch.export cannot trace the model", one_line(error)) from error


def free_sizes(examples: Sequence[Example]) -> Any:
    """For each tensor the axes that differ between examples, as torch.export takes them."""
    values, structure = tree_flatten(examples[0].args)
    others = [tree_flatten(example.args)[0] for example in examples[1:]]
    alike = [other for other in others if len(other) == len(values)]
    free = [_free(value, [other[i] for other in alike]) for i, value in enumerate(values)]
    return tree_unflatten(free, structure)


def _free(value: Any, others: Iterable[Any]) -> dict[int, Any] | None:
    if not isinstance(value, Tensor):
        return None
    shapes = [other.shape for other in others if isinstance(other, Tensor)]
    shapes = [shape for shape in shapes if len(shape) == value.dim()]
    differ = (d for d, n in enumerate(value.shape) if any(shape[d] != n for shape in shapes))
    return dict.fromkeys(differ, torch.export.Dim.AUTO)


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """What exporters say about their own code is no news for the caller. `names` are loggers."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def tensors_in(values: Iterable[object]) -> list[Tensor]:
    return [value.detach() for value in values if isinstance(value, Tensor)]


def one_line(error: BaseException) -> str:
    """What was wrong first: exporters wrap one error into another."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
