"""Near-misses: models that violate one condition of a rule and no other, derived from its text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from ...grammar import tree as t
from ..binding import literal
from ..pattern import PatternOp
from ..rule import Rule
from ..spec import spec_of
from .grow import Grown, others
from .soil import Planted
from .source import Replayed, Rolled, Unsuitable
from .trial import BAD, FIRED, NOISY, Outcome, Subject, model, trial

Edit = Callable[[Grown], bool]

ATTEMPTS = 80
"""Models drawn for one condition before it counts as not reached."""

ENOUGH = 5
"""Near-misses of one kind that are looked at."""


@dataclass(frozen=True, slots=True)
class Near:
    """One way to violate one condition.

    conditions: what the miss may name, the text of the clause or the engine's code; empty where the
    rule may fire all the same, if the model stays equal. spoil: for the generator; edit: changes a
    model in which the rule would fire.
    """

    name: str
    conditions: frozenset[str]
    spoil: t.Node | None = None
    edit: Edit | None = None


@dataclass(slots=True)
class NearResult:
    """How often a near-miss was built, and what was wrong."""

    near: Near
    silent: int = 0
    equal: int = 0
    conditions: Counter[str] = field(default_factory=Counter)
    wrong: list[Outcome] = field(default_factory=list)

    @property
    def reached(self) -> int:
        return self.silent + self.equal + len(self.wrong)


def near_misses(rule: Rule, subject: Subject) -> list[Near]:
    """Every near-miss that the text of a rule asks for."""
    found: list[Near] = []
    for op in rule.pattern.ops:
        if op.repeat:  # where another op stands it counts as absent, and the rule may fire
            continue
        if others(subject.vocabulary, op):
            name = f"another op than {' or '.join(sorted(op.ops or ()))}"
            found.append(Near(name, _said(op.source.ops), op.source))
        found += [Near(f"not {_text(k)}", _said(k), k) for k in op.source.attrs if _literal(k)]
        found += [Near(f"not {_text(o)}", _said(o), o) for o in op.operands if _number(o)]
        found += _around(rule, subject, op)
    found += [Near(f"not {_text(c)}", _said(c), c) for c in rule.pattern.shapes]
    return found


def _text(node: t.Node) -> str:
    return " ".join(node.span.text.split())


def _said(node: t.Node) -> frozenset[str]:
    return frozenset({_text(node)})


def _literal(keyword: t.Keyword) -> bool:
    return isinstance(keyword.value, t.Constant) or literal(keyword.value) is not None


def _number(operand: t.Expr | t.Rest) -> bool:
    return isinstance(operand, t.Expr) and isinstance(literal(operand), (int, float))


def _has_weights(subject: Subject, op: PatternOp) -> bool:
    return any(subject.vocabulary[name].params for name in op.ops or ())


def _around(rule: Rule, subject: Subject, op: PatternOp) -> Iterator[Near]:
    """What may stand around a matched op and must not be lost."""
    inner = [n for n in op.targets if n not in rule.outputs and n != "_"]
    if not op.source.shared and not op.repeat:
        for name in inner:
            r8 = frozenset({"R008"})
            yield Near(f"`{name}` has another reader", r8, edit=_on_value(name, _read))
            yield Near(f"`{name}` is returned", r8, edit=_on_value(name, _return))
    if len(rule.pattern.ops) > 1 and not op.repeat:
        yield Near(
            f"what `{op.targets[0]}` reads changes in place",
            frozenset(),
            edit=_on_op(op.index, _overwrite),
        )
    if op.repeat or not _has_weights(subject, op):
        return
    yield Near(
        f"the layer of `{op.targets[0]}` has a hook", frozenset(), edit=_on_op(op.index, _hook)
    )
    yield Near(
        f"the layer of `{op.targets[0]}` is called twice",
        frozenset(),
        edit=_on_op(op.index, _call_again),
    )
    yield Near(f"a weight of `{op.targets[0]}` is tied", frozenset(), edit=_on_op(op.index, _tie))


# -- edits -----------------------------------------------------------------------------------------


def _each(grown: Grown, change: Callable[[Planted], bool]) -> bool:
    """Changes every planted instance; false if one cannot be changed so."""
    done = [change(planted) for planted in grown.planted]
    grown.module.graph.lint()
    grown.module.recompile()
    return all(done)


def _on_value(name: str, change: Callable[[Grown, fx.Node], bool]) -> Edit:
    """An edit at what a name of the pattern stands for."""

    def at(grown: Grown, planted: Planted) -> bool:
        value = planted.values.get(name)
        return isinstance(value, fx.Node) and change(grown, value)

    return lambda grown: _each(grown, lambda planted: at(grown, planted))


def _on_op(index: int, change: Callable[[Grown, fx.Node], bool]) -> Edit:
    """An edit at the node of a pattern op."""

    def at(grown: Grown, planted: Planted) -> bool:
        node = planted.nodes.get(index)
        return node is not None and change(grown, node)

    return lambda grown: _each(grown, lambda planted: at(grown, planted))


def _read(grown: Grown, value: fx.Node) -> bool:
    """Something else reads it."""
    return _return(grown, _relu(grown, value))


def _hook(grown: Grown, node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    layer = grown.module.get_submodule(str(node.target))
    layer.register_forward_hook(lambda module, args, result: result * 1.5)
    return True


def _call_again(grown: Grown, node: fx.Node) -> bool:
    """The layer runs a second time, on the same input scaled."""
    if node.op != "call_module" or not isinstance(node.args[0], fx.Node):
        return False
    graph, held = grown.module.graph, node.args[0]
    with graph.inserting_before(_end(graph)):
        half = graph.call_function(torch.mul, (held, 0.5))
        again = graph.call_module(str(node.target), (half, *node.args[1:]), node.kwargs)
    half.meta.update(val=held.meta["val"], site="")
    again.meta.update(val=node.meta["val"], site=node.meta["site"])
    return _return(grown, again)


def _tie(grown: Grown, node: fx.Node) -> bool:
    """Another part of the model reads the first weight, under a name of its own."""
    if node.op != "call_module":
        return False
    layer = grown.module.get_submodule(str(node.target))
    weight = next(iter(layer.parameters()), None)
    if weight is None:
        return False
    name = f"tied_{str(node.target).replace('.', '_')}"
    grown.module.register_parameter(name, weight)  # type: ignore[arg-type]
    graph = grown.module.graph
    with graph.inserting_before(_end(graph)):
        held = graph.get_attr(name)
    held.meta.update(val=spec_of(weight), site="")
    return _return(grown, _relu(grown, held))


def _overwrite(grown: Grown, node: fx.Node) -> bool:
    """An in-place op right behind a matched op changes what that op has read."""
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    held, graph = node.args[0], grown.module.graph
    if held.op in ("placeholder", "get_attr"):
        held = _copied(grown, held)
    with graph.inserting_after(node):
        changed = graph.call_method("mul_", (held, 2.0))
    changed.meta.update(val=held.meta["val"], site="")
    return _return(grown, changed)


def _copied(grown: Grown, held: fx.Node) -> fx.Node:
    """Matched ops read a value of the model instead of an input or a weight, which is not theirs
    to change.
    """
    graph = grown.module.graph
    matched = {node for planted in grown.planted for node in planted.nodes.values()}
    readers = [node for node in graph.nodes if node in matched and held in node.all_input_nodes]
    with graph.inserting_before(readers[0]):
        copied = graph.call_function(torch.neg, (held,))
    copied.meta.update(val=held.meta["val"], site="")
    for reader in readers:
        reader.replace_input_with(held, copied)
    _rename(grown, held, copied)
    return copied


def _rename(grown: Grown, old: fx.Node, new: fx.Node) -> None:
    for planted in grown.planted:
        for name, value in planted.values.items():
            if value is old:
                planted.values[name] = new


def _end(graph: fx.Graph) -> fx.Node:
    return next(node for node in reversed(graph.nodes) if node.op == "output")


def _relu(grown: Grown, value: fx.Node) -> fx.Node:
    graph = grown.module.graph
    with graph.inserting_before(_end(graph)):
        node = graph.call_function(torch.relu, (value,))
    node.meta.update(val=value.meta["val"], site="")
    return node


def _return(grown: Grown, node: fx.Node) -> bool:
    """Makes a node one more result of the model."""
    end = _end(grown.module.graph)
    results = (*end.args[0], node)  # type: ignore[misc]
    end.args = (results,)
    end.meta["val"] = tuple(item.meta["val"] for item in results)  # type: ignore[union-attr]
    return True


# -- looking at them -------------------------------------------------------------------------------


def examine_near(near: Near, subject: Subject, tapes: Sequence[Sequence[int]]) -> NearResult:
    """Builds near-misses of one kind and looks at what becomes of them. `tapes` are of models in
    which the rule fires.
    """
    result = NearResult(near)
    for grown in _built(near, subject, tapes):
        for outcome in trial(subject, grown, spoiled=near.spoil is not None):
            _judge(near, outcome, result)
        if result.reached >= ENOUGH:
            break
    return result


def _built(near: Near, subject: Subject, tapes: Sequence[Sequence[int]]) -> Iterator[Grown]:
    sources: Iterable[Any] = map(Replayed, tapes) if near.edit else map(Rolled, range(ATTEMPTS))
    for source in sources:
        try:
            grown = model(source, subject, near.spoil)
        except Unsuitable:
            continue
        if near.edit is None or near.edit(grown):
            yield grown


def _judge(near: Near, outcome: Outcome, result: NearResult) -> None:
    if outcome.kind == FIRED and near.conditions:
        # A shape clause that is left out may hold all the same; everything else is violated.
        if not isinstance(near.spoil, t.ShapePattern):
            result.wrong.append(Outcome(NOISY, near.name, "fired"))
    elif outcome.kind in BAD:
        result.wrong.append(outcome)
    elif outcome.kind == FIRED:
        result.equal += 1
    elif not near.conditions or outcome.condition in near.conditions:
        result.silent += 1
        result.conditions[outcome.condition] += 1
