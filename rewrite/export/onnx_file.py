"""`.onnx`: floats as torch.onnx writes them, integer layers between QuantizeLinear and
DequantizeLinear (`qdq.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import fx

from ...grammar.diagnostics import Diagnostic, LissomError
from ..journal import Verdict
from ..measure.compare import outputs
from .compared import Whole, export_verdict
from .exportable import Exportable, one_line, quiet, traced
from .taps import Named, Tap, spelled

OPSET, OPSET_OF_BFLOAT16 = 20, 22
IN_ONE_FILE = 3 << 29
"""Bytes of weights up to which they lie in the file itself: protobuf holds 2 GiB."""

Wanted = dict[str, list[Any]]
"""What the model gives on the examples, by their labels."""


def onnx_file(given: Exportable) -> Any:
    """Makes the file, and runs it in ONNX Runtime where that is installed. Raises U010 for packages
    that are missing, A040 for what has no form in ONNX.
    """
    require_packages("onnx", "onnxscript")
    wanted = {example.label: outputs(given.module, example.args) for example in given.examples}
    taps = spelled(given)
    inner = [node for node in _nodes(taps) if node.op != "placeholder"]
    _give_besides(given.module, inner)
    return partial(_make, taps, inner, wanted)


def _make(
    taps: Sequence[Tap], inner: list[fx.Node], wanted: Wanted, given: Exportable, file: Path
) -> tuple[Sequence[Verdict], Sequence[Whole]]:
    named = _export(given, taps, inner, file)
    if find_spec("onnxruntime") is None:
        said = 'onnxruntime is not installed: pip install "lissom[onnx]"'
        return [export_verdict("ONNX Runtime gives the same", "not checked", True, detail=said)], ()
    from .onnx_runtime import check

    return check(given, file, named, wanted)


def require_packages(*names: str) -> None:
    """Raises U010 where one is not installed."""
    for name in names:
        if find_spec(name) is None:
            text = f"ONNX files need `{name}`, which is not installed"
            raise LissomError(Diagnostic("U010", text, helps=('pip install "lissom[onnx]"',)))


# -- writing ---------------------------------------------------------------------------------------


def _nodes(taps: Sequence[Tap]) -> list[fx.Node]:
    return list(dict.fromkeys(n for tap in taps for n in (*tap.read, tap.node)))


def _export(
    given: Exportable, taps: Sequence[Tap], inner: list[fx.Node], file: Path
) -> list[Named]:
    """Writes the file; what layers read and give are outputs while it is made, so that their names
    are known.
    """
    program = _converted(given)
    values = program.graph.outputs
    count = len(values) - len(inner)
    names = {n: _named(v) for n, v in zip(inner, values[count:], strict=True)}
    names |= {n: str(n.target) for n in _nodes(taps) if n.op == "placeholder"}
    values[count:] = []  # `del` leaves them marked as outputs
    _write(program, file)
    return [Named(tap, tuple(names[n] for n in tap.read), names[tap.node]) for tap in taps]


def _named(value: Any) -> str:
    """The name of a value; one that is given twice is an Identity of it."""
    maker = value.producer()
    return _named(maker.inputs[0]) if maker and maker.op_type == "Identity" else value.name


def _give_besides(module: fx.GraphModule, nodes: list[fx.Node]) -> None:
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    output.args = ((output.args[0], nodes),)
    module.recompile()


def _converted(given: Exportable) -> Any:
    """The model of onnx_ir. Raises A040 where torch.onnx has no form for an op."""
    program = traced(given)
    opset = OPSET_OF_BFLOAT16 if torch.bfloat16 in given.types else OPSET
    try:
        with quiet("torch.onnx", "onnx_ir", "onnxscript"):
            made = torch.onnx.export(program, dynamo=True, opset_version=opset, verbose=False)
    except Exception as error:
        help = "write .pt2, which has every op of torch"
        raise given.refused("torch.onnx cannot write the model", one_line(error), help) from error
    assert made is not None
    return made.model


def _own_zero_points(graph: Any) -> None:
    """One for each weight and bias: ONNX Runtime has no integer Gemm without one, and cannot make
    its weights uint8, as it is told to without VNNI, where two share one.
    """
    import onnx_ir

    for node in [n for n in graph if n.op_type == "DequantizeLinear"]:
        stored, _, zero = node.inputs
        if stored.is_initializer():
            tensor = onnx_ir.Tensor(zero.const_value.numpy(), name=f"{stored.name}.zero")
            own = onnx_ir.Value(name=tensor.name, const_value=tensor, shape=zero.shape)
            own.dtype = tensor.dtype
            graph.register_initializer(own)
            node.replace_input_with(2, own)


def _write(model: Any, file: Path) -> None:
    """Without the places in code that exporters note."""
    import onnx_ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedNodesPass

    _own_zero_points(model.graph)
    for change in (RemoveUnusedNodesPass(), ClearMetadataAndDocStringPass()):
        model = change(model).model
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.metadata_props.clear()
    tensors = (value.const_value for value in model.graph.initializers.values())
    size = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    apart = f"{file.name}.data" if size > IN_ONE_FILE else None
    onnx_ir.save(model, file, external_data=apart)
