"""One wrong rule, `x * a + b` to `(x + b) * a`, given as text to onnxsim, xDSL and lissom.

    python benchmarks/wrong_rule.py

Each applies it to `x * a + b`, with what it verifies by itself, and then computes the result at
x = 2, a = 3, b = 5: 11 is right, 21 is the rule's mistake. A package that is not installed is said
to be missing.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import report

RIGHT = 2 * 3 + 5

LISSOM = """
exact rule distribute {
  match {
    h = mul(x, a)
    y = add(h, b, alpha = 1)
  }
  rewrite {
    s = add(x, b)
    y = mul(s, a)
  }
}
"""

ONNX_RULE = (
    """<domain: "rules", opset_import: ["" : 18]>
    left (x, a, b) => (y) { h = Mul(x, a) y = Add(h, b) }""",
    """<domain: "rules", opset_import: ["" : 18]>
    right (x, a, b) => (y) { s = Add(x, b) y = Mul(s, a) }""",
)
ONNX_MODEL = """<ir_version: 8, opset_import: ["" : 18]>
net (float[4] x, float[4] a, float[4] b) => (float[4] y) { h = Mul(x, a) y = Add(h, b) }"""

PDL_RULE = """
pdl.pattern : benefit(1) {
  %t = pdl.type
  %x = pdl.operand : %t
  %a = pdl.operand : %t
  %b = pdl.operand : %t
  %mul = pdl.operation "arith.muli"(%x, %a : !pdl.value, !pdl.value) -> (%t : !pdl.type)
  %h = pdl.result 0 of %mul
  %add = pdl.operation "arith.addi"(%h, %b : !pdl.value, !pdl.value) -> (%t : !pdl.type)
  pdl.rewrite %add {
    %sum = pdl.operation "arith.addi"(%x, %b : !pdl.value, !pdl.value) -> (%t : !pdl.type)
    %s = pdl.result 0 of %sum
    %new = pdl.operation "arith.muli"(%s, %a : !pdl.value, !pdl.value) -> (%t : !pdl.type)
    pdl.replace %add with %new
  }
}
"""
PDL_MODEL = """
func.func @main(%x : i64, %a : i64, %b : i64) -> i64 {
  %h = arith.muli %x, %a : i64
  %y = arith.addi %h, %b : i64
  func.return %y : i64
}
"""


@dataclass(frozen=True)
class Outcome:
    """What a tool said of the rule, and what its result computes; None where it gave none."""

    said: str
    value: int | None


def by_onnxsim(checks: int = 0) -> Outcome:
    import numpy
    import onnx.parser
    import onnxsim
    from onnx.reference import ReferenceEvaluator

    left, right = (onnx.parser.parse_function(text) for text in ONNX_RULE)
    model = onnx.parser.parse_model(ONNX_MODEL)
    with redirect_stdout(sys.stderr):
        found, ok = onnxsim.simplify(model, check_n=checks, function_rewrite_rules=[(left, right)])
    feed = {n: numpy.full(4, v, numpy.float32) for n, v in zip("xab", (2, 3, 5), strict=True)}
    return Outcome(f"ok = {ok}", int(ReferenceEvaluator(found).run(None, feed)[0][0]))


def by_onnxsim_checked() -> Outcome:
    return by_onnxsim(3)


def by_xdsl() -> Outcome:
    from xdsl.context import Context
    from xdsl.dialects import arith, builtin, func, pdl
    from xdsl.interpreter import Interpreter
    from xdsl.interpreters import register_implementations
    from xdsl.parser import Parser
    from xdsl.transforms.apply_pdl import ApplyPDLPass

    context = Context()
    for dialect in (builtin.Builtin, arith.Arith, func.Func, pdl.PDL):
        context.load_dialect(dialect)
    module = Parser(context, PDL_MODEL).parse_module()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rule.mlir"
        path.write_text(PDL_RULE, "utf-8")
        ApplyPDLPass(pdl_file=str(path)).apply(context, module)
    module.verify()
    interpreter = Interpreter(module)
    register_implementations(interpreter, context)
    given = tuple(builtin.IntegerAttr(number, builtin.i64) for number in (2, 3, 5))
    (found,) = interpreter.call_op("main", given)
    return Outcome("applied, module verified", int(found.value.data))


def by_lissom() -> Outcome:
    import torch
    from torch import nn

    import lissom

    class Net(nn.Module):
        def forward(self, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return x * a + b

    inputs = tuple(torch.full((4,), float(number)) for number in (2, 3, 5))
    try:
        result = lissom.compile(Net().eval(), LISSOM, inputs=inputs)
    except lissom.LissomError as error:
        first = error.diagnostics[0]
        return Outcome(f"refused, {first.code}: {first.message}; {first.notes[0]}", None)
    return Outcome("applied", int(result.model(*inputs)[0]))


def by_lissom_test() -> Outcome:
    """The rule alone, before any model is at hand."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rule.lissom"
        path.write_text(LISSOM, "utf-8")
        command = [sys.executable, "-m", "lissom", "test", str(path), "--models", "50"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("distribute ")]
    found = next((word for word in lines[0] if word == "FAILED"), "verified") if lines else "?"
    return Outcome(f"{found}, exit code {done.returncode}", None)


TOOLS: dict[str, tuple[str, Callable[[], Outcome]]] = {
    "onnxsim": ("onnxsim", by_onnxsim),
    "onnxsim, check_n = 3": ("onnxsim", by_onnxsim_checked),
    "xDSL apply-pdl": ("xdsl", by_xdsl),
    "lissom test": ("lissom", by_lissom_test),
    "lissom compile": ("lissom", by_lissom),
}


def row(name: str, package: str, tool: Callable[[], Outcome]) -> tuple[str, str, str, str]:
    try:
        version, found = importlib.metadata.version(package), tool()
    except (ImportError, importlib.metadata.PackageNotFoundError):
        return name, "missing", "", ""
    value = "nothing" if found.value is None else f"{found.value}"
    return name, version, found.said, value


def main() -> None:
    rows = [row(name, package, tool) for name, (package, tool) in TOOLS.items()]
    print(report.table(("tool", "version", f"says ({RIGHT} is right)", "gives"), rows))


if __name__ == "__main__":
    main()
