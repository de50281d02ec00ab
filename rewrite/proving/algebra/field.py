"""Is the exact half of a rule an identity? Decided at one site, in a finite field.

Inputs, weights and constants of the site become random residues modulo p. The perturbed original
and the rewrite run on them; a wrong identity of degree d survives a trial with probability at most
d / |S|, S being the set that numbers are drawn from (Schwartz 1980, Zippel 1979). What is decided
is algebra, at the shapes and settings of this site: the rounding of numbers is outside of it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from ....grammar.tree import tree as t
from ...apply.plan import construct
from ...apply.planned import Plan
from ...apply.run import operand_value
from ...apply.verify import named_weights
from ...match.match import result_parts
from ...match.site import Site
from ...ops.spec import TensorSpec
from ...rules.scope import ParamRef
from ...rules.state import State
from .field_ops import EXACT
from .field_scope import FAILURES, FieldScope, Weights
from .field_tensor import Field, World
from .residues import PRIME, Track, Vanished, degree, survival

PROVED, WRONG, UNDECIDED = "proved", "wrong", "undecided"

CERTAIN = 1e-6
"""Up to this probability of chance, agreement in all trials counts as a proof."""

WHOLE = "nothing that the site reads is floating"
"""Why nothing is decided where no operand is floating."""

REDRAWS = 4
"""How often a trial is drawn again when a denominator vanishes."""


@dataclass(frozen=True, slots=True)
class FieldResult:
    """What the trials say about one site.

    proved: equal in all of them. wrong: different where only arithmetic is involved. undecided:
    different, but opaque functions, free variables or a condition on numbers are involved; or not
    expressible. `reason` says which. degree: bound for the polynomial that is zero where both sides
    agree. error: bound for the probability that a wrong identity is called proved; 1.0 says
    nothing. assumed: functions of the rule whose results stand for any numbers of their shape.
    shapes: of inputs and weights by name.
    """

    verdict: str
    reason: str
    trials: int
    prime: int = PRIME
    degree: int = 0
    error: float = 1.0
    assumed: tuple[str, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def check_field(state: State, site: Site, trials: int = 4, seed: int = 0) -> FieldResult:
    """Runs both sides of an examined site on random residues; nothing is changed."""
    if site.rule.kind == "approx" and not site.rule.source.all(t.Perturb):
        return FieldResult(UNDECIDED, "the rule has no `perturb`, and so no exact half", 0)
    if not _is_floating(site):
        return FieldResult(UNDECIDED, WHOLE, 0)
    found: list[_Trial] = []
    for number in range(trials):
        try:
            found.append(_redrawn(state, site, seed * trials + number))
        except FAILURES as error:
            return FieldResult(UNDECIDED, f"not expressible: {_line(error)}", number)
        except Vanished as error:
            return FieldResult(UNDECIDED, f"{error} is zero in every draw", number)
    return _judged(found)


def _is_floating(site: Site) -> bool:
    """Whether anything can become residues: whole numbers stay what they are."""
    read = {node for call in site.calls for node in call.node.all_input_nodes} - {*site.nodes}
    specs = [node.meta.get("val") for node in read]
    held = any(path is not None for call in site.calls for path in call.params.values())
    return held or any(isinstance(s, TensorSpec) and s.dtype.is_floating_point for s in specs)


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _redrawn(state: State, site: Site, seed: int) -> _Trial:
    for again in range(REDRAWS - 1):
        try:
            return _Trial(state, site, World(seed * REDRAWS + again, EXACT))
        except Vanished:
            continue
    return _Trial(state, site, World(seed * REDRAWS + REDRAWS - 1, EXACT))


def _judged(found: list[_Trial]) -> FieldResult:
    differences = [trial.difference for trial in found if trial.difference]
    first = found[0]
    assumed, shapes = tuple(first.scope.assumed), first.shapes
    degrees = max((degree(*pair) for trial in found for pair in trial.tracks), default=0)
    if not differences:
        error = math.prod(trial.survival for trial in found)
        reason = "" if error <= CERTAIN else f"equal, but by chance with probability <= {error:.2g}"
        verdict = UNDECIDED if reason else PROVED
        return FieldResult(verdict, reason, len(found), PRIME, degrees, error, assumed, shapes)
    doubt = next((trial.doubt for trial in found if trial.difference and trial.doubt), "")
    if not doubt and len(differences) < len(found):
        doubt = f"it holds for some numbers: {len(found) - len(differences)} of {len(found)} trials"
    reason = f"{differences[0]}; {doubt}" if doubt else differences[0]
    verdict = UNDECIDED if doubt else WRONG
    return FieldResult(verdict, reason, len(found), PRIME, degrees, 1.0, assumed, shapes)


# -- one trial -------------------------------------------------------------------------------------


class _Trial:
    """Both sides on one draw.

    difference: how an output differs, "" if none does. doubt: why a difference shows no mistake.
    typed: an op that names a type of numbers, "" where none does.
    """

    def __init__(self, state: State, site: Site, world: World) -> None:
        self.state, self.world = state, world
        bound = site.bindings.values.items()
        self.names = {value: name for name, value in bound if isinstance(value, fx.Node)}
        self.drawn = Weights(site, world)
        self.scope = FieldScope(site, self.drawn)
        self.difference = self.doubt = ""
        named = (call.op.name for call in site.calls if call.op.names_type(call.attrs))
        self.typed = next(named, "")
        self.tracks: list[tuple[Track, Track]] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        with torch.no_grad():
            self.scope.bind_lets()
            apart = replace(site, scope=self.scope)
            plan = construct(_without_memory(state), apart)
            left = self._left(apart, plan)
            right = self._right(plan, left, site.gone)
        for name, node in site.outputs.items():
            self._compare(name, left[node], operand_value(plan.outputs[name], right))

    @property
    def survival(self) -> float:
        return max((survival(*pair) for pair in self.tracks), default=0.0)

    # -- running -----------------------------------------------------------------------------------

    def _left(self, site: Site, plan: Plan) -> dict[Any, Any]:
        """The perturbed original."""
        extra = [node for node in plan.reads if node not in site.nodes]
        env = self._inputs([*site.inputs, *extra])
        for node in named_weights(site, plan):
            env[node] = plan.moved.get(str(node.target), self.drawn.at(str(node.target)))
        self.shapes.update(self.drawn.shapes)
        for call in site.calls:
            inputs = _by_name(call.op.inputs, call.inputs, env)
            params = {name: self._param(path, plan) for name, path in call.params.items()}
            value = env[call.node] = call.op.run(inputs, params, call.attrs)
            if isinstance(value, (tuple, list)):
                env.update((part, value[i]) for i, part in result_parts(call.node).items())
        return env

    def _inputs(self, nodes: list[fx.Node]) -> dict[Any, Any]:
        """Random residues; whole numbers and truth values as the model has them."""
        found = {n: n.meta.get("val") for n in nodes if n.op != "get_attr"}
        specs = {n: spec for n, spec in found.items() if isinstance(spec, TensorSpec)}
        self.shapes.update((self.names.get(n, n.name), spec.shape) for n, spec in specs.items())
        real = [n for n, spec in specs.items() if not spec.dtype.is_floating_point]
        recorded = self.state.samples.values(self.state.module, real) if real else {}
        return {
            n: recorded[n] if n in recorded else self.world.variable(spec.shape)
            for n, spec in specs.items()
        }

    def _param(self, path: str | None, plan: Plan) -> Any:
        return None if path is None else plan.moved.get(path, self.drawn.at(path))

    def _right(self, plan: Plan, left: dict[Any, Any], gone: set[fx.Node]) -> dict[Any, Any]:
        """The rewrite. It may read what the match keeps."""
        env = {key: value for key, value in left.items() if key not in gone}
        for planned in plan.ops:
            inputs = _by_name(planned.op.inputs, planned.inputs, env)
            params = {name: self._built(value) for name, value in planned.params.items()}
            env[planned] = planned.op.run(inputs, params, planned.attrs)
        return env

    def _built(self, value: Any) -> Any:
        if isinstance(value, ParamRef):
            return self.drawn.at(value.path)
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return self.world.lift(value) if floating else value

    # -- comparing ---------------------------------------------------------------------------------

    def _compare(self, name: str, left: Any, right: Any) -> None:
        if not isinstance(left, Field) or not isinstance(right, Field):
            same = torch.equal(left, right) if _tensors(left, right) else left is right
            self.difference = self.difference or ("" if same else f"`{name}` differs")
            return
        self.tracks.append((left.track, right.track))
        if left.shape != right.shape:
            self.difference = f"`{name}` is {list(left.shape)} before, {list(right.shape)} after"
            return
        apart = left.residues != right.residues
        if not bool(apart.any()):
            return
        self.difference = f"`{name}` differs in {int(apart.sum())} of {apart.numel()} elements"
        if left.track.free or right.track.free:
            self.doubt = "opaque functions or free numbers are involved"
        elif self.scope.unmet():
            self.doubt = f"it may need `{self.scope.unmet()}`"
        elif self.typed:
            self.doubt = f"`{self.typed}` rounds to the type that it names"


def _tensors(*values: Any) -> bool:
    plain = (isinstance(value, Tensor) and not isinstance(value, Field) for value in values)
    return all(plain)


def _by_name(specs: Any, values: tuple[Any, ...], env: dict[Any, Any]) -> dict[str, Any]:
    found = dict.fromkeys((spec.name for spec in specs), None)
    return found | {s.name: operand_value(v, env) for s, v in zip(specs, values, strict=False)}


def _without_memory(state: State) -> State:
    """A state whose caches are its own: settings computed here are not those of the model."""
    apart = copy.copy(state)
    apart.known_specs = {}
    return apart
