"""A rule's right side at one site: the ops to build and the weights to move, as values. Nothing is
changed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ...grammar.diagnostics import Diagnostic, Label, fail
from ...grammar.tree import tree as t
from ...grammar.tree.operators import OPS
from ..match.site import Site
from ..ops.attributes import read_attr
from ..ops.call import OpCall
from ..ops.opspec import OpSpec
from ..ops.runtime_size import RuntimeSize, settable
from ..ops.spec import TensorSpec
from ..rules.binding import Several
from ..rules.constraint import constraint_of
from ..rules.no_value import NoValue
from ..rules.pattern import PatternOp
from ..rules.scope import ParamRef, read_weight
from ..rules.state import State
from .exits import EXIT, exit_settings, require_like_outputs
from .planned import (
    Plan,
    Planned,
    check_shape,
    flat,
    in_double,
    nodes_read,
    operands_of,
    require_spec,
    spec_known,
)

_WEIGHT = "name what the rewrite made: `y = c(x, weight = w) as d`, then `d.weight := ...`"


class Constructor:
    """Evaluates `perturb` and `rewrite` at one site."""

    def __init__(self, state: State, site: Site) -> None:
        self.state = state
        self.site = site
        self.scope = site.scope
        self.plan = Plan()
        self.origin: OpCall | None = None

    def run(self, clauses: Sequence[type] = (t.Perturb, t.Rewrite, t.Train)) -> Plan:
        for clause in self.site.rule.source.all(*clauses):
            if isinstance(clause, t.Perturb):
                self._perturb(clause)
            elif isinstance(clause, t.Rewrite):
                self._rewrite(clause)
            else:
                self._train(clause)
        self.plan.reads = nodes_read(self.plan)
        return self.plan

    def _perturb(self, clause: t.Perturb) -> None:
        for move in clause.moves:
            if isinstance(move, t.Assign) and len(move.path.parts) == 1:
                self._exchange(move, move.path.parts[0].text)
                continue
            target = self._weight(move)
            if target is None:
                continue
            assert isinstance(move, t.Assign)
            self.scope.replaces(target)
            value = self.scope.number(move.value)
            check_shape(move, value, target)
            self.plan.moved[target.path] = in_double(value)

    def _exchange(self, move: t.Assign, name: str) -> None:
        node, given = self.scope.names.get(name), (*self.site.outputs.values(),)
        if not isinstance(node, fx.Node) or node not in (*self.site.inputs, *given):
            message = f"`{name}` is no value that the matched ops read from outside, or give"
            raise fail("R002", message, Label(move.span), help="move one of these, or a weight")
        made = Constructor(self.state, self.site)
        new = made.graph_value(move.value)
        require_spec(name, node, new, Label(move.span))
        made.plan.outputs[name], made.plan.reads = new, nodes_read(made.plan)
        if node not in given and not set(self.site.nodes).isdisjoint(made.plan.reads):
            message = f"`{name}` is read before the matched ops give anything"
            raise fail("R002", message, Label(move.span), help="compute it from what they read")
        self.plan.exchanged[node] = made.plan

    def _weight(self, move: t.Assign | t.Effect) -> ParamRef | None:
        """None where the matched op lacks the weight (a bias): what is absent stays absent."""
        if isinstance(move, t.Assign) and len(move.path.parts) == 2:
            call, name = self.scope.names.get(move.path.parts[0].text), move.path.parts[1].text
            if isinstance(call, OpCall) and name in call.params:
                return self.scope.param(call, name)
        raise fail(
            "R002",
            "only weights of matched ops, and what these read or give, can move",
            Label(move.span),
        )

    def _train(self, clause: t.Train) -> None:
        """What holds of weights of the new ops while they are trained."""
        for assign in clause.constraints:
            planned = self.scope.names.get(assign.path.parts[0].text)
            name = assign.path.parts[-1].text
            if not isinstance(planned, Planned) or planned.params.get(name) is None:
                message = f"`{assign.path.span.text}` is no weight that the rule builds"
                raise fail("F103", message, Label(assign.path.span), help=_WEIGHT)
            made = constraint_of(self.site.rule.name, assign, self.scope)
            planned.trained[name] = (*planned.trained.get(name, ()), made)

    # -- building ----------------------------------------------------------------------------------

    def _rewrite(self, clause: t.Rewrite) -> None:
        for step in clause.steps:
            if isinstance(step, t.Exit):
                self._exit(step)
                continue
            if not isinstance(step, t.Build) or len(step.targets) != 1:
                raise fail("R002", "this version can only build single values", Label(step.span))
            self._build(step)

    def _build(self, step: t.Build) -> None:
        self.origin = self._origin(step)
        value = self.graph_value(step.value)
        name = step.targets[0].text
        if name in self.site.rule.outputs:
            self.plan.outputs[name] = value
        self.scope.names[name] = value
        if step.handle is not None:
            self.scope.names[step.handle.text] = self.plan.handles[step.handle.text] = value

    def _exit(self, step: t.Exit) -> None:
        """All that reads the value reads it behind the exit."""
        name, names = self.site.rule.value, self.scope.names
        logits = names.get(step.name.text)
        require_like_outputs(names[name], logits, step)
        asked, settings = exit_settings(step, self.scope)
        inputs = (names[name], logits, self.graph_value(asked))
        self.plan.outputs[name] = self._plan(
            self.state.vocabulary[EXIT], inputs, {}, settings, step
        )

    def _origin(self, step: t.Build) -> OpCall | None:
        call = None if step.origin is None else self.scope.names.get(step.origin.text)
        return call if isinstance(call, OpCall) else None

    def graph_value(self, expr: t.Expr) -> Any:
        """A node, a planned op or a scalar."""
        if isinstance(expr, t.Call) and isinstance(expr.function, t.Name):
            planned = self._op_call(expr, expr.function)
            if planned is not None:
                return planned
        if isinstance(expr, t.Binary) and expr.op in OPS:
            return self._arithmetic(expr)
        return self.scope.value(expr)

    def _arithmetic(self, expr: t.Binary) -> Any:
        left, right = self.graph_value(expr.left), self.graph_value(expr.right)
        if not any(isinstance(value, (fx.Node, Planned)) for value in (left, right)):
            return self.scope.value(expr)
        op = self.state.vocabulary[OPS[expr.op]]
        return self._plan(op, (self._operand(left), self._operand(right)), {}, {}, expr)

    def _operand(self, value: Any) -> Any:
        """A value of the graph as it is, constants of the model included; numbers as numbers."""
        kept = isinstance(value, (fx.Node, Planned, RuntimeSize))
        return value if kept else self.scope.plain(value)

    def _op_call(self, expr: t.Call, function: t.Name) -> Planned | Several | None:
        """`conv2d(x, weight = w)` builds an op, `c(x, weight = w)` a copy of a matched op with
        changes.
        """
        like = self.scope.names.get(function.text)
        if isinstance(like, OpCall):
            return self._clone(expr, like)
        chain = self.site.rule.pattern.chains.get(function.text)
        if chain is not None:
            return self._again(expr, chain)
        if function.text not in self.state.vocabulary:
            return None
        values = tuple(self.graph_value(arg) for arg in expr.args)
        if not any(isinstance(value, (fx.Node, Planned)) for value in flat(values)):
            return None
        op = self.state.vocabulary[function.text]
        params, attrs = self._settings(op, expr.keywords)
        return self._applied(op, values, params, attrs, expr)

    def _clone(self, expr: t.Call, like: OpCall) -> Planned | Several:
        params, attrs = self._settings(like.op, expr.keywords)
        kept = {name: self.scope.param(like, name) for name in like.params}
        values = tuple(self.graph_value(arg) for arg in expr.args) or like.inputs
        self.origin = self.origin or like
        return self._applied(like.op, values, {**kept, **params}, {**like.attrs, **attrs}, expr)

    def _again(self, expr: t.Call, op: PatternOp) -> Any:
        """The links of a chain on another value; what is absent leaves it as it is."""
        value, bound = self.graph_value(expr.args[0]), self.site.bindings
        read = bound.values[op.reads[0]]
        for link in bound.chains.get(op.index, ()):
            self.origin = link
            inputs = tuple(value if given is read else given for given in link.inputs)
            params = {name: self.scope.param(link, name) for name in link.params}
            value, read = self._plan(link.op, inputs, params, link.attrs, expr), link.node
        return value

    def _applied(
        self,
        op: OpSpec,
        values: tuple[Any, ...],
        params: dict[str, Any],
        attrs: dict[str, Any],
        at: t.Node,
    ) -> Planned | Several:
        """The op on these operands; on each value of `xs...` where it has one input."""
        single = len(op.inputs) == 1 and not op.inputs[0].variadic
        if single and len(values) == 1 and isinstance(values[0], Several):
            return Several(self._plan(op, (each,), params, attrs, at) for each in values[0])
        inputs, settings = operands_of(op, values)
        given = zip(op.attrs, settings, strict=False)
        named = {name: read_attr(op.attrs[name], value) for name, value in given}
        return self._plan(op, inputs, params, {**attrs, **named}, at)

    def _settings(
        self, op: OpSpec, keywords: Sequence[t.Keyword]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        params: dict[str, Any] = {}
        attrs: dict[str, Any] = {}
        names = {param.name for param in op.params}
        for keyword in keywords:
            value = self.scope.value(keyword.value)
            if keyword.name.text in names:
                params[keyword.name.text] = read_weight(keyword, value)
            elif keyword.name.text in op.attrs:
                value = read_attr(op.attrs[keyword.name.text], self.scope.plain(value))
                attrs[keyword.name.text] = settable(op.name, op.traits, keyword, value)
            else:
                raise fail("T003", f"op `{op.name}` has no `{keyword.name}`", Label(keyword.span))
        return params, attrs

    def _plan(
        self,
        op: OpSpec,
        inputs: tuple[Any, ...],
        params: dict[str, Any],
        attrs: dict[str, Any],
        at: t.Node,
    ) -> Planned:
        for value in params.values():
            if isinstance(value, ParamRef):
                self.scope.plain(value)
        full = {param.name: params.get(param.name) for param in op.params}
        pairs = zip(op.inputs, inputs, strict=False)
        specs = {spec.name: spec_known(value) for spec, value in pairs}
        weights = {name: spec_known(value) for name, value in full.items()}
        dtype = self._dtype(specs)
        made = [s.name for s, v in zip(op.inputs, inputs, strict=False) if isinstance(v, Tensor)]
        specs |= _in_dtype({name: specs[name] for name in made}, dtype)
        try:
            attrs, results = self._shapes(op, specs, weights, attrs, dtype)
        except _REFUSED as error:
            why = (Label(at.span, str(error).partition("\n")[0]),)
            raise NoValue(Diagnostic("R001", f"`{op.name}` cannot be built so", why)) from error
        planned = Planned(op, inputs, full, attrs, self.origin, at, dtype, results)
        self.plan.ops.append(planned)
        return planned

    def _shapes(
        self,
        op: OpSpec,
        specs: dict[str, Any],
        weights: dict[str, Any],
        attrs: dict[str, Any],
        dtype: torch.dtype,
    ) -> tuple[dict[str, Any], tuple[TensorSpec, ...]]:
        """All attributes and the results' specs; the same shapes are asked for at many sites, so
        answers are kept.
        """
        key = (op, tuple(specs.values()), tuple(weights.values()), tuple(attrs.items()), dtype)
        known = self.state.known_specs
        try:
            if key in known:
                return known[key]
        except TypeError:  # an attribute that cannot be hashed, such as a slice
            return _solve(op, specs, weights, attrs, dtype)
        known[key] = _solve(op, specs, weights, attrs, dtype)
        return known[key]

    def _dtype(self, specs: dict[str, Any]) -> torch.dtype:
        """New weights take the precision of the op they come from, else of what they are applied
        to.
        """
        origin = self.origin
        if origin is not None:
            refs = [self.scope.param(origin, name) for name in origin.params]
            found = [
                ref.tensor.dtype
                for ref in refs
                if ref is not None and ref.tensor.is_floating_point()
            ]
            if found:
                return found[0]
        floating = [
            s.dtype
            for s in specs.values()
            if isinstance(s, TensorSpec) and s.dtype.is_floating_point
        ]
        return floating[0] if floating else torch.get_default_dtype()


_REFUSED = (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError)
"""What a setting that no such op takes, a stride of 0, say, makes Python or torch raise."""


def _solve(
    op: OpSpec,
    specs: dict[str, Any],
    weights: dict[str, Any],
    attrs: dict[str, Any],
    dtype: torch.dtype,
) -> tuple[dict[str, Any], tuple[TensorSpec, ...]]:
    both = {**specs, **weights}
    given = [name for name, spec in both.items() if spec is not None]
    filled = op.fill(
        attrs, given, {n: s.shape for n, s in both.items() if isinstance(s, TensorSpec)}
    )
    return filled, op.specs(specs, _in_dtype(weights, dtype), filled)


def _in_dtype(specs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Specs with the double-precision results of the rule counted in the precision they will be
    rounded to.
    """
    wide = (n for n, s in specs.items() if isinstance(s, TensorSpec) and s.dtype == torch.float64)
    return {**specs, **{name: TensorSpec(specs[name].shape, dtype) for name in wide}}


def construct(state: State, site: Site) -> Plan:
    """The plan of a site. Raises `LissomError` where the rule's right side cannot be computed."""
    return Constructor(state, site).run()
