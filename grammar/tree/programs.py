"""The tree of a file: declarations, pipelines, tests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from .expr import Expr, Keyword, Node, Param, Type, Word
from .rules import Binding, Claim, Fact, Rule


class Use(Node):
    """`use mylab.ops 2`: another rule file, optionally at a version of its vocabulary."""

    path: tuple[Word, ...]
    version: int | None


class Extern(Node):
    """`extern fn`: a function that the host registers; the shapes of its results are declared."""

    name: Word
    params: tuple[Param, ...]
    results: tuple[Type, ...]
    pure: bool


class OpParam(Node):
    """A weight or buffer of an op."""

    name: Word
    optional: bool
    type: Type


class OpAttr(Node):
    """A setting of an op, with its default."""

    name: Word
    type: Type
    default: Expr


class OpDim(Node):
    name: Word
    value: Expr


class OpTrait(Node):
    names: tuple[Word, ...]


class OpMixes(Node):
    """Along what the results depend on other positions: dimensions, `...`, settings that hold axis
    numbers, or `none` alone.
    """

    names: tuple[Word, ...]


class OpSums(Node):
    """Dimensions that the op only sums products over."""

    names: tuple[Word, ...]


class OpCost(Node):
    name: Word
    value: Expr


class Slot(Node):
    """One argument of a torch callable: its own name, and the input, parameter or attribute.

    `ours` is `_` where the argument has no meaning for the op; `variadic` takes any number.
    """

    theirs: Word
    ours: Word
    variadic: bool = False


class Signature(Node):
    """`torch.nn.functional.hardtanh(input = x, min_val)` and attributes that a spelling fixes."""

    function: tuple[Word, ...]
    slots: tuple[Slot, ...]
    fixed: tuple[Keyword, ...] = ()

    @property
    def dotted(self) -> str:
        return ".".join(word.text for word in self.function)


class OpMeaning(Node):
    """The torch function that the op stands for: what runs when the op is built or evaluated."""

    signature: Signature


class OpSpelling(Node):
    """Another way to write the op in a model: a module class, function, method or operator."""

    signature: Signature


OpItem = OpParam | OpAttr | OpDim | OpTrait | OpMixes | OpSums | OpCost | OpMeaning | OpSpelling


class Op(Node):
    name: Word
    inputs: tuple[Param, ...]
    results: tuple[Type, ...]
    items: tuple[OpItem, ...]


class Input(Node):
    name: Word
    type: Type


class Data(Node):
    name: Word
    value: Expr


class Budget(Node):
    condition: Expr
    data: Word | None


class Ref(Node):
    """A rule with its arguments, limited to the module paths that fit the glob `at`."""

    rule: Word
    args: tuple[Expr, ...] = ()
    keywords: tuple[Keyword, ...] = ()
    at: str | None = None


class Once(Node):
    refs: tuple[Ref, ...]


class Fixpoint(Node):
    refs: tuple[Ref, ...]
    limit: int | None


class Each(Node):
    ref: Ref
    order: Expr | None
    until: Expr | None


class First(Node):
    steps: tuple[Step, ...]


class Try(Node):
    steps: tuple[Step, ...]


class Calibrate(Node):
    data: Word


Step = Once | Fixpoint | Each | First | Try | Calibrate


class Stage(Node):
    name: Word
    steps: tuple[Step, ...]


class Until(Node):
    condition: Expr


class Recover(Node):
    """Training, with its settings: `recover tune { epochs = 3; until accuracy >= 98% }`."""

    name: Word
    settings: tuple[Binding | Until, ...]

    def setting(self, name: str) -> Expr | None:
        """What a setting says; None where it is left out."""
        found = (s for s in self.settings if isinstance(s, Binding))
        return next((s.value for s in found if s.targets[0].text == name), None)

    @property
    def until(self) -> Expr | None:
        return next((s.condition for s in self.settings if isinstance(s, Until)), None)


class Repeat(Node):
    """`repeat max 9 { ... } until cond`, or `repeat bits in [8, 6] { ... }`: once for each."""

    name: Word | None
    over: Expr | None
    limit: int | None
    items: tuple[BlockItem, ...]
    until: Expr | None


class Control(Node):
    """What is tried beside the pipeline, on a copy of the model as it is then."""

    name: Word
    items: tuple[BlockItem, ...]


class Checkpoint(Node):
    """The weights as they are, under a name."""

    name: Word


class Rewind(Node):
    """Back to the weights of a checkpoint, or to drawn ones: `rewind drawn(seed = 1)`."""

    target: Expr


class ExitOn(Node):
    """`exit on valid until drop(accuracy) <= 0.1%`: thresholds from data."""

    data: Word
    condition: Expr


BlockItem = Stage | Recover | Repeat | Control | Checkpoint | Rewind | ExitOn


class Verify(Node):
    items: tuple[Claim | Fact, ...]


class OnFail(Node):
    policy: Word


class Mode(Node):
    name: Word


PipelineItem = Input | Data | Budget | BlockItem | Verify | OnFail | Mode


class Pipeline(Node):
    name: Word
    params: tuple[Param, ...]
    items: tuple[PipelineItem, ...]

    def all(self, *kinds: type) -> tuple[Any, ...]:
        return tuple(item for item in self.items if isinstance(item, kinds))

    @property
    def blocks(self) -> tuple[BlockItem, ...]:
        """What runs, in order."""
        return self.all(Stage, Recover, Repeat, Control, Checkpoint, Rewind, ExitOn)

    def inside(self, *kinds: type) -> tuple[Any, ...]:
        """The same of these kinds, those inside of repeats and controls too, in order."""
        return tuple(item for item in opened(self.blocks) if isinstance(item, kinds))


def opened(items: Iterable[BlockItem]) -> Iterator[BlockItem]:
    """Items in order; what a repeat or a control holds follows it."""
    for item in items:
        yield item
        if isinstance(item, (Repeat, Control)):
            yield from opened(item.items)


class Fires(Node):
    rule: Word
    model: Expr


class Silent(Node):
    """`silent fold_bn on m() because "..."`: must not fire; why is a message or a code."""

    rule: Word
    model: Expr
    because: str | None


class Check(Node):
    condition: Expr


class Test(Node):
    name: Word
    cases: tuple[Fires | Silent | Check, ...]


Statement = Use | Extern | Op | Rule | Pipeline | Test


class File(Node):
    """One rule file."""

    statements: tuple[Statement, ...]

    def all(self, kind: type) -> tuple[Any, ...]:
        return tuple(statement for statement in self.statements if isinstance(statement, kind))
