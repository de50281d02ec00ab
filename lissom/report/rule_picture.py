"""A rule as a Mermaid flowchart: ops are boxes, values arrows, constants dotted. Of a rule over
dimensions: who makes the dimension and who reads it; of one over parameters: who reads them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..grammar.checks.declared import SymbolTable
from ..grammar.checks.sides import Operand, Sides, SideStep, sides
from ..grammar.fmt.expr import expression
from ..grammar.tree import tree as t
from ..grammar.tree.clauses import over_images

_PLAIN = re.compile(r"[^A-Za-z0-9 _.,:=+/()|?\[\]'-]")
_REPEATED = {"": "", "?": " (or none)", "*": " (any number in a row)"}


def picture(rule: t.Rule, known: SymbolTable) -> str:
    """The flowchart of both sides; empty for a rule that matches nothing of a model."""
    if over_images(rule):
        return _image_picture(rule)
    if rule.all(t.MatchDim):
        return _dim_picture(rule)
    if rule.all(t.MatchParam):
        return _param_picture(rule)
    if rule.all(t.MatchValue):
        return _value_picture(rule)
    both = sides(rule, known)
    if not both.left:
        return ""
    before, after = _Side(both, known, "b"), _Side(both, known, "a")
    before.draw_left()
    after.draw_right()
    sub = [*_subgraph("before", before.lines), *_subgraph("after", after.lines)]
    return _flowchart(sub, before.dotted + after.dotted)


def _flowchart(subgraphs: Sequence[str], dotted: Sequence[str]) -> str:
    style = ["  classDef constant stroke-dasharray: 4 4", f"  class {','.join(dotted)} constant"]
    shown = style if dotted else []
    return "\n".join(["flowchart LR", *subgraphs, "  before ==> after", *shown])


def _subgraph(title: str, lines: Sequence[str]) -> list[str]:
    inside = [f"    {line}" for line in lines]
    return [f"  subgraph {title}", "    direction TB", *inside, "  end"]


def mermaid_label(text: str) -> str:
    """A label: every character that Mermaid or HTML could act on becomes an entity."""
    lines = (_PLAIN.sub(lambda found: f"#{ord(found.group())};", line) for line in text.split("\n"))
    return f'"{"<br/>".join(lines)}"'


@dataclass
class _Side:
    """One side while it is drawn. `nodes`: what gives a value, by the name of the value."""

    both: Sides
    known: SymbolTable
    letter: str
    lines: list[str] = field(default_factory=list)
    nodes: dict[str, str] = field(default_factory=dict)
    inputs: set[str] = field(default_factory=set)
    drawn: dict[int, str] = field(default_factory=dict)
    dotted: list[str] = field(default_factory=list)
    count: int = 0

    def draw_left(self) -> None:
        for step in self.both.left:
            self._step(step)
        for name in self.both.outputs:
            self._output(name)

    def draw_right(self) -> None:
        """What the rewrite builds; a value that it does not define is still given by the match."""
        for step in self.both.right:
            self._step(step)
        for build in self.both.odd:
            self._odd(build)
        for name in self.both.outputs:
            self._output(name)

    # -- values

    def _source(self, name: str) -> str:
        """The node that gives a value."""
        if name in self.nodes:
            return self.nodes[name]
        step = self._maker(name)
        if step is not None and id(step) not in self.drawn:
            self._step(step)
            return self._source(name)
        alias = self.both.aliases.get(name) if self.letter == "a" else None
        if alias is not None and alias != name:
            return self._source(alias)
        return self._input(name)

    def _maker(self, name: str) -> SideStep | None:
        if self.letter == "b" or name not in self.both.built:
            return self.both.produced.get(name)
        return self.both.built[name]

    def _input(self, name: str) -> str:
        node = self._node(f"([{mermaid_label(name)}])")
        if name in self.both.constants:
            self.dotted.append(node)
        self.nodes[name] = node
        self.inputs.add(name)
        return node

    def _output(self, name: str) -> None:
        source = self._source(name)
        self.lines.append(f"{source} --> {self._node(f'([{mermaid_label(name)}])')}")

    # -- ops

    def _step(self, step: SideStep) -> None:
        if id(step) in self.drawn:
            return
        node = self._node(f"[{mermaid_label(self._title(step))}]")
        self.drawn[id(step)] = node
        for operand in step.operands:
            self._edge(operand, node)
        for name in self._weights(step):
            self._constant(_flat(step.settings[name]), node, name)
        self.nodes |= dict.fromkeys(step.results, node)

    def _title(self, step: SideStep) -> str:
        handle = step.handle or step.clone
        names = "any op" if step.is_wildcard else " | ".join(step.ops)
        title = (f"{handle}: " if handle else "") + names + _REPEATED[step.repeat]
        weights = self._weights(step)
        settings = [f"{k} = {_flat(v)}" for k, v in step.settings.items() if k not in weights]
        return f"{title}\n{', '.join(settings)}" if settings else title

    def _weights(self, step: SideStep) -> list[str]:
        """The parameters that the step computes anew."""
        facts = self.known.op(step.ops[0])
        params = facts.params if facts is not None else {}
        given = {k: v for k, v in step.settings.items() if not isinstance(v, t.Constant)}
        return [name for name in given if name in params]

    def _edge(self, operand: Operand, node: str) -> None:
        if operand is None:
            self.lines.append(f"{self._node('([any])')} --> {node}")
        elif isinstance(operand, t.Rest):
            self.lines.append(f"{self._source(f'{operand.name}...')} --> {node}")
        elif isinstance(operand, t.Expr):
            self._constant(_flat(operand), node)
        else:
            source = self._source(operand)
            arrow = "-.->" if source in self.dotted else "-->"
            self.lines.append(f"{source} {arrow}{self._name_of(operand)} {node}")

    def _name_of(self, value: str) -> str:
        """The text of an arrow: none where the node that it leaves says it."""
        named = value not in self.inputs and not value.startswith("%")
        return f"|{mermaid_label(value)}|" if named and value in self.nodes else ""

    def _constant(self, text: str, node: str, name: str = "") -> None:
        source = self._node(f"[{mermaid_label(text)}]")
        self.dotted.append(source)
        self.lines.append(f"{source} -.->{f'|{mermaid_label(name)}|' if name else ''} {node}")

    def _odd(self, build: t.Build) -> None:
        node = self._node(f"[{mermaid_label(_flat(build.value))}]")
        self.nodes |= {word.text: node for word in build.targets}

    def _node(self, shape: str) -> str:
        self.count += 1
        node = f"{self.letter}{self.count}"
        self.lines.append(f"{node}{shape}")
        return node


# -- a dimension -----------------------------------------------------------------------------------

ROLES = ("writers", "riders", "readers")
"""The parameters that make a dimension, let it pass and read it, as rules call them."""


def _dim_picture(rule: t.Rule) -> str:
    """Who makes the dimension, passes it on and reads it; what is masked first is dotted."""
    dim = _dim_name(rule)
    steps = [s for r in rule.all(t.Rewrite) for s in r.steps if isinstance(s, t.Assign)]
    kept = _flat(steps[0].value) if steps else dim
    masks = [_text(move) for p in rule.all(t.Perturb) for move in p.moves]
    masked = {f"b{4 + number}": text for number, text in enumerate(masks)}
    dotted = [f"{node}[{mermaid_label(text)}]" for node, text in masked.items()]
    dotted += [f"{node} -.-> b3" for node in masked]
    before, after = _layers("b", dim, dim), _layers("a", dim, f"{dim} := {kept}")
    subgraphs = [*_subgraph("before", [*before, *dotted]), *_subgraph("after", after)]
    return _flowchart(subgraphs, list(masked))


def _image_picture(rule: t.Rule) -> str:
    """The image, what makes it smaller, and everything behind it."""
    steps = [s for r in rule.all(t.Rewrite) for s in r.steps if isinstance(s, t.Assign)]
    size = ", ".join(f"{step.path} := {_flat(step.value)}" for step in steps)
    before = ["b1[image]", "b2[every op]", f"b1 -->|{mermaid_label(_dim_name(rule))}| b2"]
    after = ["a1[image]", "a2[interpolate]", "a3[every op]", "a1 --> a2"]
    after.append(f"a2 -->|{mermaid_label(size)}| a3")
    return _flowchart([*_subgraph("before", before), *_subgraph("after", after)], [])


def _param_picture(rule: t.Rule) -> str:
    """The ops that read the parameter, and the numbers that it gets."""
    clause = rule.all(t.MatchParam)[0]
    name, ops = clause.name.text, " | ".join(word.text for word in clause.ops.names)
    moves = [m for p in rule.all(t.Perturb) for m in p.moves]
    steps = [s for r in rule.all(t.Rewrite) for s in r.steps] or moves
    numbers = "; ".join(map(_text, steps))
    sides = (("b", name), ("a", numbers))
    before, after = (
        [f"{x}1[{mermaid_label(text)}]", f"{x}2[{mermaid_label(ops)}]", f"{x}1 -.-> {x}2"]
        for x, text in sides
    )
    return _flowchart([*_subgraph("before", before), *_subgraph("after", after)], ["b1", "a1"])


def _value_picture(rule: t.Rule) -> str:
    """What gives the value, the ops behind it, and what reads it."""
    name = rule.all(t.MatchValue)[0].name.text
    steps = "; ".join(_text(s) for r in rule.all(t.Rewrite) for s in r.steps)
    arrow = mermaid_label(name)
    before = ["b1[an op]", "b2[its readers]", f"b1 -->|{arrow}| b2"]
    after = ["a1[an op]", f"a2[{mermaid_label(steps)}]", "a3[its readers]"]
    after += [f"a1 -->|{arrow}| a2", "a2 --> a3"]
    return _flowchart([*_subgraph("before", before), *_subgraph("after", after)], [])


def _dim_name(rule: t.Rule) -> str:
    return rule.all(t.MatchDim)[0].dim.text


def _layers(letter: str, dim: str, title: str) -> list[str]:
    """Three boxes, the dimension on the arrows between them."""
    boxes = [f"{letter}{n}[{mermaid_label(f'{role}({dim})')}]" for n, role in enumerate(ROLES, 1)]
    arrows = [f"{letter}{n} -->|{mermaid_label(title)}| {letter}{n + 1}" for n in (1, 2)]
    return boxes + arrows


def _text(node: t.Node) -> str:
    return node.span.flat


def _flat(expr: t.Expr) -> str:
    return expression(expr).flat
