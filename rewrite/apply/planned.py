"""What an application would do, as values: ops to build and numbers to move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx

from ...grammar.diagnostics import Label, fail
from ...grammar.tree import tree as t
from ..ops.call import OpCall
from ..ops.opspec import OpSpec
from ..ops.runtime_size import RuntimeSize, known, read_by
from ..ops.spec import TensorSpec
from ..rules.binding import Several
from ..rules.constraint import Constraint
from ..rules.scope import ParamRef


@dataclass(eq=False, slots=True)
class Planned:
    """One op to build. Parameters are float64 results of the rule, or references that pass a weight
    on unchanged.
    """

    op: OpSpec
    inputs: tuple[Any, ...]
    params: dict[str, Tensor | ParamRef | None]
    attrs: dict[str, Any]
    origin: OpCall | None
    source: t.Node
    dtype: torch.dtype
    specs: tuple[TensorSpec, ...] = ()
    trained: dict[str, tuple[Constraint, ...]] = field(default_factory=dict)

    @property
    def names_type(self) -> bool:
        """Whether a setting names the floating type of what it gives."""
        given = self.specs and self.specs[0].dtype.is_floating_point
        return bool(given and self.op.names_type(self.attrs))

    @property
    def shapes(self) -> dict[str, Any]:
        """Shapes of inputs and parameters by declared name."""
        given = dict(zip((spec.name for spec in self.op.inputs), self.inputs, strict=False))
        specs = {name: spec_known(value) for name, value in (*given.items(), *self.params.items())}
        return {
            name: spec.shape if isinstance(spec, TensorSpec) else None
            for name, spec in specs.items()
        }

    def stored(self, value: Tensor) -> torch.dtype:
        """The type in which new numbers are kept: what a rule computed is rounded once, to the
        layer's; codes, and what it put into a coarser type itself (`as_type`), keep theirs.
        """
        single = torch.finfo(torch.float32).bits
        rounds = value.is_floating_point() and torch.finfo(value.dtype).bits >= single
        return self.dtype if rounds else value.dtype

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Parameters that are new numbers."""
        return {name: value for name, value in self.params.items() if isinstance(value, Tensor)}


@dataclass(slots=True)
class Plan:
    """What an application would do: ops in the order of building, the new value of each output,
    and the nodes of the graph that all this reads. moved, exchanged: the weights that `perturb`
    moves, and what it gives in place of a value that the matched ops read (to them alone), or that
    they give (to all who read it). handles: ops that `as` names.
    """

    ops: list[Planned] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)
    moved: dict[str, Tensor] = field(default_factory=dict)
    exchanged: dict[fx.Node, Plan] = field(default_factory=dict)
    reads: list[fx.Node] = field(default_factory=list)
    handles: dict[str, Any] = field(default_factory=dict)

    @property
    def perturbs(self) -> bool:
        return bool(self.moved or self.exchanged)

    @property
    def rounds(self) -> bool:
        """Whether `perturb` names types of numbers, and so do the new ops: then both say what is
        rounded.
        """
        given = [planned for other in self.exchanged.values() for planned in other.ops]
        sides = given, self.ops
        typed = [[p for p in ops if p.op.names_type(p.attrs)] for ops in sides]
        return all(typed) and all(p.names_type for ops in typed for p in ops)

    @property
    def finest(self) -> torch.dtype | None:
        """The type with most digits that the ops give, if any of them names one."""
        given = [s.dtype for p in self.ops for s in p.specs if s.dtype.is_floating_point]
        typed = any(planned.names_type for planned in self.ops)
        return min(given, key=lambda dtype: torch.finfo(dtype).eps) if typed else None

    @property
    def coarse(self) -> list[torch.dtype]:
        """The types of the values that `perturb` computes on the way to what it gives."""
        given = (planned for other in self.exchanged.values() for planned in other.ops)
        return [spec.dtype for planned in given for spec in planned.specs]


def flat(values: Sequence[Any]) -> list[Any]:
    """Operands with variadic ones spread out."""
    return [v for value in values for v in (flat(value) if isinstance(value, tuple) else (value,))]


def spec_known(value: Any) -> Any:
    """What a planned op knows of an operand or parameter before it runs."""
    if isinstance(value, fx.Node):
        return value.meta.get("val")
    if isinstance(value, Planned):
        return value.specs[0]
    if isinstance(value, ParamRef):
        value = value.tensor
    if isinstance(value, Tensor):
        return TensorSpec(tuple(value.shape), value.dtype)
    return tuple(map(spec_known, value)) if isinstance(value, tuple) else known(value)


def require_spec(name: str, node: fx.Node, new: Any, place: Label) -> None:
    """Raises R002 where a value would become no op without weights, R003 where it would have
    another shape or type of numbers.
    """
    if not isinstance(new, (Planned, fx.Node)):
        message = f"`{name}` is computed when the model runs, by ops alone"
        raise fail("R002", message, place, help=f"write `{name} := clamp({name}, ...)`")
    old, now = node.meta["val"], new.specs[0] if isinstance(new, Planned) else new.meta.get("val")
    if old != now:
        message = f"`{name}` keeps its shape and type for all that reads it"
        raise fail("R003", message, place, note=f"it is {old}, and would be {now}")


def nodes_read(plan: Plan) -> list[fx.Node]:
    """The nodes of the graph that a plan reads, each once."""
    each = ((*flat(planned.inputs), *read_by(planned.attrs)) for planned in plan.ops)
    values = [*plan.outputs.values(), *chain.from_iterable(each)]
    values += [v for value in values if isinstance(value, RuntimeSize) for v in value.reads]
    return list(dict.fromkeys(value for value in values if isinstance(value, fx.Node)))


def check_shape(move: t.Assign, value: Any, target: ParamRef) -> None:
    """Raises R003 for numbers of another shape than those that they replace."""
    if isinstance(value, Tensor) and tuple(value.shape) == target.shape:
        return
    shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
    note = f"it is {shape}, the weight is {list(target.shape)}"
    message = f"`{move.path}` keeps its shape when its numbers change"
    raise fail("R003", message, Label(move.span), note=note)


def in_double(value: Tensor) -> Tensor:
    """Numbers as a rule computes with them, whatever type it put them into."""
    return value.double() if value.is_floating_point() else value


def operands_of(op: OpSpec, values: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Positional arguments as the op's inputs (variadic ones gathered into a tuple) and its first
    settings.
    """
    values = tuple(v for value in values for v in (value if type(value) is Several else (value,)))
    at = next((index for index, spec in enumerate(op.inputs) if spec.variadic), None)
    if at is None:
        return values[: len(op.inputs)], values[len(op.inputs) :]
    rest = tuple(
        item for value in values[at:] for item in (value if isinstance(value, tuple) else (value,))
    )
    return (*values[:at], rest), ()
