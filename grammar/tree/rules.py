"""The tree of one rule: its clauses, patterns and build steps."""

from __future__ import annotations

from typing import Any, Literal, get_args

from .expr import Expr, Keyword, Node, Param, Type, Word


class OpSet(Node):
    """One op name, `_` for any, or alternatives `(a | b)`."""

    names: tuple[Word, ...]


class Rest(Node):
    """`xs...` in a pattern: all further operands."""

    name: Word


class OpPattern(Node):
    """`y = conv2d(x, groups = 1) as c`. `repeat`: `?` (may be absent), `*` (a chain) or empty."""

    targets: tuple[Word, ...]
    ops: OpSet
    operands: tuple[Expr | Rest, ...]
    attrs: tuple[Keyword, ...]
    handle: Word | None
    repeat: Literal["", "?", "*"] = ""
    shared: bool = False


class Path(Node):
    """`x`, or `c.weight`."""

    parts: tuple[Word, ...]

    def __str__(self) -> str:
        return ".".join(word.text for word in self.parts)


class ShapePattern(Node):
    """`x : f[N, C, H, W]` or `c.weight : [O, I, K, L]`."""

    path: Path
    type: Type


class SitePattern(Node):
    """`in c : "blocks.*"`: the module path of what `c` matched fits a glob."""

    name: Word
    glob: str


Pattern = OpPattern | ShapePattern | SitePattern


class Doc(Node):
    text: str


class Priority(Node):
    value: int


class Recursive(Node):
    """`recursive decreasing EXPR`: the rule may match what it made, since EXPR falls each time."""

    measure: Expr


class OnShared(Node):
    policy: Word


class Match(Node):
    name: Word | None
    patterns: tuple[Pattern, ...]


class Unless(Node):
    patterns: tuple[Pattern, ...]


class MatchDim(Node):
    dim: Word
    domain: Word


class MatchParam(Node):
    name: Word
    ops: OpSet


class MatchValue(Node):
    name: Word
    type: Type
    sites: tuple[str, ...]


class Guard(Node):
    """A condition and the reason that is given when it fails."""

    condition: Expr
    reason: str | None


class Hole(Node):
    """`where { ? }`: asks for the missing guard."""


class Where(Node):
    guards: tuple[Guard | Hole, ...]


class Binding(Node):
    targets: tuple[Word, ...]
    value: Expr


class Let(Node):
    bindings: tuple[Binding, ...]


class Assign(Node):
    """`c.weight := W`, `x := snap(x)` or `D := keep`."""

    path: Path
    value: Expr


class Effect(Node):
    """A call that moves numbers, such as `zero(readers(D), outside = keep)`."""

    call: Expr


class Perturb(Node):
    moves: tuple[Assign | Effect, ...]


class Build(Node):
    """`y = conv2d(x, weight = w) as d from c`: one op, or an alias of an existing value."""

    targets: tuple[Word, ...]
    value: Expr
    handle: Word | None
    origin: Word | None


class Store(Node):
    name: Word
    value: Expr


class Attach(Node):
    observer: Expr
    on: Word
    path: Path


class Exit(Node):
    name: Word
    condition: Expr


class Rewrite(Node):
    steps: tuple[Build | Assign | Store | Attach | Exit, ...]


class TrainAs(Node):
    """`y.weight := expr from start`: what the model computes with, and which numbers move first."""

    path: Path
    value: Expr
    start: Expr | None


class Train(Node):
    """`train { head }`: what a build made and nobody trained yet. `train { y.weight := expr }`:
    what the model computes with while the numbers of a weight are trained.
    """

    names: tuple[Word, ...]
    constraints: tuple[TrainAs, ...] = ()


class Claim(Node):
    """`error(y) <= 15% on calib`, `equal(y) within 1e-5`, `macs(after) < macs(before)`."""

    condition: Expr
    within: Expr | None
    data: Word | None


class Fact(Node):
    """What must hold before, holds after, no longer holds, or must not occur (`forbids`)."""

    kind: Literal["needs", "provides", "invalidates", "forbids"]
    names: tuple[Word, ...]


class Ensure(Node):
    items: tuple[Claim | Fact, ...]


Clause = (
    Doc | Priority | Recursive | OnShared | Match | Unless | MatchDim | MatchParam | MatchValue
    | Where | Let | Perturb | Rewrite | Train | Ensure
)  # fmt: skip

RuleKind = Literal["exact", "approx", "lossless", "observe"]
RULE_KINDS: tuple[str, ...] = get_args(RuleKind)


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
