"""The tree of one rule: its clauses, patterns and build steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .expr import Expr, Keyword, Node, Param, Type, Word


@dataclass(frozen=True, slots=True)
class OpSet(Node):
    """One op name, `_` for any, or alternatives `(a | b)`."""

    names: tuple[Word, ...]


@dataclass(frozen=True, slots=True)
class Rest(Node):
    """`xs...` in a pattern: all further operands."""

    name: Word


@dataclass(frozen=True, slots=True)
class OpPattern(Node):
    """`y = conv2d(x, groups = 1) as c`. `repeat`: `?` (may be absent), `*` (a chain) or empty."""

    targets: tuple[Word, ...]
    ops: OpSet
    operands: tuple[Expr | Rest, ...]
    attrs: tuple[Keyword, ...]
    handle: Word | None
    repeat: Literal["", "?", "*"] = ""
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Path(Node):
    """`x`, or `c.weight`."""

    parts: tuple[Word, ...]

    def __str__(self) -> str:
        return ".".join(word.text for word in self.parts)


@dataclass(frozen=True, slots=True)
class ShapePattern(Node):
    """`x : f[N, C, H, W]` or `c.weight : [O, I, K, L]`."""

    path: Path
    type: Type


@dataclass(frozen=True, slots=True)
class SitePattern(Node):
    """`in c : "blocks.*"`: the module path of what `c` matched fits a glob."""

    name: Word
    glob: str


Pattern = OpPattern | ShapePattern | SitePattern


@dataclass(frozen=True, slots=True)
class Doc(Node):
    text: str


@dataclass(frozen=True, slots=True)
class Priority(Node):
    value: int


@dataclass(frozen=True, slots=True)
class Recursive(Node):
    """`recursive decreasing EXPR`: the rule may match what it made, since EXPR falls each time."""

    measure: Expr


@dataclass(frozen=True, slots=True)
class OnShared(Node):
    policy: Word


@dataclass(frozen=True, slots=True)
class Match(Node):
    name: Word | None
    patterns: tuple[Pattern, ...]


@dataclass(frozen=True, slots=True)
class Unless(Node):
    patterns: tuple[Pattern, ...]


@dataclass(frozen=True, slots=True)
class MatchDim(Node):
    dim: Word
    domain: Word


@dataclass(frozen=True, slots=True)
class MatchParam(Node):
    name: Word
    ops: OpSet


@dataclass(frozen=True, slots=True)
class MatchValue(Node):
    name: Word
    type: Type
    sites: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Guard(Node):
    """A condition and the reason that is given when it fails."""

    condition: Expr
    reason: str | None


@dataclass(frozen=True, slots=True)
class Hole(Node):
    """`where { ? }`: asks for the missing guard."""


@dataclass(frozen=True, slots=True)
class Where(Node):
    guards: tuple[Guard | Hole, ...]


@dataclass(frozen=True, slots=True)
class Binding(Node):
    targets: tuple[Word, ...]
    value: Expr


@dataclass(frozen=True, slots=True)
class Let(Node):
    bindings: tuple[Binding, ...]


@dataclass(frozen=True, slots=True)
class Assign(Node):
    """`c.weight := W`, `x := snap(x)` or `D := keep`."""

    path: Path
    value: Expr


@dataclass(frozen=True, slots=True)
class Effect(Node):
    """A call that moves numbers, such as `zero(readers(D), outside = keep)`."""

    call: Expr


@dataclass(frozen=True, slots=True)
class Perturb(Node):
    moves: tuple[Assign | Effect, ...]


@dataclass(frozen=True, slots=True)
class Build(Node):
    """`y = conv2d(x, weight = w) as d from c`: one op, or an alias of an existing value."""

    targets: tuple[Word, ...]
    value: Expr
    handle: Word | None
    origin: Word | None


@dataclass(frozen=True, slots=True)
class Store(Node):
    name: Word
    value: Expr


@dataclass(frozen=True, slots=True)
class Attach(Node):
    observer: Expr
    on: Word
    path: Path


@dataclass(frozen=True, slots=True)
class Exit(Node):
    name: Word
    condition: Expr


@dataclass(frozen=True, slots=True)
class Rewrite(Node):
    steps: tuple[Build | Assign | Store | Attach | Exit, ...]


@dataclass(frozen=True, slots=True)
class Train(Node):
    names: tuple[Word, ...]


@dataclass(frozen=True, slots=True)
class Claim(Node):
    """`error(y) <= 15% on calib`, `equal(y) within 1e-5`, `macs(after) < macs(before)`."""

    condition: Expr
    within: Expr | None
    data: Word | None


@dataclass(frozen=True, slots=True)
class Fact(Node):
    """What must hold before, holds after, no longer holds, or must not occur (`forbids`)."""

    kind: Literal["needs", "provides", "invalidates", "forbids"]
    names: tuple[Word, ...]


@dataclass(frozen=True, slots=True)
class Ensure(Node):
    items: tuple[Claim | Fact, ...]


Clause = (
    Doc | Priority | Recursive | OnShared | Match | Unless | MatchDim | MatchParam | MatchValue
    | Where | Let | Perturb | Rewrite | Train | Ensure
)  # fmt: skip

RuleKind = Literal["exact", "approx", "lossless", "observe"]


@dataclass(frozen=True, slots=True)
class Rule(Node):
    kind: RuleKind
    name: Word
    params: tuple[Param, ...]
    clauses: tuple[Clause, ...]

    def all(self, *kinds: type) -> tuple[Any, ...]:
        """The clauses of these kinds, in textual order."""
        return tuple(clause for clause in self.clauses if isinstance(clause, kinds))

    def one(self, kind: type) -> Any | None:
        """The first clause of this kind, or None."""
        return next(iter(self.all(kind)), None)
