"""Module paths for rules that are restricted to places of a model (`in c: "encoder.*"`)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ....grammar.tree import tree as t
from ...graph.places import lies_at
from ...rules.pattern import Pattern, PatternOp
from ..choices.source import ChoiceSource, Unsuitable

_CLASS = re.compile(r"\[(!?)(.)[^\]]*\]")


def globs_at(patterns: Iterable[Pattern], op: PatternOp) -> list[t.SitePattern]:
    """The clauses that say where this op may stand."""
    names = {*op.targets} if op.source.handle is None else {*op.targets, op.source.handle.text}
    return [c for pattern in patterns for c in pattern.sites if c.name.text in names]


def inside(globs: Iterable[str], name: str) -> str:
    """The path of a part called `name` that lies at every glob. Raises `Unsuitable`."""
    wanted = list(globs)
    candidates = [path for glob in wanted for path in (_filled(glob, name), _below(glob, name))]
    return _first(path for path in candidates if path.endswith(name) and _in_all(path, wanted))


def outside(source: ChoiceSource, glob: str, others: Iterable[str], name: str) -> str:
    """A path that lies at all the `others` but not at `glob`; as near to it as may be."""
    filled, kept = _filled(glob, "0"), list(others)
    above = filled.rpartition(".")[0]
    near = (name, f"{filled}x.{name}", f"x{filled}.{name}", f"{above}.{name}" if above else name)
    fit = [path for path in near if not lies_at(path, glob) and _in_all(path, kept)]
    if not fit:
        raise Unsuitable(f"every place lies at {glob}")
    return source.choice(fit)


def _in_all(path: str, globs: Iterable[str]) -> bool:
    return all(lies_at(path, glob) for glob in globs)


def _filled(glob: str, name: str) -> str:
    """The glob with something in the place of every wildcard: `name` in that of the last `*`."""
    plain = _CLASS.sub(lambda found: "_" if found[1] else found[2], glob).replace("?", "0")
    before, star, after = plain.rpartition("*")
    return before.replace("*", "0") + (name if star else "") + after


def _below(glob: str, name: str) -> str:
    return f"{_filled(glob, '0')}.{name}"


def _first(paths: Iterable[str]) -> str:
    for path in paths:
        return path
    raise Unsuitable("no place lies at all of the globs")
