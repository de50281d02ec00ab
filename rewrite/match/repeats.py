"""Sites that run the same layers: a siamese network calls a convolution and its norm twice.

A weight that others read is not to be computed with: their calls would change. But where each
reader is in a site of the same rule, with the same weights in the same places, all change alike.
Each is rewritten by itself, and the layers that come out are one again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from ..ops.call import OpCall
from ..rules.binding import Bindings
from ..rules.pattern import PatternOp
from ..rules.scope import ParamRef, Scope
from ..rules.state import State
from .match import Search


def foreign_readers(scope: Scope, ref: ParamRef) -> list[fx.Node]:
    """Who else reads the storage of a parameter, apart from sites that repeat the present one."""
    others = [node for node in scope.state.readers(ref.path) if node is not ref.call.node]
    asked = scope.facts.repeats
    alike = asked() if others and asked is not None else ()
    return [node for node in others if node not in alike]


def repeats(
    state: State, search: Search, found: Bindings, is_site: Callable[..., bool]
) -> frozenset[fx.Node]:
    """The nodes of the other sites that read the weights of `found`, if these and it are all that
    does; none otherwise, and none where nobody shares a weight.

    `is_site(match, readers)` says whether a structural match is a site if the nodes `readers` may
    read its weights.
    """
    own = {call.node for call in found.calls()}
    paths = {path for call in found.calls() for path in call.params.values() if path is not None}
    readers = frozenset(node for path in paths for node in state.readers(path))
    if readers <= own or found.chains:
        return frozenset()
    lead = next(op for op in search.pattern.ops if _has_weights(found.ops.get(op.index)))
    taken = set(own)
    for node in sorted(readers - own):
        other = _alike(search, lead, node, found)
        if other is None:
            continue
        nodes = {call.node for call in other.calls()}
        if nodes & taken or not is_site(other, readers):
            return frozenset()
        taken |= nodes
    return frozenset(taken - own) if readers <= taken else frozenset()


def _has_weights(call: OpCall | None) -> bool:
    return call is not None and any(path is not None for path in call.params.values())


def _alike(search: Search, lead: PatternOp, node: fx.Node, found: Bindings) -> Bindings | None:
    """The match in which `node` stands where `lead` does in `found`, if only its inputs differ."""
    for other in search.at(lead, node, Bindings(names=dict(found.names))):
        if other.ops.keys() == found.ops.keys() and not other.chains:
            pairs = ((other.ops[index], found.ops[index]) for index in found.ops)
            same = all(one.params == two.params and one.attrs == two.attrs for one, two in pairs)
            if same and all(_same(other.values.get(n), v) for n, v in found.values.items()):
                return other
    return None


def _same(one: Any, two: Any) -> bool:
    """Values may differ, constants may not: new weights are computed from them."""
    if isinstance(one, fx.Node) and isinstance(two, fx.Node):
        kept = "get_attr" in (one.op, two.op)
        return not kept or (one.op == two.op and one.target == two.target)
    return type(one) is type(two) and bool(one == two)


def is_equal(one: nn.Module | None, two: nn.Module | None) -> bool:
    """Whether two layers are the same in settings and, bit for bit, in weights."""
    if one is None or two is None or type(one) is not type(two):
        return False
    ours, theirs = one.state_dict(), two.state_dict()
    alike = repr(one) == repr(two) and ours.keys() == theirs.keys()
    return alike and all(torch.equal(ours[name], theirs[name]) for name in ours)
