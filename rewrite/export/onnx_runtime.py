"""What ONNX Runtime computes from a written file, beside what the model computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import torch
from onnx.utils import Extractor
from torch import Tensor

from ..journal import Verdict
from ..torch_internals import tree_leaves
from .compared import Ran, compared, export_verdict, rounding
from .exportable import Exportable, one_line
from .taps import Tap

MOVED = 0.02
"""Relative L2 distance of an output that codes may cause which round to the neighbour."""

_INTEGER = ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat")
_FIRST = "ONNX Runtime gives the same outputs"
_LEVELS = {
    _FIRST: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "and without rewriting the file": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}

Taps = Sequence[tuple[Tap, tuple[tuple[str, ...], str]]]


def check(
    given: Exportable, file: Path, taps: Taps, wanted: Sequence[Sequence[Tensor]]
) -> tuple[Verdict, ...]:
    """Each integer layer on what it reads in the model, then the whole on every example: as ONNX
    Runtime rewrites it by default, and as it is written.
    """
    try:
        onnx.checker.check_model(str(file), full_check=True)
        verdicts = [_layers(given, file, taps)] if taps else []
        return (*verdicts, *(_whole(given, file, taps, wanted, *how) for how in _LEVELS.items()))
    except Exception as error:  # ONNX Runtime has no class of errors of its own
        missing = "NOT_IMPLEMENTED" in str(error)
        how = "not checked" if missing else "tested"
        return (export_verdict(_FIRST, how, missing, detail=one_line(error)),)


# -- the whole -------------------------------------------------------------------------------------


def _whole(
    given: Exportable,
    file: Path,
    taps: Taps,
    wanted: Sequence[Sequence[Tensor]],
    claim: str,
    level: Any,
) -> Verdict:
    """Where no code differs inside, the outputs may differ by rounding alone."""
    session = _session(file, level)
    found = [Ran(e.label, _outputs_or_why(session, e.args)) for e in given.examples]
    allowed, differ = [rounding(wanted)] * len(wanted), _inside(given, file, taps, level)
    if taps:
        allowed = [allowed[0] if differ.startswith("0 ") else MOVED, *[MOVED] * (len(wanted) - 1)]
    return compared(claim, found, wanted, allowed, differ)


def _inside(given: Exportable, file: Path, taps: Taps, level: Any) -> str:
    """How many codes inside of the whole differ on the first example, and by how much."""
    codes = {gives: tap.wanted for tap, (_, gives) in taps if tap.in_codes}
    if not codes:
        return ""
    model = onnx.load(file, load_external_data=False)
    known = {value.name for value in model.graph.output}
    more = [value for value in model.graph.value_info if value.name in codes.keys() - known]
    model.graph.output.extend(more)
    session = _session(_beside(file, model), level)
    names = [value.name for value in session.get_outputs()]
    found = dict(zip(names, _outputs(session, given.args), strict=True))
    apart = [(found[name].int() - codes[name].int()).abs() for name in codes]
    count, total = sum(int((a > 0).sum()) for a in apart), sum(a.numel() for a in apart)
    most = max(int(a.max()) for a in apart)
    return f"{count:,} of {total:,} codes inside differ" + (f", by at most {most}" if most else "")


def _beside(file: Path, model: onnx.ModelProto) -> Path:
    """A file that reads the weights which lie beside another."""
    onnx.save(model, path := file.with_name("part"))
    return path


def _session(model: Path, level: Any, rewritten: Path | None = None) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    if rewritten is not None:
        options.optimized_model_filepath = str(rewritten)
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def _outputs_or_why(session: Any, args: tuple[Any, ...]) -> list[Tensor] | str:
    try:
        return _outputs(session, args)
    except Exception as error:
        return one_line(error)


def _outputs(session: Any, args: tuple[Any, ...]) -> list[Tensor]:
    names = [value.name for value in session.get_inputs()]
    feed = {name: value.numpy() for name, value in zip(names, _fed(args), strict=True)}
    return [torch.from_numpy(value) for value in session.run(None, feed)]


def _fed(args: tuple[Any, ...]) -> list[Tensor]:
    """What a file takes: tensors, whatever holds them."""
    return [leaf.detach() for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]


# -- each layer ------------------------------------------------------------------------------------


def _layers(given: Exportable, file: Path, taps: Taps) -> Verdict:
    alone = partial(_alone, file, Extractor(onnx.load(file, load_external_data=False)), given)
    found = [(tap, alone(tap, *names)) for tap, names in taps]
    wrong = [(tap, ran, tap.wrong(ran)) for tap, ran in found]
    claim = "each integer layer on what it reads"
    for tap, ran, where in wrong:
        if bool(where.any()):
            far = _apart(tap, ran).max().item()
            what = "codes" if tap.in_codes else "numbers"
            said = f"{tap.label}: {int(where.sum())} of {where.numel()} {what} are no rounding"
            return export_verdict(claim, "tested", False, len(taps), far, 1.0, said)
    pairs = [(_apart(tap, ran), tap) for tap, ran in found if tap.in_codes]
    worst = max((apart.max().item() for apart, _ in pairs), default=0.0)
    differ = sum(int((apart > 0).sum()) for apart, _ in pairs)
    total = sum(apart.numel() for apart, _ in pairs)
    said = f"{differ:,} of {total:,} codes round to the neighbour; {_ran(file)}"
    return export_verdict(claim, "tested", True, len(taps), worst, 1.0, said)


def _apart(tap: Tap, found: Tensor) -> Tensor:
    return (found.double() - tap.wanted.double()).abs()


def _alone(
    file: Path,
    extractor: Extractor,
    given: Exportable,
    tap: Tap,
    read: tuple[str, ...],
    gives: str,
) -> Tensor:
    """What a layer gives by itself; sizes may come from the inputs of the model."""
    inputs = dict(zip((v.name for v in extractor.graph.input), _fed(given.args), strict=True))
    inputs |= dict(zip(read, tap.given, strict=True))
    part = extractor.extract_model(list(inputs), [gives])
    session = _session(_beside(file, part), ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    return torch.from_numpy(session.run(None, {n: v.numpy() for n, v in inputs.items()})[0])


def _ran(file: Path) -> str:
    """Which integer kernels ONNX Runtime took."""
    rewritten = file.with_suffix(".rewritten")
    _session(file, ort.GraphOptimizationLevel.ORT_ENABLE_ALL, rewritten)
    model = onnx.load(rewritten, load_external_data=False)
    kinds = Counter(node.op_type for node in model.graph.node)
    ran = ", ".join(f"{kinds[name]} {name}" for name in _INTEGER if kinds[name])
    return f"ran in integers: {ran or 'none'}"
