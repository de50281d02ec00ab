"""Models as text: built from a line, and written as one.

    relu(conv2d(x[2, 3, 8, 8], [4, 3, 3, 3], [4], padding = 1))

Ops are called by their declared names: inputs, then weights in declared order, settings by name.
`x[2, 3]` is an input of this shape, `[4, 3]` are numbers that the model holds: a weight, or a
constant. Both are drawn; a type (`x[2].long`, `[4].half`), `.zeros`, `.ones` or a decimal point
(`[1.0, -2]`) says more, `silent([4, 3], 0, 2)` has zeros in these rows, `unread([4, 3], 1)` in
these columns. What is read twice has a name, in a line of its own:

    w = [4, 4]
    h = linear(x[2, 4], w) as c
    y = (c(relu(h)), linear(h, w))

`c(...)` runs the layer once more, `relu_(h)` writes in place, and the last line is what the model
returns.
"""

from __future__ import annotations

import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from lissom.grammar.text.parse import parse
from lissom.grammar.tree import tree as t
from lissom.grammar.tree.fold import Fold
from lissom.grammar.tree.operators import ARITHMETIC
from lissom.rewrite.graph.emit import emit
from lissom.rewrite.graph.index import GraphView
from lissom.rewrite.ops.attributes import AttrSpec, read_attr
from lissom.rewrite.ops.call import OpCall
from lissom.rewrite.ops.opspec import OpSpec
from lissom.rewrite.ops.spec import TensorSpec, spec_of
from lissom.rewrite.ops.vocabulary import Vocabulary

TYPES = {
    "half": torch.float16, "float": torch.float32, "long": torch.int64, "byte": torch.uint8,
    "char": torch.int8, "bool": torch.bool, "bfloat16": torch.bfloat16,
}  # fmt: skip
"""The types of numbers that are written; float64 is not."""

_SAID = {dtype: f".{name}" for name, dtype in TYPES.items()} | {torch.float64: ""}
_ASSIGNMENT = re.compile(r"^\s*(\w+|\([\w, ]+\))\s*=\s", re.MULTILINE)
Written = tuple[fx.GraphModule, tuple[Tensor, ...]]


@dataclass
class Numbers:
    """Numbers that the model is to hold, once it is known what for. drawn: the one tensor that all
    who read them share.
    """

    shape: tuple[int, ...]
    kind: str = ""
    drawn: Tensor | None = None

    def tensor(self, purpose: str, generator: torch.Generator) -> Tensor:
        if self.drawn is None:
            self.drawn = _drawn(self.shape, self.kind, purpose, generator)
        return self.drawn


def _drawn(shape: tuple[int, ...], kind: str, purpose: str, generator: torch.Generator) -> Tensor:
    """Floating ones are of both signs and none is near zero; variances are positive."""
    if kind in ("byte", "char"):
        ends = torch.iinfo(TYPES[kind])
        return torch.randint(ends.min, ends.max, shape, generator=generator).to(TYPES[kind])
    if kind in ("long", "bool"):
        return torch.randint(2, shape, generator=generator).to(TYPES[kind])
    if kind in ("zeros", "ones"):
        return getattr(torch, kind)(shape, dtype=torch.float64)
    found = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5
    if "var" not in purpose:
        found *= torch.randint(2, shape, generator=generator) * 2 - 1
    return found.to(TYPES.get(kind, torch.float64))


def built(text: str) -> Written:
    """The model of a text in eval mode, and its inputs. Numbers are the same each time."""
    if not _ASSIGNMENT.search(text):
        text = f"out = {text}"
    file = parse(f"exact rule m {{ match {{ y = relu(x) }}\nrewrite {{\n{text}\n}} }}", "model")
    (rewrite,) = file.statements[0].all(t.Rewrite)  # type: ignore[union-attr]
    return _Builder().run(rewrite.steps)


