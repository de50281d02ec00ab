"""What a prepared rewrite read of the graph: whether it still stands where it was prepared."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from ..match.site import Site
from ..ops.call import tensor_at
from ..rules.state import State
from ..torch_internals import is_erased, version_of

Weight = tuple[int, int, tuple[fx.Node, ...]]
"""Identity and version of a tensor, and who reads it."""
Asked = tuple[int, int]
"""How many changes of the graph there were, and how often recordings were dropped; 0 where that is
no matter.
"""

WHOLE = frozenset({"model", "observed"})
"""Questions whose answers may change with any change of the graph."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Who reads each matched node; the weights of the matched ops by path; how many nodes of the
    graph write to memory; whether other sites run the same layers; what was asked beyond the site.
    """

    readers: tuple[tuple[fx.Node, ...], ...]
    weights: dict[str, Weight]
    writes: int
    repeats: bool
    asked: Asked


def surroundings(state: State, site: Site) -> Surroundings:
    """What a site stands in now."""
    readers = tuple(tuple(node.users) for node in site.nodes)
    paths = (path for call in site.calls for path in call.params.values() if path is not None)
    weights = {path: _weight(state, path) for path in paths}
    writes, repeats = len(state.mutations), bool(site.repeats)
    return Surroundings(readers, weights, writes, repeats, asked(state, site))


def asked(state: State, site: Site) -> Asked:
    """When the rule was answered at a site, as far as answers change. Second moments are kept until
    all recordings are dropped; a pattern of `unless` may lie anywhere.
    """
    anywhere = site.rule.unless or not site.scope.asked.isdisjoint(WHOLE)
    moments = "moments" in site.scope.asked
    return state.changes.now if anywhere else 0, state.samples.recordings if moments else 0


def _weight(state: State, path: str) -> Weight:
    tensor = tensor_at(state.module, path)
    return id(tensor), version_of(tensor), tuple(state.readers(path))


def unchanged(state: State, site: Site, read: Surroundings) -> bool:
    """Whether the site is as it was: the same ops with the same inputs, weights and readers, and
    what was asked beyond it has the same answers.
    """
    graph = state.module.graph
    nodes = all(node.graph is graph and not is_erased(node) for node in site.nodes)
    # The index makes a new call of a node whose inputs are others now.
    same = nodes and all(state.view.call(call.node) is call for call in site.calls)
    return same and surroundings(state, site) == read
