"""Whether this torch says what the declarations expect: each op is read back from every spelling.

A call is stopped before it computes, so that only what torch reports counts: the function, and how
it takes its arguments. That call is written as a node, as a capture writes it, and read as a rule
reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

from ...grammar.diagnostics import Diagnostic, Label, LissomError
from ..torch_internals import heard, tree_map
from .attributes import Unreadable
from .example_calls import ExampleCall, examples
from .opspec import OpSpec
from .reported import ReportedCall, canonical_call
from .spec import spec_of
from .vocabulary import Vocabulary

_CHECKED: set[str] = set()


def check_spellings(op: OpSpec, vocabulary: Vocabulary) -> None:
    """Raises T008 where a spelling of `op` is not read back. Each declaration is checked once."""
    text = op.decl.span.text
    if text in _CHECKED:
        return
    lost = lost_spellings(op, vocabulary)
    if lost:
        raise LissomError(_hidden(op, lost))
    _CHECKED.add(text)


def hidden_ops(vocabulary: Vocabulary) -> Iterator[Diagnostic]:
    """T008 for every op that this torch hides in one of its spellings."""
    for op in (vocabulary[name] for name in vocabulary.names()):
        lost = lost_spellings(op, vocabulary)
        if lost:
            yield _hidden(op, lost)


def _hidden(op: OpSpec, lost: Mapping[str, str]) -> Diagnostic:
    return Diagnostic(
        "T008",
        f"torch {torch.__version__} hides `{op.name}` where it is written `{next(iter(lost))}`",
        (Label(op.decl.name.span, "declared here"),),
        tuple(f"{name}: {reason}" for name, reason in lost.items()),
        ("docs/versions.md names the releases of torch that pass all tests",),
    )


def lost_spellings(op: OpSpec, vocabulary: Vocabulary) -> dict[str, str]:
    """The spellings of `op` that are not read back as `op`, each with what came instead.

    A spelling may need settings that have no default: where a call without them is not read, one
    with all settings has to be.
    """
    lost: dict[str, str] = {}
    for signature in (each for each in op.signatures if each.dotted not in op.own):
        first = _problems(examples(op, signature), op, vocabulary)
        second = _problems(examples(op, signature, filled=True), op, vocabulary) if first else {}
        lost |= {name: second[name] for name in first if name in second}
    return lost


def _problems(tried: Iterable[ExampleCall], op: OpSpec, vocabulary: Vocabulary) -> dict[str, str]:
    told = ((example.name, _problem(example, op, vocabulary)) for example in tried)
    return {name: problem for name, problem in told if problem}


def _problem(example: ExampleCall, op: OpSpec, vocabulary: Vocabulary) -> str:
    try:
        call = _reported(example)
    except TypeError as misfit:
        return str(misfit).partition("\n")[0] if example.declared else ""
    if call is None:
        return "torch does not report it"
    node, root = _written(call, example.params)
    if op.name not in vocabulary.candidates(node, root):
        return f"it arrives as {call.target}"
    return "" if example.converted else _misread(op, vocabulary, node, root)


def _reported(example: ExampleCall) -> ReportedCall | None:
    if isinstance(example.function, nn.Module):
        return ReportedCall("call_module", example.function, example.args, example.kwargs)
    found = heard(example.function, example.args, example.kwargs)
    return None if found is None else canonical_call(*found)


def _misread(op: OpSpec, vocabulary: Vocabulary, node: fx.Node, root: Any) -> str:
    readers = vocabulary.readers(node, root)
    reasons = [readers] if isinstance(readers, str) else []
    for reader in () if isinstance(readers, str) else readers:
        try:
            found = reader.read(node, root).op.name
        except Unreadable as misfit:
            reasons.append(misfit.reason)
        else:
            return "" if found == op.name else f"it is read as `{found}`"
    return "; ".join(reasons)


def _written(call: ReportedCall, params: Mapping[str, torch.Tensor]) -> tuple[fx.Node, Any]:
    """The call as a node of a graph of its own, and the module that holds its parameters."""
    graph, root = fx.Graph(), nn.Module()
    names = {id(tensor): name for name, tensor in params.items()}
    nodes: dict[int, fx.Node] = {}

    def node_for(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) not in nodes:
            name = names.get(id(value))
            if name is not None:
                root.register_buffer(name, value)
            made = graph.get_attr(name) if name else graph.placeholder(f"x{len(nodes)}")
            made.meta["val"], nodes[id(value)] = spec_of(value), made
        return nodes[id(value)]

    args, kwargs = tree_map(node_for, call.args), tree_map(node_for, call.kwargs)
    target = call.target
    if call.kind == "call_module":
        root.add_module("layer", target)
        target = "layer"
    return graph.create_node(call.kind, target, args, kwargs), root
