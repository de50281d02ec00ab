"""How dimensions look: rows, reasons, what is coupled, and a flowchart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from ..output import Output
from ..rewrite.channels.listing import ROLES, Carrier, Listed, Listing, Reason
from .rule_picture import mermaid_label

FEW = 2
"""Names in one cell that are shown at most; -v shows all."""

SAID = {"writes": "made by", "rides": "passes", "reads": "read by"}
"""What the roles of parameters are called."""


def total(out: Output, found: Listing) -> None:
    """How much of the model can be cut."""
    share = 100 * found.cuttable / found.weights if found.weights else 0.0
    out.say(
        f"{found.free} of {found.total} dimensions can be cut; {found.cuttable:,} of"
        f" {found.weights:,} parameters of convolutions and linear layers ({share:.1f} %) carry one"
        " of them"
    )


def rows(out: Output, found: Listing) -> None:
    """A row for each dimension, then why some must stay."""
    titles = ("dimension", "size", "parameters", "each", *(SAID[role] for role in ROLES), "cut")
    lines = [_row(dim, out.verbose) for dim in found.dims]
    if lines:
        out.table([titles, *lines], "<>>><<<<", header=True)


def _row(dim: Listed, verbose: int) -> tuple[str, ...]:
    places = (_few(_within(dim, role), verbose) for role in ROLES)
    why = "; ".join(map(_reason, dim.reasons)) or "yes"
    return (dim.name, str(dim.size), f"{dim.parameters:,}", _each(dim), *places, why)


def _each(dim: Listed) -> str:
    """Parameters that go with one feature."""
    return f"{dim.least:,}" if dim.least == dim.most else f"{dim.least:,}-{dim.most:,}"


def _few(names: list[str], verbose: int) -> str:
    most = len(names) if verbose else FEW
    more = f" +{len(names) - most}" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _modules(axes: Iterable[Carrier]) -> list[str]:
    """The modules that hold the parameters, each once; those of tied ones too."""
    paths = (path for axis in axes for path in (axis.path, *axis.tied))
    return list(dict.fromkeys(path.rpartition(".")[0] or path for path in paths))


def _within(dim: Listed, role: str) -> list[str]:
    """The modules with this role. A layer that makes a dimension is not said to pass it."""
    made = _modules(dim.of("writes")) if role == "rides" else []
    return [name for name in _modules(dim.of(role)) if name not in made]


def _reason(reason: Reason) -> str:
    where = f" ({reason.source})" if reason.source else ""
    return f"{reason.node}: {reason.does}{where}"


# -- reasons ---------------------------------------------------------------------------------------


def reasons(out: Output, found: Listing) -> None:
    """What cannot be cut, by reason, the most frequent first."""
    groups = by_reason(found)
    for does, held in sorted(groups.items(), key=lambda item: -len(item[1])):
        out.say(f"{len(held)} x {does}")
        out.table([("", dim.name, str(dim.size), _at(reason)) for dim, reason in held], "<<><")


def by_reason(found: Listing) -> dict[str, list[tuple[Listed, Reason]]]:
    """The dimensions that each reason keeps, in the order of the model."""
    groups: dict[str, list[tuple[Listed, Reason]]] = {}
    for dim in found.dims:
        for reason in dim.reasons:
            groups.setdefault(reason.does, []).append((dim, reason))
    return groups


def _at(reason: Reason) -> str:
    return f"at {reason.node}" + (f" ({reason.source})" if reason.source else "")


# -- coupling --------------------------------------------------------------------------------------


def trees(out: Output, found: Listing) -> None:
    """For each dimension the axes that carry it: makers, those it passes, readers."""
    for dim in found.dims:
        out.say(f"\n{dim.name}: {dim.size} features, {_each(dim)} parameters each")
        out.table([line for role in ROLES for line in _branch(SAID[role], dim.of(role))])
        for reason in dim.reasons:
            out.say(f"  stays: {_reason(reason)}")


def _branch(title: str, axes: list[Carrier]) -> Iterator[tuple[str, ...]]:
    for at, axis in enumerate(axes):
        tied = f", tied with {', '.join(axis.tied)}" if axis.tied else ""
        factor = f", factor {axis.factor}" if axis.factor else ""
        yield "", "" if at else title, axis.path, f"axis {axis.axis}{factor}{tied}"


def flowchart(found: Listing) -> str:
    """Mermaid: dimensions are round, modules square; what cannot be cut is dashed."""
    names = dict.fromkeys(name for dim in found.dims for name in _modules(dim.axes))
    modules = {name: f"m{at}" for at, name in enumerate(names)}
    lines = [f"{node}[{mermaid_label(name)}]" for name, node in modules.items()]
    for at, dim in enumerate(found.dims):
        lines += _drawn(f"d{at}", dim, modules)
    stay = [f"d{at}" for at, dim in enumerate(found.dims) if dim.reasons]
    style = ["classDef stays stroke-dasharray: 4 4", f"class {','.join(stay)} stays"]
    return "\n  ".join(["flowchart LR", *lines, *(style if stay else [])])


def _drawn(node: str, dim: Listed, modules: dict[str, str]) -> Iterator[str]:
    why = "".join(f"\n{reason.node}: {reason.does}" for reason in dim.reasons)
    yield f"{node}([{mermaid_label(f'{dim.name} {dim.size}{why}')}])"
    for name in _within(dim, "writes"):
        yield f"{modules[name]} --> {node}"
    for name in _within(dim, "rides"):
        yield f"{node} -.- {modules[name]}"
    for name in _within(dim, "reads"):
        yield f"{node} --> {modules[name]}"


def fields(found: Listing) -> dict[str, Any]:
    """For JSON."""
    table = asdict(found)
    parts = {name: table.pop(name) for name in ("dims", "opaque")}
    return {**parts, "totals": table}