class _Builder(Fold[Any]):
    """What an expression comes to in a model: a node, a number, or numbers to hold."""

    def __init__(self) -> None:
        self.ops, self.generator = Vocabulary.library(), torch.Generator().manual_seed(0)
        self.module = fx.GraphModule(nn.Module(), fx.Graph())
        self.graph = self.module.graph
        self.end = self.graph.output(None)
        self.names: dict[str, Any] = {"nan": math.nan}
        self.real: dict[fx.Node, Any] = {}
        self.inputs: list[fx.Node] = []

    def run(self, lines: Iterable[t.Build]) -> Written:
        value = None
        for line in lines:
            value = self.of(line.value)
            if line.handle is not None:
                self.names[line.handle.text] = value.target
            self._name(line.targets, value)
        self.end.args = (value,)
        self.end.meta["val"] = spec_of(self._real(value))
        self.module.recompile()
        self.module.training = False  # of the root alone: a layer may have a mode of its own
        return self.module, tuple(self.real[node] for node in self.inputs)

    def _name(self, targets: tuple[t.Word, ...], value: Any) -> None:
        parts = [value]
        if len(targets) > 1:
            parts = [
                self._add("call_function", operator.getitem, value, i) for i in range(len(targets))
            ]
        self.names |= {word.text: part for word, part in zip(targets, parts, strict=True)}

    # -- expressions -------------------------------------------------------------------------------

    def name(self, expr: t.Name) -> Any:
        return self.names[expr.text]

    def literal(self, expr: Any) -> Any:
        return expr.value

    def unary(self, expr: t.Unary) -> Any:
        return -self.of(expr.operand)

    def binary(self, expr: t.Binary) -> Any:
        return ARITHMETIC[expr.op](self.of(expr.left), self.of(expr.right))

    def items(self, expr: t.Tuple | t.List) -> Any:
        found = tuple(self.of(item) for item in expr.items)
        if isinstance(expr, t.Tuple):
            return found
        if any(isinstance(item, float) for item in found):
            return Numbers((len(found),), drawn=torch.tensor(found, dtype=torch.float64))
        return Numbers(found)

    def attribute(self, expr: t.Attribute) -> Any:
        if isinstance(expr.value, t.Subscript):
            return self.subscript(expr.value, expr.name)
        return Numbers(self.of(expr.value).shape, expr.name)

    def subscript(self, expr: t.Subscript, kind: str = "") -> fx.Node:
        """An input, where it is first read."""
        name, shape = expr.value.span.text, tuple(self.of(item) for item in expr.items)
        first = next(node for node in self.graph.nodes if node.op != "placeholder")
        with self.graph.inserting_before(first):
            node = self.names[name] = self.graph.placeholder(name)
        self.inputs.append(node)
        return self._hold(node, _drawn(shape, kind, "", self.generator))

    def call(self, expr: t.Call) -> fx.Node:
        name, args = expr.function.span.text, [self.of(arg) for arg in expr.args]
        if name in self.names:
            return self._add("call_module", self.names[name], *args)
        if name in ("silent", "unread"):
            return self._zeroed(*args, axis=int(name == "unread"))
        if name.endswith("_"):
            return self._add("call_method", name, *args)
        return self._op(
            self.ops[name], args, {k.name.text: self.of(k.value) for k in expr.keywords}
        )

    def _zeroed(self, numbers: Numbers, *places: int, axis: int) -> Numbers:
        tensor = numbers.tensor("", self.generator)
        tensor.index_fill_(axis, torch.tensor(places), 0.0)
        return numbers

    # -- nodes -------------------------------------------------------------------------------------

    def _op(self, op: OpSpec, args: list[Any], named: dict[str, Any]) -> fx.Node:
        if op.inputs[-1].variadic:
            first = len(op.inputs) - 1
            args = [*args[:first], tuple(args[first:])]
        slots = [spec.name for spec in (*op.inputs, *op.params)]
        given = {**dict.fromkeys(slots), **dict(zip(slots, args, strict=False)), **named}
        inputs = tuple(self._operand(given.pop(spec.name)) for spec in op.inputs)
        params = {spec.name: self._weight(spec.name, given.pop(spec.name)) for spec in op.params}
        attrs = {name: read_attr(op.attrs[name], value) for name, value in given.items()}
        made = emit(op, inputs, params, attrs)
        with torch.no_grad():
            value = made.run(*map(self._real, inputs))
        path = f"{op.name}{len(self.graph.nodes)}"
        node = made.insert(self.module, self.end, path)
        for held in node.all_input_nodes:
            if held not in self.real:
                self._hold(held, self._held(str(held.target)))
        return self._hold(node, value, path if node.op == "call_module" else "")

    def _add(self, kind: str, target: Any, *args: Any) -> fx.Node:
        args = tuple(map(self._operand, args))
        with self.graph.inserting_before(self.end):
            node = self.graph.create_node(kind, target, args)
        real = [
            value.clone() if isinstance(value, Tensor) else value for value in map(self._real, args)
        ]
        run: dict[str, Callable[..., Any]] = {
            "call_module": lambda *given: self.module.get_submodule(target)(*given),
            "call_method": lambda x, *rest: getattr(x, target)(*rest),
        }
        if kind == "call_method":  # as a trace says it of what writes in place
            node.meta.update(mutates=(0,), aliases=(0,))
        with torch.no_grad():
            value = run.get(kind, target)(*real)
        return self._hold(node, value, target if kind == "call_module" else "")

    def _operand(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(self._operand, value))
        if not isinstance(value, Numbers):
            return value
        name, tensor = f"held{len(self.graph.nodes)}", value.tensor("", self.generator)
        self.module.register_buffer(name, tensor)
        with self.graph.inserting_before(self.end):
            return self._hold(self.graph.get_attr(name), tensor)

    def _weight(self, name: str, value: Numbers | None) -> Tensor | None:
        return None if value is None else value.tensor(name, self.generator)

    def _held(self, path: str) -> Tensor:
        owner, _, name = path.rpartition(".")
        return getattr(self.module.get_submodule(owner), name).detach()

    def _real(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(self._real, value))
        return self.real[value] if isinstance(value, fx.Node) else value

    def _hold(self, node: fx.Node, value: Any, site: str = "") -> fx.Node:
        self.real[node] = value
        node.meta.update(val=spec_of(value), site=site, source="")
        return node


