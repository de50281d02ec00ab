"""Models of the host program beside the one that is compiled: they teach, or take its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from torch import fx, nn

from ...grammar.diagnostics import Label, LissomError, fail
from ...grammar.tree import tree as t
from ..capture.capture import capture
from ..graph.own import declared
from ..graph.runs import one_line
from ..measure.compare import Metrics, runs_at
from ..rules.state import State

Models = Mapping[str, nn.Module | Callable[[], nn.Module]]
Build = Callable[[], fx.GraphModule]


@dataclass
class OtherModels:
    """Each is built when it is asked for, once, and becomes a graph; it is not changed itself."""

    state: State
    given: Models
    graphs: dict[str, fx.GraphModule] = field(default_factory=dict)

    def builds(self) -> dict[str, Build]:
        return {name: partial(self.graph, name) for name in self.given}

    def graph(self, name: str) -> fx.GraphModule:
        """Raises what its builder or the capture raises, and says of which model that is."""
        if name not in self.graphs:
            try:
                self.graphs[name] = self._captured(_built(name, self.given[name]))
            except LissomError as error:
                note = f"this is the model `{name}`, which the program names"
                found = (replace(d, notes=(*d.notes, note)) for d in error.diagnostics)
                raise LissomError(*found) from error
        return self.graphs[name]

    def _captured(self, model: nn.Module) -> fx.GraphModule:
        with declared(self.state.vocabulary):
            return capture(model, self.state.samples.inputs, prove=self.state.verify).module


def _built(name: str, given: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """Raises M021 where that gives no model."""
    model, why = given, "it is something else"
    if not isinstance(given, nn.Module):
        try:
            model = given()
        except LissomError:
            raise
        except Exception as error:
            why = f"{type(error).__name__}: {one_line(error)}"
    if not isinstance(model, nn.Module):
        hint = 'models = {"small": build_small}, functions that return `model.eval()`'
        raise fail("M021", f"`{name}` of `models` gives no model", note=why, help=hint)
    return model


def student(
    expr: t.Expr, models: Mapping[str, Build], metrics: Metrics, state: State
) -> fx.GraphModule:
    """The model that takes the place of the working one. Raises F105 where none can."""
    known = [name for name in models if name != "original"]
    name = expr.text if isinstance(expr, t.Name) else ""
    if name not in known:
        label = Label(expr.span, f"known: {', '.join(known) or 'none'}")
        hint = 'give it in the model file: models = {"NAME": build}'
        raise fail("F105", f"there is no model `{expr.span.text}`", label, help=hint)
    graph = models[name]()
    found = runs_at(metrics.original, graph, state.samples.examples)
    if not found.holds:
        message = f"`{name}` gives other outputs than the model whose place it takes"
        raise fail("F105", message, Label(expr.span), note=found.detail)
    return graph
