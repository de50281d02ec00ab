"""Drives the engine by hand: rule text and a model in, the rewritten graph and its journal out."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

import lissom.passes
from lissom.grammar.text.parse import parse
from lissom.grammar.tree import tree as t
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.apply.engine import candidates, find
from lissom.rewrite.apply.queries import QUESTIONS
from lissom.rewrite.capture.capture import capture
from lissom.rewrite.journal import Applied, Journal, Refused
from lissom.rewrite.match.site import Site
from lissom.rewrite.measure.samples import Samples
from lissom.rewrite.ops.vocabulary import Vocabulary
from lissom.rewrite.pipeline.strategy import Runner
from lissom.rewrite.rules.binding import NoMatch
from lissom.rewrite.rules.rule import CompiledRule, compile_rule
from lissom.rewrite.rules.state import State

LIBRARY = Path(lissom.passes.__path__[0])


@cache
def library(*names: str) -> str:
    """The text of library files: `library("fold", "merge")`."""
    return "\n".join((LIBRARY / f"{name}.lissom").read_text() for name in names)


def rules_of(text: str, **args: Any) -> list[CompiledRule]:
    """Every rule of a text, with the arguments it declares among `args`."""
    sources = _parsed(text).all(t.Rule)
    return [_with_arguments(source, args, order) for order, source in enumerate(sources)]


@cache
def _parsed(text: str) -> t.File:
    return parse(text, "test.lissom")


def _with_arguments(source: t.Rule, args: Mapping[str, Any], order: int) -> CompiledRule:
    declared = {param.name.text for param in source.params}
    mine = {key: value for key, value in args.items() if key in declared}
    return compile_rule(source, mine, order=order)


def the_rule(text: str, name: str = "", **args: Any) -> CompiledRule:
    """The only rule of a text, or the one called `name`."""
    return next(rule for rule in rules_of(text, **args) if name in ("", rule.name))


def state_of(
    module: fx.GraphModule,
    inputs: tuple[Any, ...],
    functions: Mapping[str, Callable[..., Any]] | None = None,
    vocabulary: Vocabulary | None = None,
) -> State:
    known = {**FUNCTIONS, **(functions or {})}
    vocabulary = vocabulary or Vocabulary.library()
    return State(module, vocabulary, known, QUESTIONS, Samples(inputs), Journal())


@dataclass
class Driven:
    """A model after rules ran on it."""

    model: nn.Module
    inputs: tuple[Any, ...]
    state: State
    applied: int

    @property
    def module(self) -> fx.GraphModule:
        return self.state.module

    @property
    def journal(self) -> Journal:
        return self.state.journal

    def sites(self, rule: str = "") -> list[str]:
        events = self.journal.of(Applied)
        return [e.site for e in events if rule in ("", e.rule.partition("(")[0])]

    def reasons(self, rule: str = "") -> list[str]:
        events = self.journal.of(Refused)
        return [e.reason for e in events if rule in ("", e.rule.partition("(")[0])]

    def refusals(self) -> list[Refused]:
        return self.journal.of(Refused)

    def ops(self) -> list[str]:
        """The canonical names of all ops, in graph order; `?` where a node is none."""
        nodes = (n for n in self.module.graph.nodes if n.op.startswith("call_"))
        return [call.op.name if (call := self.state.view.call(n)) else "?" for n in nodes]

    def difference(self, *inputs: Any) -> float:
        """The largest difference to the untouched model, relative to the largest output."""
        given = inputs or self.inputs
        self.module.recompile()
        with torch.no_grad():
            before = leaves(self.model(*copy.deepcopy(given)))
            after = leaves(self.module(*copy.deepcopy(given)))
        assert len(before) == len(after)
        return max(apart(a, b) for a, b in zip(before, after, strict=True))

    def check(self) -> Driven:
        """The graph is sound, and computes what the model computes."""
        self.module.graph.lint()
        for node in self.module.graph.nodes:
            assert node.op == "output" or "val" in node.meta, node.name
        assert self.difference() < 1e-4
        return self


def leaves(value: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def apart(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    a, b = a.double(), b.double()
    assert torch.equal(a.isnan(), b.isnan())
    same = (a == b) | a.isnan()
    if not a.numel():
        return 0.0
    scale = a.nan_to_num(0.0, 0.0, 0.0).abs().max().clamp_min(1e-30)
    return float(torch.where(same, 0.0, (a - b).abs() / scale).max())


def run(
    model: nn.Module,
    inputs: Any,
    rules: str | Sequence[CompiledRule],
    how: str = "fixpoint",
    functions: Mapping[str, Callable[..., Any]] | None = None,
    **args: Any,
) -> Driven:
    """Captures a model and runs rules on it: `fixpoint` all of them, or each `once`."""
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    state = state_of(capture(model, inputs).module, inputs, functions)
    runner = Runner(state, "test")
    compiled = rules_of(rules, **args) if isinstance(rules, str) else list(rules)
    applied = runner.fixpoint(compiled) if how == "fixpoint" else runner.once(compiled)
    return Driven(model, inputs, state, applied)


def found(model: nn.Module, inputs: Any, text: str, **args: Any) -> list[Site | NoMatch]:
    """What one rule finds at each of its candidates; nothing is applied."""
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    state = state_of(capture(model, inputs).module, inputs)
    rule = the_rule(text, **args)
    return [find(state, rule, node) for node in candidates(state, rule)]


def sites(model: nn.Module, inputs: Any, text: str, **args: Any) -> list[Site]:
    return [site for site in found(model, inputs, text, **args) if isinstance(site, Site)]


def misses(model: nn.Module, inputs: Any, text: str, **args: Any) -> list[NoMatch]:
    return [miss for miss in found(model, inputs, text, **args) if isinstance(miss, NoMatch)]


class Fn(nn.Module):
    """A model whose forward is a function of its layers: `Fn(lambda m, x: m.a(x), a=nn.ReLU())`."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.eval()

    def forward(self, x: Any) -> Any:
        return self.function(self, x)


class Fn2(Fn):
    """As `Fn`, with two inputs."""

    def forward(self, x: Any, z: Any) -> Any:
        return self.function(self, x, z)


def random_norms(model: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every batch norm random statistics and gains of both signs; the model, in eval."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            _randomise(module, generator)
    return model.eval()


def _randomise(norm: Any, generator: torch.Generator) -> None:
    with torch.no_grad():
        if norm.running_mean is not None:
            norm.running_mean.normal_(generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)
        if norm.weight is not None:
            norm.weight.uniform_(-1.5, 1.5, generator=generator)
            norm.bias.normal_(generator=generator)


def digests(module: nn.Module) -> dict[str, str]:
    """SHA-256 of the bytes of every parameter and buffer."""
    held = module.state_dict(keep_vars=True)
    return {name: _digest(tensor.detach()) for name, tensor in held.items()}


def _digest(tensor: Tensor) -> str:
    raw = tensor.contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else tensor
    return hashlib.sha256(bytes(raw.tolist())).hexdigest()
