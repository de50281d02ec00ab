"""A GraphModule as one JSON value, and back.

Stored are the nodes (name, operation, target, arguments), the modules, the table of tensors, and
which modules are in training mode. Not stored: type annotations, `Node.meta`, and the generated
code, which fx writes anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.fx.graph import CodeGen

from ...grammar.diagnostics import Label, LissomError, fail
from ..torch_internals import codegen_of, mark_untraced
from .calls import check_call, check_target, decode_function, encode_target
from .containers import container_line, container_of
from .modules import build_tree, encode_modules, walk_modules
from .rebuild import check_table, decode_tensors
from .tensors import encode_tensors, placed_tensors
from .values import decode, encode, fields, malformed, require_local, require_name

MAX_NODES = 1_000_000
_OPERATIONS = ("placeholder", "get_attr", "call_function", "call_module", "call_method", "output")
_BUILD_ERRORS = (
    RuntimeError,
    TypeError,
    ValueError,
    NameError,
    AttributeError,
    AssertionError,
    SyntaxError,
)

# -- to JSON ---------------------------------------------------------------------------------------


def encode_graph(module: fx.GraphModule) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(JSON value, tensors by the name of their data). Raises A001 and A010 to A018 for what is not
    stored.
    """
    if not isinstance(module, fx.GraphModule) or not _is_plain(module.graph):
        raise _not_a_graph(module)
    owners = [(path, owner) for path, owner, known in walk_modules(module) if known is None]
    modules = encode_modules(module)
    table, data = encode_tensors(placed_tensors(owners))
    nodes = [_encode_node(node) for node in module.graph.nodes]
    if module.code != module.graph.python_code("self").src:
        raise _stale()
    value = {"modules": modules, "nodes": nodes, "tensors": table, "training": module.training}
    # What could not be read back is found now, not when the model is needed.
    again = decode_graph(value, data)
    if again.code != _without_types(module):
        raise malformed("does not give back the code of the graph it was made from", "graph.json")
    return value, data


def _is_plain(graph: fx.Graph) -> bool:
    codegen = codegen_of(graph)
    return type(codegen) is CodeGen and getattr(codegen, "_body_transformer", None) is None


def _stale() -> LissomError:
    return fail(
        "A001",
        "the graph is not the one whose code the module runs",
        Label(None, where="the module"),
        help="call module.recompile() after changing module.graph, then save again",
    )


def _not_a_graph(module: object) -> LissomError:
    return fail(
        "A001",
        f"a `{type(module).__qualname__}` cannot be stored",
        Label(None, where="the module"),
        note="an artifact holds a torch.fx.GraphModule whose code is fx's own, with nothing added",
        help="save the model that compress returned, or capture this one first",
    )


def _without_types(module: fx.GraphModule) -> str:
    """The generated code as it is without type annotations, and with the classes of containers that
    reading makes.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
        copies[node].type = None
        line = container_line(node.target)
        if line is not None:
            copies[node].target = container_of(line) or node.target
    return graph.python_code("self").src


def _encode_node(node: fx.Node) -> dict[str, Any]:
    where = f"node {node.name}"
    check_call(node)
    return {
        "name": require_local(node.name, "the node name", where),
        "op": node.op,
        "target": encode_target(node),
        "args": [encode(argument, where) for argument in node.args],
        "kwargs": {
            require_name(key, "the keyword", where): encode(v, where)
            for key, v in node.kwargs.items()
        },
    }


# -- from JSON -------------------------------------------------------------------------------------


def data_table(value: Any) -> list[Any]:
    """The checked table of tensors of a graph's JSON value. Raises A025."""
    return check_table(_parts(value)[2])


def decode_graph(value: Any, data: Mapping[str, torch.Tensor]) -> fx.GraphModule:
    """The GraphModule of a JSON value and its tensors, checked as if a stranger had written it."""
    modules, nodes, table, training = _parts(value)
    root = fx.GraphModule(torch.nn.Module(), fx.Graph())
    build_tree(root, modules, decode_tensors(check_table(table), dict(data)))
    root.training = training
    graph = _build(nodes)
    mark_untraced(graph, done=True)
    _require_targets(root, graph)
    try:
        root.graph = graph
        root.graph.lint()
    except _BUILD_ERRORS as error:
        raise malformed(
            f"describes a graph that torch.fx refuses ({error})", "graph.json"
        ) from error
    return root


def _parts(value: Any) -> list[Any]:
    return fields(value, "graph.json", modules=list, nodes=list, tensors=list, training=bool)


def _build(specs: list[Any]) -> fx.Graph:
    graph = fx.Graph()
    known: dict[str, fx.Node] = {}
    if not 0 < len(specs) <= MAX_NODES:
        raise malformed("has no nodes, or more than a reader accepts", "graph.json")
    for spec in specs:
        node = _decode_node(graph, spec, known)
        known[node.name] = node
    operations = [node.op for node in graph.nodes]
    if operations.count("output") != 1 or operations[-1] != "output":
        raise malformed("does not end in its one output", "graph.json")
    return graph


def _decode_node(graph: fx.Graph, spec: Any, known: dict[str, fx.Node]) -> fx.Node:
    name, op, target, args, kwargs = fields(
        spec, "graph.json", name=str, op=str, target=str, args=list, kwargs=dict
    )
    where = f"graph.json, node {name!r}"
    require_local(name, "the node name", where)
    if op not in _OPERATIONS:
        raise malformed(f"has the unknown operation {op!r}", where)
    callee = (
        decode_function(target, where) if op == "call_function" else check_target(op, target, where)
    )
    values = tuple(decode(argument, where, known) for argument in args)
    named = {
        require_name(key, "the keyword", where): decode(v, where, known)
        for key, v in kwargs.items()
    }
    _check_arity(op, values, named, where)
    node = graph.create_node(op, callee, values, named, name)
    if node.name != name:
        raise malformed("has a name that is taken or reserved", where)
    check_call(node)
    return node


def _check_arity(op: str, args: tuple[Any, ...], kwargs: dict[str, Any], where: str) -> None:
    most = {"placeholder": 1, "get_attr": 0, "output": 1}.get(op)
    if most is not None and (len(args) > most or kwargs):
        raise malformed(f"has arguments that a node of kind {op} does not take", where)
    if op == "output" and len(args) != 1:
        raise malformed("returns nothing", where)


def _require_targets(root: fx.GraphModule, graph: fx.Graph) -> None:
    """Every path the graph uses must be a tensor or a module, never another attribute."""
    for node in graph.nodes:
        if node.op not in ("get_attr", "call_module") or _is_registered(root, node):
            continue
        raise fail(
            "A026",
            f"node `{node.name}` uses `{node.target}`, which is no registered tensor or module",
            Label(None, where=f"node {node.name}"),
            help="register a plain tensor with module.register_buffer, then save again",
        )


def _is_registered(root: torch.nn.Module, node: fx.Node) -> bool:
    *parents, name = str(node.target).split(".")
    owner: torch.nn.Module | None = root
    for parent in parents:
        owner = owner._modules.get(parent) if owner is not None else None
    if owner is None:
        return False
    found = owner._modules if node.op == "call_module" else owner._parameters | owner._buffers
    return found.get(name) is not None
