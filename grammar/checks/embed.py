"""One pattern inside another graph of ops: the ground of overlap, reach and termination."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..tree import tree as t
from .declared import SymbolTable
from .sides import Operand, Sides, SideStep


@dataclass(slots=True)
class Embedding:
    """Which step of `inside` each step of the pattern meets, and which value each value meets."""

    steps: list[tuple[SideStep, SideStep]] = field(default_factory=list)
    values: dict[str, Operand] = field(default_factory=dict)


@dataclass(slots=True)
class EmbeddingSearch:
    """Matches a pattern from its root down. `loose` asks only whether both could be one graph."""

    known: SymbolTable
    makers: dict[str, SideStep]
    targets: dict[str, SideStep]
    loose: bool
    found: Embedding = field(default_factory=Embedding)

    def step(self, pattern: SideStep, target: SideStep) -> bool:
        if pattern.repeat or target.repeat or not self._ops(pattern, target):
            return False
        if not self._attrs(pattern, target):
            return False
        self.found.steps.append((pattern, target))
        for mine, theirs in zip(pattern.results, target.results, strict=False):
            self.found.values[mine] = theirs
        return self._operands(pattern, target)

    def _ops(self, pattern: SideStep, target: SideStep) -> bool:
        mine, theirs = set(pattern.ops), set(target.ops)
        if self.loose:
            return bool(mine & theirs) or pattern.is_wildcard or target.is_wildcard
        return pattern.is_wildcard or theirs <= mine

    def _attrs(self, pattern: SideStep, target: SideStep) -> bool:
        fixed = {name: expr for name, expr in pattern.settings.items() if is_literal(expr)}
        return all(self._agrees(expr, target.settings.get(n)) for n, expr in fixed.items())

    def _agrees(self, mine: t.Expr, theirs: t.Expr | None) -> bool:
        known = theirs is not None and is_literal(theirs)
        return mine == theirs if known else self.loose

    def _operands(self, pattern: SideStep, target: SideStep) -> bool:
        if len(pattern.operands) != len(target.operands):
            return False
        straight = list(zip(pattern.operands, target.operands, strict=True))
        if self._all(straight):
            return True
        if len(straight) != 2 or not self._commutes(pattern):
            return False
        swapped = zip(pattern.operands, reversed(target.operands), strict=True)
        return self._all(list(swapped))

    def _all(self, pairs: list[tuple[Operand, Operand]]) -> bool:
        saved = list(self.found.steps), dict(self.found.values)
        if all(self._operand(mine, theirs) for mine, theirs in pairs):
            return True
        self.found.steps, self.found.values = saved
        return False

    def _commutes(self, step: SideStep) -> bool:
        facts = list(self.known.facts(step.ops))
        return bool(facts) and all("commutative" in f.traits for f in facts)

    def _operand(self, mine: Operand, theirs: Operand) -> bool:
        if mine is None or (theirs is None and self.loose):
            return True
        if not isinstance(mine, str):
            return mine == theirs or (
                self.loose and isinstance(theirs, str) and theirs not in self.targets
            )
        maker = self.makers.get(mine)
        if mine in self.found.values:
            return self.found.values[mine] == theirs
        made = self.targets.get(theirs) if isinstance(theirs, str) else None
        if maker is not None and made is not None:
            return self.step(maker, made)
        if maker is not None and not (self.loose and isinstance(theirs, str)):
            return False
        self.found.values[mine] = theirs
        return True


def is_literal(expr: t.Expr) -> bool:
    """Whether an attribute is constrained to a value that the text gives."""
    if isinstance(expr, t.Unary):
        return is_literal(expr.operand)
    if isinstance(expr, (t.Tuple, t.List)):
        return all(map(is_literal, expr.items))
    return isinstance(expr, (t.Number, t.Frac, t.String, t.Constant))


def root(both: Sides) -> SideStep | None:
    """The op whose results the rest of the model reads, if there is one such op."""
    outputs = set(both.outputs)
    roots = [step for step in both.left if outputs & set(step.results)]
    return roots[0] if len(roots) == 1 else None


def embed(
    pattern: Sides, target: SideStep, targets: list[SideStep], known: SymbolTable, loose: bool
) -> Embedding | None:
    """The pattern with its root on `target`, or None."""
    top = root(pattern)
    if top is None:
        return None
    search = EmbeddingSearch(
        known, pattern.produced, {n: s for s in targets for n in s.results}, loose
    )
    if not search.step(top, target):
        return None
    covered = {id(mine) for mine, _ in search.found.steps}
    whole = all(id(step) in covered for step in pattern.left)
    return search.found if whole or loose else None
