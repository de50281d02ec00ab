"""What ONNX Runtime computes from a written file, beside what the model computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from .compared import Ran, Whole, export_verdict
from .exportable import Exportable, one_line, tensors_in
from .taps import Named, in_codes

MOVED = 0.1
"""Relative L2 distance of an output that codes may cause which round to the neighbour: layers that
read them move by more. What a part may do is asked of it alone.
"""

_INTEGER = ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "MatMulInteger")
_FIRST = "ONNX Runtime gives the same outputs"
_LEVELS = {
    _FIRST: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "and without rewriting the file": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


def check(
    given: Exportable, file: Path, named: Sequence[Named], wanted: Mapping[str, list[Any]]
) -> tuple[Sequence[Verdict], Sequence[Whole]]:
    """Each integer layer on what it reads in the model, what stands between them on what they give,
    then the whole on every example: as ONNX Runtime rewrites it by default, and as it is written.
    """
    try:
        onnx.checker.check_model(str(file), full_check=True)
        parts = (
            [_layers(given, file, named), *_between(given, file, named, wanted)] if named else []
        )
        return parts, [_whole(given, file, named, wanted, *how) for how in _LEVELS.items()]
    except Exception as error:  # ONNX Runtime has no class of errors of its own
        missing = "NOT_IMPLEMENTED" in str(error)
        how = "not checked" if missing else "tested"
        return [export_verdict(_FIRST, how, missing, detail=one_line(error))], ()


# -- the whole -------------------------------------------------------------------------------------


def _whole(
    given: Exportable,
    file: Path,
    named: Sequence[Named],
    wanted: Mapping[str, list[Any]],
    claim: str,
    level: Any,
) -> Whole:
    """Where no code differs inside, the outputs may differ by rounding alone."""
    session, inside = _session(file, level), _inside(given, file, named, level)
    rows = []
    for example in given.examples:
        found = _outputs_or_why(session, example.args)
        tensors = _as_many(wanted[example.label], found)
        exact = not named or (inside.startswith("0 ") and not rows)
        rows.append(Ran(example.label, found, tensors, given.rounding(tensors) if exact else MOVED))
    return Whole(claim, rows, inside)


def _as_many(values: list[Any], found: Sequence[Any]) -> list[Tensor]:
    """Outputs that are numbers are tensors in ONNX, unless they are left out."""
    given = [v for v in values if isinstance(v, Tensor | int | float)]
    tensors = [v if isinstance(v, Tensor) else torch.tensor(v) for v in given]
    return tensors if len(tensors) == len(found) else tensors_in(values)


def _inside(given: Exportable, file: Path, named: Sequence[Named], level: Any) -> str:
    """How many codes inside of the whole differ on the first example, and by how much."""
    codes = {layer.gives: layer.tap.wanted for layer in named if layer.tap.in_codes}
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
    # Without VNNI sums of uint8 and int8 would saturate in 16 bits.
    options.add_session_config_entry("session.x64quantprecision", "1")
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


def _layers(given: Exportable, file: Path, named: Sequence[Named]) -> Verdict:
    alone = partial(_alone, file, Extractor(onnx.load(file, load_external_data=False)), given)
    found = [(layer.tap, alone(layer)) for layer in named]
    claim = "each integer layer on what it reads"
    for tap, ran in found:
        wrong = tap.wrong(ran)
        if bool(wrong.any()):
            what = "codes" if tap.in_codes else "numbers"
            said = f"{tap.node.name}: {int(wrong.sum())} of {wrong.numel()} {what} are no rounding"
            return export_verdict(claim, "tested", False, len(named), detail=said)
    apart = [(ran.int() - tap.wanted.int()).abs() for tap, ran in found if tap.in_codes]
    differ, total = sum(int((a > 0).sum()) for a in apart), sum(a.numel() for a in apart)
    worst = max((int(a.max()) for a in apart), default=0)
    said = f"{differ:,} of {total:,} codes round to the neighbour; {_ran(file)}"
    return export_verdict(claim, "tested", True, len(named), worst, 1.0, said)


def _alone(file: Path, extractor: Extractor, given: Exportable, layer: Named) -> Tensor:
    """What a layer gives by itself; sizes may come from the inputs of the model."""
    inputs = dict(zip((v.name for v in extractor.graph.input), _fed(given.args), strict=True))
    inputs |= dict(zip(layer.read, layer.tap.given, strict=True))
    part = extractor.extract_model(list(inputs), [layer.gives])
    session = _session(_beside(file, part), ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    return torch.from_numpy(session.run(None, {n: v.numpy() for n, v in inputs.items()})[0])


def _between(
    given: Exportable, file: Path, named: Sequence[Named], wanted: Mapping[str, list[Any]]
) -> list[Verdict]:
    """What is read by layers, and what the model gives, from what layers give in the model."""
    extractor = Extractor(onnx.load(file, load_external_data=False))
    inputs = dict(zip((v.name for v in extractor.graph.input), _fed(given.args), strict=True))
    inputs |= {layer.gives: layer.tap.wanted for layer in named}
    reads = {n: v for layer in named for n, v in zip(layer.read, layer.tap.given, strict=True)}
    names = [value.name for value in extractor.graph.output]
    values = _as_many(wanted[given.examples[0].label], names)
    asked = reads | dict(zip(names, values, strict=True))
    asked = {name: value for name, value in asked.items() if name not in inputs}
    if not asked:
        return []
    part = extractor.extract_model(list(inputs), list(asked))
    session = _session(_beside(file, part), ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    found = session.run(list(asked), {name: value.numpy() for name, value in inputs.items()})
    rows = [
        Ran(
            name,
            [torch.from_numpy(value)],
            [want],
            0.0 if in_codes(want) else given.rounding([want]),
        )
        for (name, want), value in zip(asked.items(), found, strict=True)
    ]
    return [replace(Whole("what stands between them", rows).verdict, detail=f"{len(rows)} values")]


def _ran(file: Path) -> str:
    """Which integer kernels ONNX Runtime took."""
    rewritten = file.with_suffix(".rewritten")
    _session(file, ort.GraphOptimizationLevel.ORT_ENABLE_ALL, rewritten)
    model = onnx.load(rewritten, load_external_data=False)
    kinds = Counter(node.op_type for node in model.graph.node)
    ran = ", ".join(f"{kinds[name]} {name}" for name in _INTEGER if kinds[name])
    return f"ran in integers: {ran or 'none'}"
