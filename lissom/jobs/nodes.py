"""The nodes of a captured model as rows: how rules see it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import fx

from ..grammar.diagnostics import Label, fail
from ..model_file import load_model
from ..output import Output
from ..rewrite.graph.building import assertions
from ..rewrite.graph.places import node_at
from ..rewrite.ops.attributes import numbers
from ..rewrite.ops.call import OpCall
from ..rewrite.rules.state import State
from .explaining import program_at, state_of


@dataclass(frozen=True, slots=True)
class OpRow:
    """One call. op: its canonical name, or what it calls where it is none (`why` says the reason).
    source: the line of the model's own code.
    """

    place: str
    op: str
    settings: str
    gives: str
    source: str
    why: str = ""

    def as_json(self) -> dict[str, str]:
        return asdict(self)


def op_rows(out: Output, model: str, at: str | None, program: str | None) -> list[OpRow]:
    """A row for every call of the model at the path or glob `at`. Raises U008 where none is."""
    state = state_of(load_model(model), program_at(program), out)
    graph, checks = state.module.graph, assertions(state.module.graph)
    calls = [n for n in graph.nodes if n.op.startswith("call_") and n not in checks]
    nodes = [node for node in calls if _makes_tensors(node)]
    found = [node for node in nodes if at is None or node_at(node, at)]
    if at is not None and not found:
        hint = "`lissom show MODEL` lists all places"
        raise fail("U008", f"nothing of the model lies at `{at}`", Label(None, where=at), help=hint)
    return [_row(state, node) for node in found]


def shown_rows(rows: Sequence[OpRow]) -> Iterator[tuple[str, ...]]:
    return ((row.place, row.op, row.settings, row.gives) for row in rows)


def _makes_tensors(node: fx.Node) -> bool:
    """Sizes and what is computed from them are no ops."""
    return not isinstance(node.meta.get("val"), (int, float, bool))


def _row(state: State, node: fx.Node) -> OpRow:
    call = state.view.call(node)
    place = str(node.meta.get("site") or node.name)
    source = str(node.meta.get("source") or "")
    if call is None:
        name = str(getattr(node.target, "__name__", node.target))
        return OpRow(place, f"? {name}", "", _value(node), source, state.view.why_opaque(node))
    return OpRow(place, call.op.name, _settings(call), _value(node), source)


def _settings(call: OpCall) -> str:
    """Those that differ from the declared default."""
    usual = call.op.defaults
    given = {name: numbers(value) for name, value in call.attrs.items()}
    return ", ".join(f"{n} = {_plain(v)}" for n, v in given.items() if usual.get(n) != v)


def _plain(value: Any) -> str:
    if isinstance(value, tuple) and len(set(value)) == 1:
        return str(value[0])
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _value(node: fx.Node) -> str:
    value = node.meta.get("val")
    return ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
