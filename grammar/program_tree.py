"""The tree of a file: declarations, pipelines, tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .expr import Expr, Keyword, Node, Param, Type, Word
from .rule_tree import Binding, Claim, Fact, Rule


@dataclass(frozen=True, slots=True)
class Use(Node):
    """`use mylab.ops 2`: another rule file, optionally at a version of its vocabulary."""

    path: tuple[Word, ...]
    version: int | None


@dataclass(frozen=True, slots=True)
class Extern(Node):
    """`extern fn`: a function that the host registers; the shapes of its results are declared."""

    name: Word
    params: tuple[Param, ...]
    results: tuple[Type, ...]
    pure: bool


@dataclass(frozen=True, slots=True)
class OpParam(Node):
    """A weight or buffer of an op."""

    name: Word
    optional: bool
    type: Type


@dataclass(frozen=True, slots=True)
class OpAttr(Node):
    """A setting of an op, with its default."""

    name: Word
    type: Type
    default: Expr


@dataclass(frozen=True, slots=True)
class OpDim(Node):
    name: Word
    value: Expr


@dataclass(frozen=True, slots=True)
class OpTrait(Node):
    names: tuple[Word, ...]


@dataclass(frozen=True, slots=True)
class OpCost(Node):
    name: Word
    value: Expr


@dataclass(frozen=True, slots=True)
class Slot(Node):
    """One argument of a torch callable: its own name, and the input, parameter or attribute.

    `ours` is `_` where the argument has no meaning for the op; `variadic` takes any number.
    """

    theirs: Word
    ours: Word
    variadic: bool = False


@dataclass(frozen=True, slots=True)
class Signature(Node):
    """`torch.nn.functional.hardtanh(input = x, min_val)` and attributes that a spelling fixes."""

    function: tuple[Word, ...]
    slots: tuple[Slot, ...]
    fixed: tuple[Keyword, ...] = ()

    @property
    def dotted(self) -> str:
        return ".".join(word.text for word in self.function)


@dataclass(frozen=True, slots=True)
class OpMeaning(Node):
    """The torch function that the op stands for: what runs when the op is built or evaluated."""

    signature: Signature


@dataclass(frozen=True, slots=True)
class OpSpelling(Node):
    """Another way to write the op in a model: a module class, function, method or operator."""

    signature: Signature


OpItem = OpParam | OpAttr | OpDim | OpTrait | OpCost | OpMeaning | OpSpelling


@dataclass(frozen=True, slots=True)
class Op(Node):
    name: Word
    inputs: tuple[Param, ...]
    results: tuple[Type, ...]
    items: tuple[OpItem, ...]


@dataclass(frozen=True, slots=True)
class Input(Node):
    name: Word
    type: Type


@dataclass(frozen=True, slots=True)
class Data(Node):
    name: Word
    value: Expr


@dataclass(frozen=True, slots=True)
class Budget(Node):
    condition: Expr
    data: Word | None


@dataclass(frozen=True, slots=True)
class Ref(Node):
    """A rule with its arguments, limited to the module paths that fit the glob `at`."""

    rule: Word
    args: tuple[Expr, ...] = ()
    keywords: tuple[Keyword, ...] = ()
    at: str | None = None


@dataclass(frozen=True, slots=True)
class Once(Node):
    refs: tuple[Ref, ...]


@dataclass(frozen=True, slots=True)
class Fixpoint(Node):
    refs: tuple[Ref, ...]
    limit: int | None


@dataclass(frozen=True, slots=True)
class Each(Node):
    ref: Ref
    order: Expr | None
    until: Expr | None


@dataclass(frozen=True, slots=True)
class First(Node):
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Try(Node):
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Calibrate(Node):
    data: Word


Step = Once | Fixpoint | Each | First | Try | Calibrate


@dataclass(frozen=True, slots=True)
class Stage(Node):
    name: Word
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Recover(Node):
    name: Word
    settings: tuple[Binding, ...]


@dataclass(frozen=True, slots=True)
class Verify(Node):
    items: tuple[Claim | Fact, ...]


@dataclass(frozen=True, slots=True)
class OnFail(Node):
    policy: Word


@dataclass(frozen=True, slots=True)
class Mode(Node):
    name: Word


PipelineItem = Input | Data | Budget | Stage | Recover | Verify | OnFail | Mode


@dataclass(frozen=True, slots=True)
class Pipeline(Node):
    name: Word
    params: tuple[Param, ...]
    items: tuple[PipelineItem, ...]

    def all(self, *kinds: type) -> tuple[Any, ...]:
        return tuple(item for item in self.items if isinstance(item, kinds))


@dataclass(frozen=True, slots=True)
class Fires(Node):
    rule: Word
    model: Expr


@dataclass(frozen=True, slots=True)
class Silent(Node):
    """`silent fold_bn on m() because "..."`: must not fire; why is a message or a code."""

    rule: Word
    model: Expr
    because: str | None


@dataclass(frozen=True, slots=True)
class Check(Node):
    condition: Expr


@dataclass(frozen=True, slots=True)
class Test(Node):
    name: Word
    cases: tuple[Fires | Silent | Check, ...]


Statement = Use | Extern | Op | Rule | Pipeline | Test


@dataclass(frozen=True, slots=True)
class File(Node):
    """One rule file."""

    statements: tuple[Statement, ...]

    def all(self, kind: type) -> tuple[Any, ...]:
        return tuple(statement for statement in self.statements if isinstance(statement, kind))
