"""Random models with random wiring, for rules over dimensions: which features stand or fall
together is decided by the wiring, so nothing of it comes from the text of a rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...ops.spec import TensorSpec
from ...ops.vocabulary import Vocabulary
from ...torch_internals import tree_map
from ..choices.source import ChoiceSource, Unsuitable
from . import moves as moves
from .drawing import NetworkBuilder
from .steps import EXTENTS, OFTEN, SPACE, STEPS

assert moves  # its steps are among STEPS


@dataclass(frozen=True)
class Graph:
    """A drawn model in eval mode, float64 at first, and inputs for it. seed: what other inputs are
    drawn from.
    """

    module: fx.GraphModule
    args: tuple[Tensor, ...]
    seed: int = 0


def drawn(
    source: ChoiceSource, vocabulary: Vocabulary | None = None, classifies: bool = False
) -> Graph:
    """A model of some ten steps. classifies: it gives three numbers for each sample."""
    m = NetworkBuilder(source, vocabulary or Vocabulary.library())
    _inputs(m)
    given = list(m.offers)
    for _ in range(m.choice((1, 2))):
        _grow(m, ("conv", "linear") if m.shape(m.offers[0])[2:] else ("linear",))
    if len(m.offers) > len(given) and m.chance(85):
        m.offers = m.offers[len(given) :]
    for _ in range(source.integer(0, 9)):
        _grow(m, OFTEN)
    if classifies:
        ends = [_classes(m, m.offers[-1])]
    else:
        ends = [_head(m, node) for node in m.offers if not node.users][:6]
    args = m.finish(ends[0] if len(ends) == 1 else tuple(ends))
    if classifies:  # what leads nowhere would run, and stop a model that part of a batch could take
        m.graph.eliminate_dead_code()
    return Graph(fx.GraphModule(m.module, m.graph), args, m.seed)


def in_single(graph: Graph) -> Graph:
    """The model in float32, with inputs and recorded values to match."""
    for node in graph.module.graph.nodes:
        node.meta["val"] = tree_map(_single, node.meta.get("val"))
    return replace(graph, module=graph.module.float(), args=tuple(tree_map(_single, graph.args)))


def _single(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.float()
    if isinstance(value, TensorSpec) and value.dtype is torch.float64:
        return TensorSpec(value.shape, torch.float32)
    return value


def _inputs(m: NetworkBuilder) -> None:
    n, kind = m.choice((2, 3, 1)), m.choice((0, 2, 0, 1, 3, 4))
    space = [m.choice(SPACE) for _ in range(2)]
    width = m.choice(EXTENTS[1:])
    if kind == 4:  # indices
        ids = torch.randint(0, 7, (n, space[0]), generator=m.generator)
        m.step = "embedding"
        m.offers.append(m.call(nn.Embedding(7, m.choice(EXTENTS)), m.input(ids)))
        return
    shape = ((n, width, *space), (n, width, space[0]), (n, space[0], width), (n, width))[kind]
    for _ in range(m.choice((1, 1, 2))):
        m.offers.append(m.input(m.random(*shape)))


def _grow(m: NetworkBuilder, names: Sequence[str]) -> None:
    """One more step, on a recent value mostly; a few tries are made."""
    for _ in range(12):
        m.step = m.choice(names)
        x = m.offers[-1 - m.source.integer(0, min(len(m.offers), m.choice((1, 3, 12))) - 1)]
        start = m.mark()
        try:
            found = STEPS[m.step](m, x)
        except Unsuitable:
            m.back(start)
            continue
        made = [found] if isinstance(found, fx.Node) else list(found)
        m.offers += [node for node in made if m.real[node].is_floating_point()]
        return


def _classes(m: NetworkBuilder, x: fx.Node) -> fx.Node:
    m.step = "head"
    m.need(len(m.shape(x)) > 1)
    x = m.call("flatten", x, 1)
    return m.call(nn.Linear(m.shape(x)[1], 3), x)


def _head(m: NetworkBuilder, x: fx.Node) -> fx.Node:
    """What reads the last values: outputs themselves must stay."""
    shape = m.shape(x)
    m.step = "head"
    if len(shape) < 2 or m.chance(10):
        return x
    if m.chance(15):
        x = m.call("flatten", x, 1)
        return m.call(nn.Linear(m.shape(x)[1], 3), x)
    axis = m.features(x)
    if axis == 1 and len(shape) in (3, 4) and m.chance(60):
        layer = nn.Conv2d if len(shape) == 4 else nn.Conv1d
        return m.call(layer(shape[1], 3, 1), x)
    if axis not in (None, len(shape) - 1):
        x = m.call("transpose", x, axis, -1)
    return m.call(nn.Linear(m.shape(x)[-1], 3), x)
