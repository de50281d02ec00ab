"""Reading a property of a tensor as an op: `x.mT`, which a graph holds as `getattr(x, "mT")`."""

from __future__ import annotations

from typing import Any

from torch import fx

from .attributes import Unreadable
from .call import OpCall
from .read import CallReader
from .spec import TensorSpec


class PropertyReader(CallReader):
    """One spelling `Tensor.mT(x)`."""

    def read(self, node: fx.Node, root: fx.GraphModule) -> OpCall:
        """The node as a call. Raises `Unreadable`, also for `T` of anything but a matrix: there
        it turns all axes around.
        """
        if node.args[1] == "T" and _rank(node.args[0]) != 2:
            raise Unreadable("`T` is a transpose of matrices only, or its rank is not recorded")
        return super().read(node, root)

    def _bind(self, node: fx.Node, values: dict[str, Any]) -> None:
        values[self.ours[0]] = node.args[0]


def _rank(value: Any) -> int | None:
    known = value.meta.get("val") if isinstance(value, fx.Node) else None
    return len(known.shape) if isinstance(known, TensorSpec) else None
