"""Steps with the names of their declarations filled in, and the faults found on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice, product

from ..algebra.unify import Shape, Solver
from ..diagnostics import Label
from ..tree import tree as t
from .declared import OpFacts
from .sides import Sides, SideStep
from .term import Term
from .terms import Terms

MAX_CHOICES = 8
"""Alternatives multiply: a rule with more combinations is checked for the first ones."""

WIDTHS = {"int": 1, "bool": 1, "int2": 2, "int3": 3}


@dataclass(slots=True)
class OpInstance:
    """One step with the names of its declaration filled in."""

    step: SideStep
    facts: OpFacts
    local: Terms
    weights: dict[str, Term]
    inputs: list[Shape]
    results: list[Shape] = field(default_factory=list)

    @property
    def types(self) -> tuple[t.Type, ...]:
        """The declared type of each result; of an op with as many results as its attributes say, of
        each that has a name.
        """
        declared = self.facts.decl.results
        return declared[:1] * len(self.step.results) if "many" in self.facts.traits else declared


@dataclass(slots=True)
class ShapeFault:
    """Two shapes that can never be equal, or a size that has two values."""

    code: str
    message: str
    labels: tuple[Label, ...]


def never(step: SideStep) -> ShapeFault:
    return ShapeFault("P004", "the pattern can never match", (Label(step.whole, "here"),))


def unread(
    step: SideStep,
    chain: SideStep | None,
    before: Callable[[str], Shape],
    after: Callable[[str], Shape],
    solver: Solver,
) -> dict[str, Shape]:
    """The results of a build whose op nobody knows here. A matched chain on another value gives
    what it gave before, where both values have one shape.
    """
    pairs = () if chain is None else zip(step.reads, chain.reads, strict=False)
    shapes = [(solver.shape(after(new)), solver.shape(before(old))) for new, old in pairs]
    if chain is not None and all(new == old for new, old in shapes):
        return dict.fromkeys(step.results, before(chain.results[0]))
    return {name: (solver.rest(("built", name)),) for name in step.results}


def apart(inst: OpInstance, code: str) -> ShapeFault:
    message = f"the operands of `{inst.facts.name}` have sizes that differ"
    found = ShapeFault(code, message, (Label(inst.step.whole),))
    return never(inst.step) if code == "P004" else found


def bad_input(inst: OpInstance, operand: object, code: str) -> ShapeFault:
    step, name = inst.step, inst.facts.name
    if code == "P004":
        return never(step)
    shown = operand if isinstance(operand, str) and operand[0] != "%" else "the nested op"
    place = Label(inst.facts.decl.inputs[0].span, "declared here")
    message = f"`{shown}` does not fit as input of `{name}`"
    return ShapeFault(code, message, (Label(step.whole), place))


def low(default: t.Expr) -> int:
    """The smallest value worth trying: 0 for an attribute that is 0 by default, 1 otherwise."""
    negative = isinstance(default, t.Unary)
    return 0 if negative or (isinstance(default, t.Number) and default.value == 0) else 1


def widened(term: Term, width: int) -> Term:
    """A single number stands for a pair."""
    if width > 1 and term.items is None and term.number is not None:
        return Term(items=(Term((), term.number),) * width)
    return term


def inputs_of(step: SideStep, facts: OpFacts) -> Iterator[tuple[t.Param, object]]:
    """(declared input, operand) pairs; a variadic input takes all that is left."""
    params = list(facts.inputs)
    for index, operand in enumerate(step.operands):
        place = min(index, len(params) - 1)
        if place >= 0 and not isinstance(operand, t.Rest):
            yield params[place], operand


def keeps_shape(facts: OpFacts) -> bool:
    """Whether an op with one input gives what has the shape of it."""
    if len(facts.inputs) != 1 or len(facts.decl.results) != 1:
        return False
    return facts.inputs[0].type.dims == facts.decl.results[0].dims is not None


def ordered(steps: list[SideStep]) -> list[SideStep]:
    """Producers before readers; steps of a cycle keep their order."""
    made = {name: step for step in steps for name in step.results}
    done: list[SideStep] = []
    waiting, seen = list(reversed(steps)), set()
    while waiting:
        step = waiting[-1]
        needs = [made[n] for n in step.reads if n in made and id(made[n]) not in seen]
        seen.add(id(step))
        if needs:
            waiting += [s for s in needs if id(s) not in seen]
            continue
        waiting.pop()
        if all(step is not other for other in done):
            done.append(step)
    return done


def choices(both: Sides) -> Iterator[dict[int, str]]:
    """Each combination of the alternatives on the left, by the identity of the step."""
    picks = [[(id(step), op) for op in step.ops] for step in both.left]
    for combination in islice(product(*picks), MAX_CHOICES):
        yield dict(combination)
