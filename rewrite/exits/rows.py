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
from ..torch_internals import tree_leaves, tree_map
from .order import order_in
from .parts import Parts, cannot_leave
from .segments import Behind, early_exit, has_exits

LEAVING = "samples that leave change nothing for the others"


def behind_exits(module: fx.GraphModule, examples: Sequence[Example]) -> Behind:
    """What goes on behind the exits of a compiled graph: whether it holds a row for each sample is
    told by batches of several sizes. Raises R017 for a value that holds its samples in another way.
    """
    if not has_exits(module):
        return Behind()
    parts = Parts.of(module)
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
    return Behind({name: found[name] for name in names}, parts.sizes, order_in(module))


def _holds_rows(name: str, values: Sequence[Any], sizes: Sequence[int]) -> bool:
    if not all(isinstance(value, Tensor) for value in values):  # a setting of the call
        return False
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
    """Whether the network is the model where nobody leaves, and samples get the same alone and in a
    batch, up to rounding: where nobody leaves, and where every other one does at one of the exits.
    """
    nodes, exits = len(module.graph.nodes), range(len(exits_of(module.graph)))
    try:
        behind = behind_exits(module, examples)
        found = equality_at(module, _Forced(early_exit(module, behind), None), examples, nodes)
        for at in (None, *exits) if found.holds else ():
            batch = _Forced(early_exit(module, behind), at)
            alone = _EachAlone(early_exit(module, behind), at)
            found = equality_at(alone, batch, [_several(examples)], nodes)
            if not found.holds:
                break
    except RunFailed as error:
        why = f"it does not run at another size, or with fewer samples: {error.reason}"
        raise cannot_leave(why) from None
    return replace(found, claim=LEAVING, kind=VerdictKind.CLAIM)


def _several(examples: Sequence[Example]) -> Example:
    """The first example of which some samples can leave and others stay, with samples that differ.
    Raises R017.
    """
    found = next((e for e in examples if batch_size(e.args) > 1), None)
    if found is None:
        raise cannot_leave("the model was only run on single samples: give an example of two")
    if found is examples[0] and not _alike(found.args, batch_size(found.args)):
        return found
    return Example(found.label, tree_map(_told_apart, found.args))


def _alike(args: tuple[Any, ...], size: int) -> bool:
    leaves = (leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor) and leaf.dim())
    rows = [leaf for leaf in leaves if len(leaf) == size]
    return all(torch.equal(leaf, leaf[:1].expand_as(leaf)) for leaf in rows)


def _told_apart(leaf: Any) -> Any:
    """Numbers moved by a part of their size, each sample's in its own way: samples that were made
    of one are the same to a mean, say.
    """
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
        return leaf
    noise = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(0)).to(leaf)
    return leaf + noise * (leaf.abs().mean() / 4 if leaf.any() else 1)


@dataclass
class _Every:
    """Every other sample leaves, the first one among them; nobody where `closed`."""

    closed: bool
    counts: bool = False
    test: str = ">"
    threshold: float = 0.0

    def __call__(self, score: Tensor) -> Tensor:
        places = torch.arange(len(score), device=score.device)
        return (places % 2 == 0) & (not self.closed)


class _Forced(nn.Module):
    """A network of which samples leave by their places in the batch. at: the exit where they do,
    None where nobody leaves.
    """

    def __init__(self, network: EarlyExit, at: int | None) -> None:
        super().__init__()
        self.network = network
        network.tests = [_Every(k != at) for k in range(len(network.tests))]  # type: ignore[misc]

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
