"""torch.export's graph, lifted back to calls of the model's own modules.

Export follows data flow that a trace on values cannot (vmap, symbolic sizes), but dissolves modules
into ATen calls. Every call knows the modules it ran under, so the calls of one leaf module become
that module again.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from ..graph.modules import has_hooks, is_leaf
from ..graph.source_lines import is_model_file, place
from ..graph.ties import storages
from ..graph.values import tensors
from ..ops.aten import is_operator, spelled
from ..ops.spec import spec_of
from ..torch_internals import tree_leaves, tree_map, tree_unflatten
from .inputs import Bound, Case, bind, placeholder_values
from .lowering import Untraceable
from .recorded import Specialised
from .tracer import CallRecorder, version_of

_ASSERTIONS = ("_assert", "sym_constrain", "_guards")
_STATE = (InputKind.PARAMETER, InputKind.BUFFER)


@dataclass(frozen=True)
class Lifted:
    """A graph over the modules of the exported model."""

    graph: fx.Graph
    fixed: tuple[Specialised, ...]


def exported(model: nn.Module, case: Case) -> Lifted:
    """Export `model` on `case` with every size symbolic, and lift the result.

    Raises what torch.export raises, and `Untraceable` for a graph that cannot stand for the model.
    """
    if any(has_hooks(module) for module in model.modules()):
        raise Untraceable("torch.export would dissolve the hooks of the model")
    recorder = CallRecorder(model)
    bound = bind(recorder, case.fresh())
    program = _export(model, case)
    _Transfer(recorder, program, bound).run()
    _lift(recorder.graph, model)
    _observe(model, recorder.graph, case)
    return Lifted(recorder.graph, (*bound.fixed, *_numbers(recorder.graph)))


def _numbers(graph: fx.Graph) -> Iterator[Specialised]:
    """Export takes the numbers among the arguments as they are."""
    for node in graph.find_nodes(op="placeholder"):
        value = node.meta["val"]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            why = f"argument `{node.target}` is fixed to {value!r}"
            yield Specialised(why, node.name, "", value)


def _export(model: nn.Module, case: Case) -> ExportedProgram:
    fresh = case.fresh()
    signature = inspect.signature(model.forward)
    sizes = {
        name: _symbolic(value)
        for name, value in signature.bind(*fresh.args, **fresh.kwargs).arguments.items()
    }
    order = list(signature.parameters)
    named = sorted(
        fresh.kwargs, key=lambda name: order.index(name) if name in order else len(order)
    )
    kwargs = {name: fresh.kwargs[name] for name in named}
    return torch.export.export(model, fresh.args, kwargs, dynamic_shapes=sizes, strict=False)


def _symbolic(values: Any) -> Any:
    def every_axis(leaf: Any) -> Any:
        return (
            dict.fromkeys(range(leaf.dim()), Dim.AUTO) if isinstance(leaf, torch.Tensor) else None
        )

    return tree_map(every_axis, values)


class _Transfer:
    """Copies an exported graph behind the placeholders of forward, with state under its original
    paths.
    """

    def __init__(self, recorder: CallRecorder, program: ExportedProgram, bound: Bound) -> None:
        self.recorder, self.program = recorder, program
        self.inputs = iter(tree_leaves((bound.args, bound.kwargs)))
        self.inputs_of = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        self.where: dict[fx.Node, Any] = {}

    def run(self) -> None:
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self.where[node] = self._input(self.inputs_of[node.name])
            elif node.op == "output":
                self._output(node)
            elif not _name(node).startswith(_ASSERTIONS):
                self._copy(node)

    def _input(self, spec: Any) -> Any:
        lower = self.recorder.lowering.lower
        if spec.kind is InputKind.USER_INPUT:
            return lower(next(self.inputs))
        if spec.kind in _STATE:
            return lower(_attribute(self.recorder.root, spec.target))
        if spec.kind is InputKind.CONSTANT_TENSOR:
            return lower(self.program.constants[spec.target])
        raise Untraceable(f"torch.export reports an input of kind {spec.kind.name}")

    def _copy(self, node: fx.Node) -> None:
        if node.op != "call_function":
            raise Untraceable(f"torch.export keeps `{node.target}` as a graph of its own")
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: self.where[source])
        call: Any = ("call_function", node.target, args, kwargs)
        if is_operator(node.target):
            call = spelled(node.target, args, kwargs)
        new = self.recorder.graph.create_node(*call)
        stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
        known = [path for path in stack if not path.startswith("_empty")]
        new.meta.update(site=known[-1] if known else "", source=_source(node), mutates=())
        # vmap's bookkeeping calls have no users, but the calls between them only work in their
        # order.
        new.meta["effect"] = "_functorch" in (getattr(node.target, "__module__", None) or "")
        new.meta["inside"] = list((node.meta.get("nn_module_stack") or {}).items())
        self.where[node] = new

    def _output(self, node: fx.Node) -> None:
        for spec in self.program.graph_signature.output_specs:
            if spec.kind is not OutputKind.USER_OUTPUT:
                raise Untraceable(f"torch.export reports that forward changes `{spec.target}`")
        results: Any = node.args[0]
        flat = [self.where.get(item, item) for item in results]
        spec_of_result: Any = self.program.call_spec.out_spec
        structure = tree_unflatten(flat, spec_of_result)
        output = self.recorder.graph.output(self.recorder.lowering.emit(structure))
        output.meta.update(site="", source="", mutates=())


def _attribute(root: Any, path: str) -> Any:
    for name in path.split("."):
        root = getattr(root, name)
    return root


def _name(node: fx.Node) -> str:
    return getattr(node.target, "__name__", "")


def _source(node: fx.Node) -> str:
    lines = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    own = [place(file, int(line)) for file, line in lines if is_model_file(file)]
    return own[-1] if own else ""


# -- lifting -------------------------------------------------------------------------------------


def _lift(graph: fx.Graph, root: nn.Module) -> None:
    """Replace every group of calls that one call of a leaf module made by that call."""
    modules = dict(root.named_modules())
    for path, nodes in _groups(graph, modules):
        module = modules[path]
        inputs = _outer_inputs(nodes, root, module)
        results = [node for node in nodes if any(user not in nodes for user in node.users)]
        if len(inputs) == 1 and len(results) == 1 and _takes_one(module):
            _replace(graph, path, nodes, inputs[0], results[0])


def _groups(graph: fx.Graph, modules: dict[str, nn.Module]) -> Iterator[tuple[str, list[fx.Node]]]:
    groups: dict[str, tuple[str, list[fx.Node]]] = {}
    for node in graph.nodes:
        for key, (path, _) in node.meta.pop("inside", ()):
            if path in modules and path and is_leaf(modules[path]):
                groups.setdefault(key, (path, []))[1].append(node)
                break
    yield from groups.values()


def _outer_inputs(nodes: list[fx.Node], root: nn.Module, module: nn.Module) -> list[fx.Node]:
    """What a group reads that is neither made in it nor state of its module."""
    own = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    found = dict.fromkeys(source for node in nodes for source in node.all_input_nodes)
    return [
        source
        for source in found
        if source not in nodes
        and not (source.op == "get_attr" and id(_attribute(root, str(source.target))) in own)
    ]


def _takes_one(module: nn.Module) -> bool:
    parameters = inspect.signature(module.forward).parameters.values()
    return sum(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters) == 1


def _replace(
    graph: fx.Graph, path: str, nodes: list[fx.Node], value: fx.Node, result: fx.Node
) -> None:
    with graph.inserting_before(result):
        call = graph.call_module(path, (value,))
    call.meta.update(site=path, source=result.meta["source"], mutates=())
    result.replace_all_uses_with(call)
    for node in reversed(nodes):
        graph.erase_node(node)


class _Observer(fx.Interpreter):
    """Runs a graph once to see the value of every node and what it writes to."""

    def run_node(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        before = [(tensor, version_of(tensor)) for tensor in tensors(args, kwargs)]
        result = super().run_node(n)
        written = {id(tensor) for tensor, version in before if version_of(tensor) != version}
        reads = [self.env[source] for source in n.all_input_nodes]
        shared = storages(result)
        n.meta["val"] = spec_of(result)
        n.meta["aliases"] = tuple(i for i, value in enumerate(reads) if storages(value) & shared)
        n.meta["mutates"] = tuple(i for i, value in enumerate(reads) if id(value) in written)
        return result


def _observe(model: nn.Module, graph: fx.Graph, case: Case) -> None:
    observer = _Observer(fx.GraphModule(model, graph))
    observer.run(initial_env=placeholder_values(graph, model.forward, case))
