"""`.pt2`: the model as torch.export has it. torch alone reads and runs it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..graph.runs import own_inputs
from ..journal import Verdict
from ..measure.compare import outputs
from .compared import Ran, Whole
from .exportable import Exportable, one_line, quiet, tensors_in, traced

CLAIM = "read in a fresh process without lissom, same outputs"


def pt2(given: Exportable) -> Any:
    """Makes the file, and runs it in a fresh process: the same bits, up to rounding where
    torch.export takes another kernel. Raises A040 where torch.export refuses.
    """
    return _make


def _make(given: Exportable, file: Path) -> tuple[Sequence[Verdict], Sequence[Whole]]:
    program = traced(given)
    _impersonal(program)
    try:
        with quiet(), file.open("wb") as stream:
            torch.export.save(program, stream)
    except Exception as error:
        raise given.refused("torch.export cannot save the model", one_line(error)) from error
    pairs = zip(given.examples, _again(given, file), _wanted(given), strict=True)
    return (), [
        Whole(CLAIM, [Ran(e.label, got, want, given.rounding(want)) for e, got, want in pairs])
    ]


def _wanted(given: Exportable) -> list[list[Tensor]]:
    """Without the fused kernel of attention: torch.export never takes it."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        return [tensors_in(outputs(given.module, e.args)) for e in given.examples]
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _impersonal(program: torch.export.ExportedProgram) -> None:
    """A file for others holds no inputs of its maker, and no paths of a machine."""
    program.example_inputs = None
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)


def _again(given: Exportable, file: Path) -> list[list[Tensor] | str]:
    """What a fresh process gives that has torch alone."""
    asked, said = file.with_name("inputs"), file.with_name("outputs")
    torch.save([own_inputs(example.args) for example in given.examples], asked)
    command = [sys.executable, "-c", _RUN, str(torch.get_num_threads()), file, asked, said]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return [lines[-1] if lines else "no output"] * len(given.examples)
    return torch.load(said, weights_only=True)


_RUN = """
import sys
sys.modules["lissom"] = None
import torch
from torch.utils._pytree import tree_leaves
threads, file, asked, said = sys.argv[1:]
torch.set_num_threads(int(threads))
with open(file, "rb") as stream:
    model = torch.export.load(stream).module()

def run(args):
    try:
        with torch.no_grad():
            return [v for v in tree_leaves(model(*args)) if isinstance(v, torch.Tensor)]
    except Exception as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]

torch.save([run(args) for args in torch.load(asked, weights_only=False)], said)
"""
