"""The working state of one compilation: graph, index, what the user gave, and the journal."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from ..channels.flow import Flow
from ..channels.other_sizes import analyse_at
from ..graph.index import GraphView
from ..graph.memory import mutations
from ..graph.snapshot import finish
from ..journal import Costs, Journal
from ..measure.compare import outputs
from ..measure.given import Given
from ..measure.latency import Clock
from ..measure.samples import Samples
from ..measure.twins import KernelFault
from ..ops.vocabulary import Vocabulary
from .changes import Changes
from .pattern import Pattern
from .scope import Scope

Version = tuple[int, int]


@dataclass
class State:
    """Everything that a rule application reads or changes. `module` is the compiler's own copy of
    the model. `fuel`: how many more rewrites there may be; None where nobody counts. `otherwise`:
    why the model would give another graph for other inputs, "" where nothing says so. `attached`:
    the names under which rules of the program attach observers to ops. `shared`: for
    nodes of sites that repeat one which was rewritten, where the new layers are. `barred`: rule and
    site of what must be left because of kernels, with those. `changes`: when the graph was changed,
    and from where on. `clock`: what measurements read. `decided`: the rules and sites that a
    measurement chose before, in their order; None where it is made now. `costs`: what it costs, and
    of which version of it that is said.
    """

    module: fx.GraphModule
    vocabulary: Vocabulary
    functions: Mapping[str, Callable[..., Any]]
    questions: Mapping[str, Callable[..., Any]]
    samples: Samples
    journal: Journal
    verify: bool = True
    seed: int = 0
    fuel: int | None = None
    otherwise: Callable[[tuple[Any, ...]], str] = lambda args: ""
    attached: frozenset[str] = frozenset()
    clock: Clock = time.perf_counter
    decided: Mapping[tuple[str, str], int] | None = None
    counters: dict[str, int] = field(default_factory=dict)
    known_specs: dict[Any, Any] = field(default_factory=dict)
    known_probes: dict[Any, Any] = field(default_factory=dict)
    changes: Changes = field(default_factory=Changes)
    flow: Flow | None = None
    shared: dict[fx.Node, tuple[str, ...]] = field(default_factory=dict)
    barred: dict[tuple[str, str], tuple[KernelFault, ...]] = field(default_factory=dict)
    costs: tuple[Version, Costs] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.reset(self.module)

    def reset(self, module: fx.GraphModule) -> None:
        """Goes on with another graph, after a capture or a rollback."""
        self.module, self.flow, self.shared = module, None, {}
        self.changes.everywhere()
        self.view = GraphView(module, self.vocabulary)
        self.mutations = mutations(module)

    @property
    def version(self) -> Version:
        """Another one whenever the graph was changed."""
        return self.changes.now, self.samples.recordings

    def features(self) -> Flow:
        """Which features the axes of the present graph carry."""
        if self.flow is None:
            self.flow = analyse_at(self.view, self.samples.others)
        return self.flow

    def given(self) -> Given:
        """What the present graph gives on calibration data; it runs once until it is changed."""
        return self.samples.given(self.module, self._outputs)

    def _outputs(self, model: nn.Module, args: tuple[Any, ...]) -> list[Any]:
        if model is self.module:
            finish(self.module)
        return outputs(model, args, "the data")

    def scope(self, names: Mapping[str, Any]) -> Scope:
        """What names mean at one site."""
        return Scope(names, self.functions, self.questions, self)

    def readers(self, path: str) -> list[fx.Node]:
        """The nodes that compute with the storage of a parameter, each once; `get_attr` only hands
        it on.
        """
        holders = dict.fromkeys(node for node, _ in self.view.owners(path))
        users = ([*node.users] if node.op == "get_attr" else [node] for node in holders)
        return list(dict.fromkeys(node for group in users for node in group))

    def counts(self, pattern: Pattern) -> dict[str, int]:
        """How often each op that the pattern names occurs in the graph."""
        names = {name for op in pattern.ops for name in op.ops or ()}
        return {name: len(self.view.calls_of(name)) for name in names}

    def count(self, key: str) -> int:
        """0, 1, 2 ... for each key: makes fresh names."""
        number = self.counters.get(key, 0)
        self.counters[key] = number + 1
        return number


def sample_count(state: State) -> int:
    """How many calibration samples sites are measured on."""
    return sum(
        int(a.shape[0])
        for args in state.samples.calibration(state.module)
        for a in args[:1]
        if isinstance(a, torch.Tensor) and a.dim()
    )
