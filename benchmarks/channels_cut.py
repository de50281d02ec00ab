"""One model through the channel cutting of lissom: a random half of everything that can be cut.

The cut model must compute what the whole model computes with the removed features left out of every
sum, to 1e-5 of relative L2 in float32. Where rounding is amplified beyond that, the same cut is
made in float64 and must agree to 1e-9.
"""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from capture_models import Build
from channels_models import Row
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_map

from lissom.grammar.diagnostics import LissomError
from lissom.grammar.library.program import program_of
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.apply.queries import QUESTIONS
from lissom.rewrite.capture.capture import Captured, capture
from lissom.rewrite.capture.inputs import as_case, doubled
from lissom.rewrite.channels.analyse import analyse
from lissom.rewrite.channels.classes import DimClass, classes
from lissom.rewrite.channels.cut import cut
from lissom.rewrite.channels.flow import Flow
from lissom.rewrite.channels.masked import masked
from lissom.rewrite.graph.index import GraphView
from lissom.rewrite.graph.snapshot import finish
from lissom.rewrite.journal import Journal
from lissom.rewrite.measure.compare import distance
from lissom.rewrite.measure.samples import Samples
from lissom.rewrite.ops.call import tensor_at
from lissom.rewrite.pipeline.strategy import Runner
from lissom.rewrite.rules.rule import compile_rule
from lissom.rewrite.rules.state import State
from lissom.rewrite.store.folder import load, save

OPEN = Path(__file__).resolve().parents[1] / "passes" / "attention.lissom"

SINGLE, DOUBLE = 1e-5, 1e-9
"""Relative L2 distances up to which two models are one, in float32 and in float64."""

SHOWS = 1e-4
"""Where the output moves less than this, agreement shows nothing."""

STORED = 60_000_000
"""Larger models are not written to disk."""


@dataclass(frozen=True)
class Prepared:
    """A captured model and what can be cut of it."""

    captured: Captured
    flow: Flow
    classes: tuple[DimClass, ...]

    @property
    def free(self) -> list[DimClass]:
        return [each for each in self.classes if not each.blocks]


def measured(build: Build) -> Callable[[Row], None]:
    """Fills a row with everything about one model."""

    def measure(row: Row) -> None:
        model, inputs = build()
        with torch.no_grad():
            _measure(model, inputs, row)

    return measure


def _measure(model: nn.Module, inputs: tuple[Any, ...], row: Row) -> None:
    prepared = _prepared(model, inputs, row)
    removed = random_half(prepared.free)
    if not removed:
        return
    row["stage"] = "cut"
    begun = time.process_time()
    new = cut(prepared.flow, removed)
    row["cut_s"] = time.process_time() - begun
    row["after"] = parameters(new)
    _judge(prepared, removed, new, inputs, row)
    if not row["diff"] <= SINGLE and row["kept"]:
        row["stage"] = "float64"
        row["diff64"] = _in_double(model, inputs)
    if row["after"] < STORED:
        row["stage"] = "store"
        row["stored"] = _stored(new, inputs)
    row["stage"] = "done"


def _prepared(model: nn.Module, inputs: tuple[Any, ...], row: Row) -> Prepared:
    row["stage"] = "capture"
    begun = time.process_time()
    captured = capture(model, inputs, prove=False)
    row |= {
        "capture_s": time.process_time() - begun,
        "how": captured.how,
        "before": parameters(captured.module),
        "nodes": len(captured.module.graph.nodes),
        "stage": "analyse",
    }
    begun = time.process_time()
    prepared = analysed(captured)
    row["analyse_s"] = time.process_time() - begun
    row |= {"free": len(prepared.free), "classes": len(prepared.classes)}
    row |= {"share": cuttable_share(prepared.flow), "blockers": blockers(prepared)}
    return prepared


def analysed(captured: Captured) -> Prepared:
    view = opened(captured)
    flow = analyse(view)
    return Prepared(captured, flow, tuple(classes(flow)))


