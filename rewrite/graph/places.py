"""Where in a model something lies: one answer for `at "encoder.*"` in a rule, for `--at` on the
command line and for every list of places.

A node lies at the module that called it, and under its own name where no module did. A glob names
what it matches and everything below.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

from torch import fx

from ...grammar.diagnostics import Label, did_you_mean, fail


def lies_at(path: str, glob: str) -> bool:
    """Whether the path, or that of a module around it, is what the glob names."""
    return fnmatchcase(path, glob) or fnmatchcase(path, f"{glob}.*")


def names_of(node: fx.Node) -> Iterator[str]:
    """The names by which people find a node: its module path, and its own."""
    site = node.meta.get("site")
    if site:
        yield str(site)
    if node.name != site:
        yield node.name


def name_of(node: fx.Node) -> str:
    """The first of them."""
    return next(names_of(node))


def node_at(node: fx.Node, glob: str) -> bool:
    return any(lies_at(name, glob) for name in names_of(node))


def last_of_places(nodes: Sequence[fx.Node], globs: Sequence[str]) -> list[fx.Node]:
    """Of nodes in order, the last one of each module that a glob names: what the module gives."""
    last = {_place(node, glob): node for glob in globs for node in nodes if node_at(node, glob)}
    return [node for node in nodes if node in last.values()]


def _place(node: fx.Node, glob: str) -> str:
    """The outermost module around a node that the glob names, or the node itself."""
    paths = (path for name in names_of(node) for path in _around(name))
    return next(path for path in paths if fnmatchcase(path, glob))


def _around(path: str) -> Iterator[str]:
    parts = path.split(".")
    return (".".join(parts[:at]) for at in range(1, len(parts) + 1))


def nodes_at(nodes: Iterable[fx.Node], at: str) -> set[fx.Node]:
    """Those nodes of a model that lie at `at`. Raises U008 if there is none."""
    own = [node for node in nodes if node.op not in ("placeholder", "output")]
    found = {node for node in own if node_at(node, at)}
    if not found:
        known = dict.fromkeys(name for node in own for name in names_of(node))
        hint = next(iter(did_you_mean(at, known)), f"there are {', '.join(list(known)[:12])} ...")
        raise fail("U008", f"the model has nothing at `{at}`", Label(None, where=at), help=hint)
    return found
