"""The index over a traced graph: each node as a canonical op, each op's nodes, each parameter's
readers.

The graph itself is the carrier and is never normalised.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from ..ops.attributes import Unreadable
from ..ops.call import OpCall, module_at
from ..ops.read_back import check_spellings
from ..ops.spec import TensorSpec
from ..ops.vocabulary import Vocabulary
from ..torch_internals import order_of
from .modules import has_hooks
from .ties import Owners, overwrites_others
from .writes import may_share

__all__ = ["GraphView", "OpCall"]

_SIZED = frozenset({"movement", "resize"})
"""Traits of ops whose settings may come from the graph, and so may be among what is replaced."""


class GraphView:
    """The canonical reading of a `GraphModule`.

    A node is read when it is first asked for, and again whenever its arguments have changed since.
    After inserting or erasing nodes call `add` and `forget`; both are O(1). Settings of modules
    (`training` among them) are read once: a changed module needs `forget` and `add` of its nodes.
    """

    def __init__(self, root: fx.GraphModule, vocabulary: Vocabulary | None = None) -> None:
        self.root = root
        self.vocabulary = vocabulary or Vocabulary.library()
        self._read: dict[fx.Node, tuple[Any, Any, OpCall | str]] = {}
        self._by_op: dict[str, dict[fx.Node, None]] = {}
        self._unsorted: set[str] = set()
        self._names: dict[fx.Node, tuple[str, ...]] = {}
        self._owners: Owners | None = None
        self._checked: set[str] = set()
        for node in root.graph.nodes:
            self._index(node)

    # -- reading -----------------------------------------------------------------------------------

    def call(self, node: fx.Node) -> OpCall | None:
        """The node as an op; None where it is opaque."""
        found = self._reading(node)
        return found if isinstance(found, OpCall) else None

    def why_opaque(self, node: fx.Node) -> str:
        """The reason that `call` is None; "" if it is not."""
        found = self._reading(node)
        return found if isinstance(found, str) else ""

    def calls_of(self, op_name: str) -> tuple[fx.Node, ...]:
        """The nodes that are this op, in graph order. Raises T008 where this torch hides the op."""
        self._check(op_name)
        nodes = self._by_op.get(op_name, {})
        if op_name in self._unsorted:
            nodes = self._by_op[op_name] = dict.fromkeys(sorted(nodes))
            self._unsorted.discard(op_name)
        return tuple(node for node in nodes if self._is(node, op_name))

    def projection(self, node: fx.Node) -> tuple[fx.Node, int] | None:
        """For the node that takes result k out of an op with several results: that op's node and
        k.
        """
        if node.target is not operator.getitem:
            return None
        source, index = node.args
        if not isinstance(source, fx.Node) or not isinstance(index, int):
            return None
        return (source, index) if self._gives_several(source) else None

    def owners(self, path: str) -> tuple[tuple[fx.Node, str], ...]:
        """All (node, path) pairs that read the storage of the parameter or buffer at `path`, tied
        ones included.
        """
        if self._owners is None:
            self._owners = Owners(self.root)
        return self._owners.of(path)

    def may_be(self, node: fx.Node) -> tuple[str, ...]:
        """The ops that a node is if it can be read, by what it calls alone: costs one look-up."""
        return self._names.get(node, ())

    def require_read(self, node: fx.Node) -> None:
        """For who reads every node whatever op it is. Raises T008 where this torch hides the op of
        a node, or any op at all where the node is opaque: it may be what is hidden.
        """
        call = self.call(node)
        for name in self.vocabulary.names() if call is None else (call.op.name,):
            self._check(name)

    # -- keeping up --------------------------------------------------------------------------------

    def add(self, node: fx.Node) -> None:
        """Take in a node that was inserted."""
        self._unsorted.update(self._index(node))
        if self._owners is not None:
            self._owners.add(node)

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Give every reader of `old` that stands behind `new` this node instead, which has the same
        shape and dtype and may itself be made of `old`.

        Readers need no second reading: only one of their inputs has another name.
        """
        readers = [user for user in old.users if order_of(user) > order_of(new)]
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user in readers)
        for reader in readers:
            known = self._read.get(reader)
            if known is not None:
                self._rewire(reader, known[2], old, new)

    def _rewire(self, reader: fx.Node, found: OpCall | str, old: fx.Node, new: fx.Node) -> None:
        if isinstance(found, str) or not found.op.traits.isdisjoint(_SIZED):
            del self._read[reader]
            return
        inputs = tuple(_exchanged(value, old, new) for value in found.inputs)
        self._read[reader] = reader.args, reader.kwargs, found.with_inputs(inputs)

    def hold_anew(self, node: fx.Node) -> None:
        """Other tensors are in the places of those that a node holds; its call and its settings
        are what they were.
        """
        if self._owners is not None:
            self._owners.forget(node)
            self._owners.add(node)

    def forget(self, node: fx.Node) -> None:
        """Drop a node that is about to be erased, or whose module changed."""
        self._read.pop(node, None)
        for name in self._names.pop(node, ()):
            self._by_op[name].pop(node, None)
        if self._owners is not None:
            self._owners.forget(node)

    # -- inside ------------------------------------------------------------------------------------

    def _index(self, node: fx.Node) -> tuple[str, ...]:
        names = self._names[node] = self.vocabulary.candidates(node, self.root)
        for name in names:
            self._by_op.setdefault(name, {})[node] = None
        return names

    def _check(self, op_name: str) -> None:
        """An op that is looked for must be seen in every spelling, or a rule stays silent."""
        op = None if op_name in self._checked else self.vocabulary.get(op_name)
        self._checked.add(op_name)
        if op is not None:
            check_spellings(op, self.vocabulary)

    def _is(self, node: fx.Node, op_name: str) -> bool:
        found = self._reading(node)
        return isinstance(found, OpCall) and found.op.name == op_name

    def _reading(self, node: fx.Node) -> OpCall | str:
        found = self._remembered(node)
        # Whether an in-place op is a plain function depends on the readers of others, so it is
        # never remembered.
        if isinstance(found, OpCall) and found.in_place:
            return overwrites_others(found, self._may_share) or found
        return found

    def _remembered(self, node: fx.Node) -> OpCall | str:
        args, kwargs = node.args, node.kwargs
        known = self._read.get(node)
        if known is None or known[0] is not args or known[1] is not kwargs:
            known = self._read[node] = (args, kwargs, self._read_node(node))
        return known[2]

    def _read_node(self, node: fx.Node) -> OpCall | str:
        if node.op == "call_module" and self._is_altered(node):
            return f"the module {node.target} has hooks, parametrizations or a forward of its own"
        if node.target is operator.getitem:
            reason = self._not_a_slice(node)
            if reason:
                return reason
        readers = self.vocabulary.readers(node, self.root)
        if isinstance(readers, str):
            return readers
        reasons = []
        for reader in readers:
            try:
                return reader.read(node, self.root)
            except Unreadable as misfit:
                reasons.append(f"not `{reader.op.name}`: {misfit.reason}")
        return "; ".join(dict.fromkeys(reasons))

    def _is_altered(self, node: fx.Node) -> bool:
        module = module_at(self.root, str(node.target))
        return has_hooks(module) or "forward" in module.__dict__

    def _not_a_slice(self, node: fx.Node) -> str:
        """`x[k]` takes one result of an op that gives several, or slices a tensor."""
        source = node.args[0]
        if not isinstance(source, fx.Node) or self._gives_several(source):
            return f"it takes one result of `{source}`"
        known = "val" in source.meta or source.op in ("placeholder", "get_attr")
        unclear = not known and self.call(source) is None
        return f"whether `{source}` is one tensor is not recorded" if unclear else ""

    def _gives_several(self, node: fx.Node) -> bool:
        if "val" in node.meta:
            return not isinstance(node.meta["val"], TensorSpec)
        call = self.call(node)
        return call is not None and call.op.results != 1

    def _may_share(self, node: fx.Node) -> tuple[fx.Node, ...]:
        call = self._remembered(node)
        return may_share(node, call if isinstance(call, OpCall) else None)


def _exchanged(value: Any, old: fx.Node, new: fx.Node) -> Any:
    if isinstance(value, tuple):
        return tuple(new if item is old else item for item in value)
    return new if value is old else value
