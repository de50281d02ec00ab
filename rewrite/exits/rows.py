"""Which values hold a row for each sample, and that samples know nothing of each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..graph.exits import exits_of, outputs_of
from ..graph.runs import RunFailed, record
from ..journal import Verdict, VerdictKind
from ..measure.batches import batch_size, part
from ..measure.compare import equality_at
from ..measure.samples import Example
from ..runtime.exits import EarlyExit
from .parts import Parts, cannot_leave, sizes_of
from .segments import Behind, early_exit, has_exits

LEAVING = "samples that leave change nothing for the others"


def behind_exits(module: fx.GraphModule, examples: Sequence[Example]) -> Behind:
    """What goes on behind the exits of a compiled graph: whether it holds a row for each sample is
    told by batches of several sizes. Raises R017 for a value that holds its samples in another way.
    """
    if not has_exits(module):
        return Behind()
    sizes, parts = sizes_of(module), Parts.of(module, sizes_of(module))
    names = {node.name for nodes in parts.handed_on for node in nodes}
    answers = {
        n.name for n in (*outputs_of(module.graph), *(e.logits for e in exits_of(module.graph)))
    }
    nodes = {n.name: n for n in module.graph.nodes if n.name in names | answers}
    with torch.no_grad():
        runs = [record(module, list(nodes.values()), example.args) for example in examples]
    counts = [batch_size(example.args) for example in examples]
    found = {name: _holds_rows(name, [r[n] for r in runs], counts) for name, n in nodes.items()}
    odd = next((name for name in answers if not found[name]), "")
    if odd:
        raise cannot_leave(f"`{odd}` has no row for each sample")
    return Behind({name: found[name] for name in names}, sizes)


def _holds_rows(name: str, values: Sequence[Tensor], sizes: Sequence[int]) -> bool:
    pairs = list(zip(values, sizes, strict=True))
    if all(v.dim() and len(v) == size for v, size in pairs):
        return True
    first, size = pairs[0]
    if all(v.shape == first.shape for v, other in pairs if other != size):
        return False
    shapes = " and ".join(f"{list(v.shape)} at batch {size}" for v, size in pairs[:2])
    text = f"`{name}`, which is read behind the exit, is {shapes}: its first axis is not the batch"
    raise cannot_leave(text)


def leaving_changes_nothing(module: fx.GraphModule, examples: Sequence[Example]) -> Verdict:
    """Whether samples get the same alone and in a batch, up to rounding: where every other one
    leaves at each exit, and where nobody does.
    """
    nodes = len(module.graph.nodes)
    try:
        behind = behind_exits(module, examples)
        for every in (0, 2):
            batch = _Forced(early_exit(module, behind), every)
            alone = _EachAlone(early_exit(module, behind), every)
            found = equality_at(alone, batch, examples[:1], nodes)
            if not found.holds:
                break
    except RunFailed as error:
        why = f"it does not run at another size, or with fewer samples: {error.reason}"
        raise cannot_leave(why) from None
    return replace(found, claim=LEAVING, kind=VerdictKind.CLAIM)


@dataclass
class _Every:
    """The first of all samples leaves, and every so many behind it; nobody for 0."""

    every: int
    counts: bool = False
    test: str = ">"
    threshold: float = 0.0

    def __call__(self, score: Tensor) -> Tensor:
        if not self.every:
            return torch.zeros_like(score, dtype=torch.bool)
        return torch.arange(len(score), device=score.device) % self.every == 0


class _Forced(nn.Module):
    """A network of which samples leave by their places in the batch."""

    def __init__(self, network: EarlyExit, every: int) -> None:
        super().__init__()
        self.network = network
        network.tests = [_Every(every) for _ in network.tests]  # type: ignore[misc]

    def forward(self, *args: Any) -> Any:
        return self.network(*args)


class _EachAlone(_Forced):
    """The same samples, each alone through the parts in front of its exit."""

    def forward(self, *args: Any) -> Any:
        _, exits = self.network(*args, return_exit=True)
        found = torch.cat(list(self._each(args, exits)))
        return self.network.outputs(found)

    def _each(self, args: tuple[Any, ...], exits: Tensor) -> Iterator[Tensor]:
        for at, depth in enumerate(exits.tolist()):
            yield self.network.by_hand(depth, part(args, len(exits), at + 1, at), {})
