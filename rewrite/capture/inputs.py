"""Example inputs: how they bind to forward, and how a second example is made from the first."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from keyword import iskeyword
from typing import Any

import torch
from torch import fx, nn

from ...grammar.diagnostics import Label, LissomError, fail
from ..graph.runs import copied
from ..graph.scalars import is_traced
from ..graph.values import PathStep, leaves, path_text, rebuild, tensors
from ..measure.large_blocks import giving_back
from .recorded import Specialised
from .tracer import CallRecorder

BY_POSITION = "by_position"
"""The input in front of those that were captured by names which forward does not declare: a call by
position would take them in the order of the example.
"""

SECOND = "`second=` of `lissom.compile`, or as `second` in the model file"
"""Where further examples are given, from Python and on the command line."""

PLAIN = (int, float, bool, str, type(None))
_INPUTS = (*PLAIN, torch.Tensor, torch.dtype, torch.device, complex, enum.Enum)


@dataclass(frozen=True)
class Case:
    """Arguments for one call of a model, and a name for them in messages."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    label: str = "the example"

    def fresh(self) -> Case:
        """A copy that a model may write to. A tensor given twice becomes two tensors."""
        return self.map(lambda leaf: copied(leaf) if isinstance(leaf, torch.Tensor) else leaf)

    def map(self, change: Callable[[Any], Any], label: str = "") -> Case:
        args = tuple(rebuild(arg, change) for arg in self.args)
        kwargs = {name: rebuild(value, change) for name, value in self.kwargs.items()}
        return Case(args, kwargs, label or self.label)

    def run(self, model: nn.Module) -> Any:
        """Call a model on a copy of this case, without gradients."""
        fresh = self.fresh()
        with torch.no_grad(), giving_back():
            # Not `model(...)`: a GraphModule's own call prints a traceback for errors that are
            # expected here.
            return nn.Module.__call__(model, *fresh.args, **fresh.kwargs)


def as_cases(second: Any) -> list[Case]:
    """Further examples: one, or a list of several (each a tuple, or a dict by name)."""
    several = isinstance(second, list) and all(isinstance(e, (tuple, Mapping)) for e in second)
    if not several or not second:
        return [as_case(second, "the second example")]
    labels = ["the second example", *(f"example {count}" for count in range(3, len(second) + 2))]
    return [as_case(each, label) for each, label in zip(second, labels, strict=True)]


def as_case(inputs: Any, label: str = "the example") -> Case:
    """A tuple or list is positional, a mapping goes by name, a single tensor is one argument."""
    if isinstance(inputs, Mapping):
        return Case((), dict(inputs), label)
    if isinstance(inputs, torch.Tensor):
        return Case((inputs,), {}, label)
    return Case(tuple(inputs), {}, label)


def doubled(case: Case, varied: bool = True) -> Case | None:
    """Twice the batch along the first axis that the tensors share.

    `varied`: the second half holds other values, which some inputs (masks, positions) do not allow.
    """
    size = leading_size(case)
    if size is None:
        return None

    def double(leaf: Any) -> Any:
        batched = isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] == size
        if not batched:
            return leaf
        return laid_out_as(leaf, torch.cat([leaf, leaf.flip(-1) if varied else leaf]))

    return case.map(double, f"batch {2 * size}")


def other_values(model: nn.Module, case: Case) -> Iterator[tuple[Case, Any]]:
    """What the model makes of other numbers in the same shapes, whose sums, means and extremes are
    others as well: in floating tensors, then in the others. Nothing where it does not run.
    """

    def halved(leaf: Any) -> Any:
        floating = isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
        return leaf * 0.5 if floating else leaf

    def smallest(leaf: Any) -> Any:
        whole = isinstance(leaf, torch.Tensor) and not leaf.is_floating_point() and leaf.numel()
        return leaf.min().expand_as(leaf).clone() if whole else leaf

    def none(leaf: Any) -> Any:
        whole = isinstance(leaf, torch.Tensor) and not leaf.is_floating_point()
        return torch.zeros_like(leaf) if whole else leaf

    names = {"halved values": halved, "the smallest value everywhere": smallest, "zeros": none}
    for other in (case.map(change, name) for name, change in names.items()):
        with suppress(Exception):
            yield other, other.run(model)


def leading_size(case: Case) -> int | None:
    """The size of the first axis of the first tensor that has one."""
    sizes = (tensor.shape[0] for tensor in tensors(case.args, case.kwargs) if tensor.dim())
    return next(sizes, None)