def opened(captured: Captured) -> GraphView:
    """The graph with `torch.nn.MultiheadAttention` as the ops that it consists of: its heads are
    locked up. Each application is verified.
    """
    view = GraphView(captured.module)
    if not view.calls_of("multihead_attention"):
        return view
    (rule,) = program_of(OPEN.read_text()).own_rules.values()
    samples = Samples(tuple(captured.inputs))
    state = State(captured.module, view.vocabulary, FUNCTIONS, QUESTIONS, samples, Journal())
    Runner(state, "open").fixpoint([compile_rule(rule, {})])
    finish(state.module)
    return state.view


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def random_half(free: Iterable[DimClass], seed: int = 0) -> list[int]:
    """Half of the leaves of each class."""
    generator = torch.Generator().manual_seed(seed)
    removed = []
    for each in free:
        order = torch.randperm(each.size, generator=generator).tolist()
        removed += [each.leaves[i] for i in order[: each.size // 2]]
    return removed


# -- what can be cut -------------------------------------------------------------------------------


def blockers(prepared: Prepared, most: int = 3) -> list[str]:
    """The reasons that keep most features, each with their number and one node of it."""
    atoms = prepared.flow.atoms
    held = [atoms.blocked(leaf) for each in prepared.classes for leaf in each.leaves]
    number = Counter(block.reason for block in held if block is not None)
    node = {block.reason: block.node for block in reversed(held) if block is not None}
    return [f"{n} x {reason} ({node[reason]})" for reason, n in number.most_common(most)]


def cuttable_share(flow: Flow) -> float:
    """The share of the numbers in weight matrices (of layers, attention, embeddings) that lie at a
    position that can go, along one of their axes or another.
    """
    tensors = _matrices(flow.view.root)
    keys = {id(tensor_at(flow.view.root, path)): key for path, key in flow.paths.items()}
    total = sum(tensor.numel() for tensor in tensors)
    free = sum(t.numel() * (1 - _staying(flow, keys.get(id(t)), t)) for t in tensors)
    return free / max(total, 1)


def _matrices(root: fx.GraphModule) -> list[Tensor]:
    """The parameters that the graph reads, with two axes or more; tied ones once."""
    read: dict[int, Tensor] = {}
    for node in root.graph.nodes:
        if node.op == "call_module":
            held = list(root.get_submodule(str(node.target)).parameters())
        else:
            held = [tensor_at(root, str(node.target))] if node.op == "get_attr" else []
        read |= {id(t): t for t in held if isinstance(t, nn.Parameter)}
    return [t for t in read.values() if sum(extent > 1 for extent in t.shape) > 1]


def _staying(flow: Flow, key: Any, tensor: Tensor) -> float:
    """The share of a weight that every cut leaves."""
    share = 1.0
    for axis in range(tensor.ndim):
        tracks = [t.reshape(-1).tolist() for t in flow.params.get(key, ()) if t.shape[axis] > 1]
        free = [any(_is_free(flow, atom) for atom in atoms) for atoms in zip(*tracks, strict=True)]
        share *= 1 - sum(free) / max(len(free), 1)
    return share


def _is_free(flow: Flow, atom: int) -> bool:
    return atom != 0 and any(flow.atoms.blocked(leaf) is None for leaf in flow.atoms.leaves(atom))


# -- is it right -----------------------------------------------------------------------------------


def _judge(
    prepared: Prepared,
    removed: Sequence[int],
    new: fx.GraphModule,
    inputs: tuple[Any, ...],
    row: Row,
) -> None:
    """Compares the cut model with the whole one on the example and on twice its batch."""
    flow = prepared.flow
    row["stage"] = "reference"
    original = prepared.captured.module(*inputs)
    whole = masked(flow, removed)
    reference = whole(*inputs)
    row["stage"] = "run"
    got = new(*inputs)
    row |= {"kept": same_form(original, got), "diff": apart(reference, got)}
    row["moved"] = apart(original, got) if row["kept"] else math.inf
    case = doubled(as_case(inputs))
    if case is not None:
        row["stage"] = "batch"
        _judge_doubled((prepared.captured.module, whole, new), case.args, row)


def _judge_doubled(
    models: tuple[nn.Module, nn.Module, nn.Module], inputs: tuple[Any, ...], row: Row
) -> None:
    """Where the captured graph takes this batch, the cut one must; some models have theirs written
    into them. The reference may hold only at the example: its masks have the shapes of that.
    """
    original, reference, new = models
    expected = _given(original, inputs, row)
    if expected is None:
        return
    got = new(*inputs)
    row["kept"] = row["kept"] and same_form(expected, got)
    masked_result = _given(reference, inputs, row)
    if masked_result is not None:
        row["diff"] = max(row["diff"], apart(masked_result, got))
        row["batches"] = 2


def _given(model: nn.Module, inputs: tuple[Any, ...], row: Row) -> Any:
    """What the model gives; None where it does not take this batch."""
    try:
        return model(*inputs)
    except Exception as error:
        row["one_batch"] = f"{type(error).__name__}: {error}"[:200]
        return None


def same_form(left: Any, right: Any) -> bool:
    """Whether two outputs have one structure, shapes and types."""
    (one, how), (other, way) = tree_flatten(left), tree_flatten(right)
    pairs = list(zip(one, other, strict=False))
    return how == way and all(_form(a) == _form(b) for a, b in pairs)


def _form(value: Any) -> Any:
    return (value.shape, value.dtype) if isinstance(value, Tensor) else type(value)


def apart(left: Any, right: Any) -> float:
    """The largest relative L2 distance of two outputs; infinite where they have other forms or no
    finite numbers.
    """
    if not same_form(left, right):
        return math.inf
    pairs = zip(tree_flatten(left)[0], tree_flatten(right)[0], strict=True)
    found = [_distance(a, b) for a, b in pairs]
    return max(found, default=math.inf)


def _distance(left: Any, right: Any) -> float:
    if not isinstance(left, Tensor):
        return 0.0 if left == right else math.inf
    if left.is_floating_point() and not bool(left.isfinite().any()):
        return math.inf
    return distance(left, right)


def _in_double(model: nn.Module, inputs: tuple[Any, ...]) -> float | str:
    """The distance of the same cut in float64, or why there is none."""
    row: Row = {}
    try:
        args = tree_map(_as_double, inputs)
        prepared = _prepared(copy.deepcopy(model).double(), args, row)
        removed = random_half(prepared.free)
        _judge(prepared, removed, cut(prepared.flow, removed), args, row)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    return row["diff"]


def _as_double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _stored(module: fx.GraphModule, inputs: tuple[Any, ...]) -> str:
    """ "equal" if the model that is read back computes the same bits, or why it does not."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            save(module, Path(folder) / "model")
            back = load(Path(folder) / "model").module
        except LissomError as error:
            return f"refused: {error.diagnostics[0].code} {error.diagnostics[0].message}"[:200]
        return "equal" if apart(module(*inputs), back(*inputs)) == 0 else "DIFFERS"


# -- what came of it -------------------------------------------------------------------------------

EQUAL, NOTHING, SILENT = "equal", "nothing to cut", "moves nothing"
REFUSED, FAILED, WRONG, UNSEEN = "refused", "failed", "WRONG", "not captured"


def outcome(row: Mapping[str, Any]) -> str:
    """One word for a row. An error after the outputs were compared does not change what they say,
    and a model that rounding hides counts as wrong until float64 shows that it is not.
    """
    if "how" not in row:
        return UNSEEN
    if "moved" in row:
        return _verdict(row)
    if "error" in row:
        return REFUSED if "refused" in row else FAILED
    return NOTHING


def _verdict(row: Mapping[str, Any]) -> str:
    double = row.get("diff64", math.inf)
    exact = row["diff"] <= SINGLE or (not isinstance(double, str) and double <= DOUBLE)
    if not exact or not row["kept"] or row.get("stored") == "DIFFERS":
        return WRONG
    if row["stage"] == "batch":
        return FAILED
    return EQUAL if row["moved"] > SHOWS else SILENT