# -- a model as text -------------------------------------------------------------------------------


def shown(view: GraphView) -> str:
    """The graph in the notation that `built` reads, weights without their numbers. What one op
    alone reads stands inside of its call.
    """
    return _Writer(view).text()


class _Writer:
    def __init__(self, view: GraphView) -> None:
        self.view = view
        self.met: set[fx.Node] = set()
        self.layers: dict[str, str] = {}
        self.names: dict[fx.Node, str] = {}
        self.tied: dict[int, str] = {}
        self.lines: list[str] = []
        held = view.root.named_parameters(remove_duplicate=False)
        self.read = Counter(tensor.data_ptr() for _, tensor in held)

    def text(self) -> str:
        output = self.view.root.graph.output_node()
        for node in self.view.root.graph.nodes:
            if node is not output and self._has_line(node):
                written = f"{self._written(node)}{self._handle(node)}"
                self.lines.append(f"{self._targets(node)} = {written}")
        last = self._value(output.args[0])
        return "\n".join([*self.lines, f"out = {last}"]) if self.lines else last

    def _has_line(self, node: fx.Node) -> bool:
        """What several ops or none read, a layer that runs again, an op of several results."""
        if node.op in ("placeholder", "get_attr") or self.view.projection(node):
            return False
        return (
            len(node.users) != 1 or self._again(node) or any(map(self.view.projection, node.users))
        )

    def _again(self, node: fx.Node) -> bool:
        calls = [
            n
            for n in self.view.root.graph.nodes
            if n.op == "call_module" and n.target == node.target
        ]
        return node.op == "call_module" and len(calls) > 1

    def _handle(self, node: fx.Node) -> str:
        if not self._again(node) or node.target in self.layers:
            return ""
        self.layers[str(node.target)] = f"c{len(self.layers)}"
        return f" as {self.layers[str(node.target)]}"

    def _targets(self, node: fx.Node) -> str:
        found = {user: self.view.projection(user) for user in node.users}
        parts = {place[1]: self._name(user) for user, place in found.items() if place}
        if not parts:
            return self._name(node)
        return f"({', '.join(parts.get(i, '_') for i in range(len(node.meta['val'])))})"

    def _name(self, node: fx.Node) -> str:
        return self.names.setdefault(node, f"v{len(self.names) + 1}")

    def _value(self, item: Any) -> str:
        if isinstance(item, fx.Node):
            return self._name(item) if self._has_line(item) else self._written(item)
        if isinstance(item, (tuple, list)):
            parts = [*map(self._value, item)]
            return parts[0] if len(parts) == 1 else f"({', '.join(parts)})"
        return _literal(item)

    def _written(self, node: fx.Node) -> str:
        if node.op == "placeholder":
            first = node not in self.met
            self.met.add(node)
            return f"{node.name}{_numbers(node.meta['val'])}" if first else node.name
        if node.op == "get_attr":
            return _numbers(node.meta["val"])
        if self.view.projection(node):
            return self._name(node)
        if node.target in self.layers and node.op == "call_module":
            return f"{self.layers[str(node.target)]}({', '.join(map(self._value, node.args))})"
        call = self.view.call(node)
        if call is None:
            return f"{node.target}({', '.join(map(self._value, node.args))})"
        return self._call(call)

    def _call(self, call: OpCall) -> str:
        inputs = [
            item
            for value in call.inputs
            for item in (value if isinstance(value, tuple) else (value,))
        ]
        weights = [call.tensor(name) for name in call.params]
        given = [*map(self._value, inputs), *map(self._weight, weights)]
        while given and given[-1] == "none":
            given.pop()
        name = (
            f"{call.node.target}"
            if call.in_place and call.node.op == "call_method"
            else call.op.name
        )
        return f"{name}({', '.join([*given, *self._settings(call)])})"

    def _settings(self, call: OpCall) -> list[str]:
        """Those that are not what is taken where none is given."""
        shapes = {name: value for name, value in call.shapes().items() if value is not None}
        usual = call.op.fill({}, [*shapes], shapes)
        attrs = {name: value for name, value in call.attrs.items() if value != usual.get(name)}
        return [f"{k} = {self._value(_one(call.op.attrs[k], v))}" for k, v in attrs.items()]

    def _weight(self, tensor: Tensor | None) -> str:
        """By name where several layers read the same numbers."""
        if tensor is None:
            return "none"
        if self.read[tensor.data_ptr()] < 2:
            return _numbers(spec_of(tensor))
        if tensor.data_ptr() not in self.tied:
            self.tied[tensor.data_ptr()] = f"w{len(self.tied) + 1}"
            self.lines.append(f"{self.tied[tensor.data_ptr()]} = {_numbers(spec_of(tensor))}")
        return self.tied[tensor.data_ptr()]


def _one(spec: AttrSpec, value: Any) -> Any:
    """A number for a pair of equal ones, where the op takes that."""
    return value[0] if spec.width and len(set(value)) == 1 else value


def _literal(item: Any) -> str:
    if item is None or isinstance(item, bool):
        return str(item).lower()
    if isinstance(item, str):
        return f'"{item}"'
    if isinstance(item, torch.dtype):
        return f'"{str(item).removeprefix("torch.")}"'
    return f"{item:g}" if isinstance(item, float) else str(item)


def _numbers(spec: Any) -> str:
    assert isinstance(spec, TensorSpec)
    return f"{list(spec.shape)}{_SAID.get(spec.dtype, f'.{spec.dtype}')}"