def enlarged(case: Case) -> Case | None:
    """Larger images, by a multiple of 32 so that strides still fit; None without a 4-d float
    input.
    """
    found = images(case)
    if len(found) != 1 or 0 in found[0].shape:
        return None
    height, width = (size + 32 * -(-size // 128) for size in found[0].shape[-2:])

    def enlarge(leaf: Any) -> Any:
        return _tile(leaf, height, width) if leaf is found[0] else leaf

    return case.map(enlarge, f"size {height}x{width}")


def images(case: Case) -> list[torch.Tensor]:
    found = tensors(case.args, case.kwargs)
    return [tensor for tensor in found if tensor.dim() == 4 and tensor.is_floating_point()]


def _tile(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    rows, columns = (
        -(-new // old) for new, old in zip((height, width), image.shape[-2:], strict=True)
    )
    tiled = image.repeat(1, 1, rows, columns)[..., :height, :width].contiguous()
    return laid_out_as(image, tiled)


def laid_out_as(example: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with its axes in the order in memory that those of the example have."""
    if example.is_contiguous() or 0 in example.stride():
        return tensor
    order = sorted(range(example.dim()), key=lambda axis: -example.stride(axis))
    kind = {"dtype": tensor.dtype, "device": tensor.device}
    return torch.empty_permuted(tensor.shape, order, **kind).copy_(tensor)


@dataclass(frozen=True)
class Bound:
    """A case whose values have placeholders in a recorder's graph.

    Arguments stay positional or named as they were given. `defaults` are the numbers forward would
    take by itself; `fixed` is what the graph takes from the case for good.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    defaults: dict[str, Any]
    fixed: tuple[Specialised, ...]


def bind(recorder: CallRecorder, case: Case) -> Bound:
    """Give every parameter of forward a placeholder."""
    signature = inspect.signature(recorder.root.forward)
    given = signature.bind(*case.args, **case.kwargs).arguments
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    fixed: list[Specialised] = []
    optional = False
    for index, (name, parameter) in enumerate(signature.parameters.items()):
        value = given.get(name, _nothing(parameter))
        if parameter.kind is parameter.VAR_KEYWORD:
            if value:
                optional = True
                recorder.placeholder(by_position(signature.parameters, value), (None,), None)
            for key, item in value.items():  # names of the call are names of the graph's inputs
                fixed += _fixed(key, item, True)
                kwargs[key] = recorder.placeholder(key, (None,), item)
            continue
        if parameter.kind is parameter.VAR_POSITIONAL and not value:
            continue
        fixed += _fixed(name, value, name in given)
        target, default = _spelling(parameter)
        # Generated code has no bare `*`, so a required name after a default needs one as well.
        optional = optional or bool(default)
        required_late = optional and not default and parameter.kind is parameter.KEYWORD_ONLY
        value = recorder.placeholder(target, (None,) if required_late else default, value)
        if parameter.kind is parameter.VAR_POSITIONAL:
            args += value
        elif name not in given:
            defaults |= {name: value} if is_traced(value) and _nameable(parameter) else {}
        elif index < len(case.args):
            args.append(value)
        else:
            kwargs[name] = value
    return Bound(tuple(args), kwargs, defaults, tuple(fixed))


def by_position(*known: Iterable[str]) -> str:
    """`BY_POSITION`, or a name like it where an input has that name."""
    name = BY_POSITION
    while any(name in names for names in known):
        name += "_"
    return name


def stand_in(inputs: Iterable[str], named: Container[str]) -> str:
    """What `by_position` called an input of a graph captured with these names; "" for none."""
    found = (name for name in inputs if name.rstrip("_") == BY_POSITION and name not in named)
    return next(found, "")


def _nothing(parameter: inspect.Parameter) -> Any:
    """What a parameter is when a call does not give it."""
    empty: dict[Any, Any] = {parameter.VAR_POSITIONAL: (), parameter.VAR_KEYWORD: {}}
    return empty.get(parameter.kind, parameter.default)


def _nameable(parameter: inspect.Parameter) -> bool:
    return parameter.kind is not parameter.POSITIONAL_ONLY


def placeholder_values(
    graph: fx.Graph, forward: Callable[..., Any], case: Case
) -> dict[fx.Node, Any]:
    """The value of every placeholder for a copy of `case`, as `fx.Interpreter.run(initial_env=...)`
    wants them.
    """
    fresh = case.fresh()
    signature = inspect.signature(forward)
    bound = signature.bind(*fresh.args, **fresh.kwargs)
    bound.apply_defaults()
    values = dict(bound.arguments)
    for name, parameter in signature.parameters.items():
        values |= values[name] if parameter.kind is parameter.VAR_KEYWORD else {}
    found = graph.find_nodes(op="placeholder")
    # What takes inputs by position has no value: there are none.
    return {node: values.get(str(node.target).lstrip("*")) for node in found}


def check_bindable(model: nn.Module, case: Case) -> None:
    """Raise M004 if the inputs do not fit the signature of forward, or hide their tensors."""
    for path, leaf in leaves((case.args, case.kwargs)):
        if not isinstance(leaf, _INPUTS):
            raise _unreadable(case, path, leaf)
    unnamed = [name for name in case.kwargs if not str(name).isidentifier() or iskeyword(name)]
    if unnamed:
        message = f"{case.label} names an input {unnamed[0]!r}, which no parameter can be called"
        raise fail("M004", message, help="name inputs as Python names its parameters")
    signature = inspect.signature(model.forward)
    try:
        signature.bind(*case.args, **case.kwargs)
    except TypeError as error:
        raise fail(
            "M004",
            f"{case.label} does not fit `{type(model).__name__}.forward`: {error}",
            note=f"its signature is forward{signature}",
            help="pass a tuple of positional inputs, or a dict of inputs by name",
        ) from None


def _unreadable(case: Case, path: tuple[PathStep, ...], leaf: object) -> LissomError:
    return fail(
        "M004",
        f"{case.label} holds a `{type(leaf).__name__}` object, whose tensors a trace cannot see",
        Label(None, where=f"inputs{path_text(path[1:])}"),
        help="pass tensors and numbers, or tuples, lists, dicts and dataclasses of them",
    )


def _spelling(parameter: inspect.Parameter) -> tuple[str, tuple[Any, ...]]:
    """The placeholder's target and its default, if any."""
    marks: dict[Any, str] = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
    stars = marks.get(parameter.kind, "")
    default = parameter.default
    if default is parameter.empty:
        return stars + parameter.name, ()
    return stars + parameter.name, (default if isinstance(default, PLAIN) else None,)


def _fixed(name: str, value: Any, given: bool) -> Iterator[Specialised]:
    """Flags, names and absent inputs decide what forward does, parts of inputs too; a graph can
    hold only one decision.
    """
    for steps, leaf in leaves(value):
        if isinstance(leaf, (bool, str, type(None))):
            at = f"`{name}{path_text(steps)}`"
            why = f"argument {at} is {'fixed to' if given else 'left at'} {leaf!r}"
            yield Specialised(why, name, "", leaf)
