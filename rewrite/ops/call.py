"""One op in a traced graph, in canonical form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx, nn

from ...grammar.diagnostics import Label, fail
from .opspec import OpSpec
from .shapes import shape_of
from .spec import TensorSpec, spec_of


@dataclass(slots=True)
class OpCall:
    """A node read as an op.

    inputs: in declared order: a node, a number, a tuple of those (variadic), None (optional and
    absent). params: declared name -> dotted path in `root`, None where the parameter is absent.
    attrs: every declared attribute; an `int2` is a pair. In data movement a size may be the node
    that computes it. in_place: written as an in-place op, whose input nobody else reads.
    """

    op: OpSpec
    node: fx.Node
    inputs: tuple[Any, ...]
    params: dict[str, str | None]
    attrs: dict[str, Any]
    root: fx.GraphModule
    in_place: bool = False

    def with_inputs(self, inputs: tuple[Any, ...]) -> OpCall:
        """The same op on other inputs of the same shapes."""
        return OpCall(self.op, self.node, inputs, self.params, self.attrs, self.root, self.in_place)

    def tensor(self, param: str) -> torch.Tensor | None:
        """The parameter or buffer itself."""
        path = self.params[param]
        return None if path is None else tensor_at(self.root, path)

    @property
    def outputs_first(self) -> bool:
        """Whether the first axis of the op's weight is one that its inputs have not; a transposed
        convolution holds its inputs there.
        """
        weight = next(param.shape for param in self.op.params if param.name == "weight")
        read = [spec.shape.names for spec in self.op.inputs if spec.shape is not None]
        return weight is not None and bool(weight.before[0].names - frozenset().union(*read))

    def input_specs(self) -> dict[str, Any]:
        """Declared input -> its spec, number, tuple of those, or None.

        Raises S002 if a node has no recorded value.
        """
        declared = zip(self.op.inputs, self.inputs, strict=True)
        return {spec.name: _spec(value, self.node) for spec, value in declared}

    def param_specs(self) -> dict[str, TensorSpec | None]:
        return {name: spec_of(self.tensor(name)) for name in self.params}  # type: ignore[misc]

    def shapes(self) -> dict[str, Any]:
        """Shapes of all inputs and parameters by declared name, as `OpSpec.bind` takes them."""
        specs = {**self.input_specs(), **self.param_specs()}
        return {name: shape_of(spec) for name, spec in specs.items()}


def module_at(root: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path, "" the root itself. Raises AttributeError where there is none.

    The same as `get_submodule`, which asks the class of every module on the way for each name; this
    is asked for every node of a graph many times over.
    """
    module = root
    for name in path.split(".") if path else ():
        if name not in module._modules or (inner := module._modules[name]) is None:
            return root.get_submodule(path)
        module = inner
    return module


def tensor_at(root: nn.Module, path: str) -> torch.Tensor:
    """The parameter or buffer at a dotted path."""
    owner, _, name = path.rpartition(".")
    held = module_at(root, owner)
    if name in held._parameters:
        return cast("torch.Tensor", held._parameters[name])
    return getattr(held, name)


def _spec(value: Any, reader: fx.Node) -> Any:
    if isinstance(value, tuple):
        return tuple(_spec(item, reader) for item in value)
    if not isinstance(value, fx.Node):
        return value
    if "val" not in value.meta:
        place = Label(None, where=f"node {value.name}")
        help_ = "run the capture, or store a TensorSpec in node.meta['val']"
        raise fail(
            "S002", f"the shape of what `{reader.name}` reads is not known", place, help=help_
        )
    return value.meta["val"]
