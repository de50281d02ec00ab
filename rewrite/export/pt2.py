"""`.pt2`: the model as torch.export has it. torch alone reads and runs it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from ..graph.runs import own_inputs
from ..journal import Verdict
from ..measure.compare import outputs
from ..store.files import write_file
from .compared import Ran, compared, rounding, tensors_in
from .exportable import Exportable, one_line, quiet, traced

CLAIM = "read in a fresh process without lissom, same outputs"


def write_pt2(given: Exportable, path: Path) -> tuple[Verdict, ...]:
    """Writes the file in one step, if a fresh process gets the same outputs from it: the same bits,
    up to rounding where torch.export takes another kernel. Otherwise the verdict does not hold and
    nothing is written. Raises A040 where torch.export refuses.
    """
    wanted = _wanted(given)
    _own_memory(given.module)
    program = traced(given)
    _impersonal(program)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.pt2")
        try:
            with quiet():
                torch.export.save(program, file)
        except Exception as error:
            message = "torch.export cannot save the model"
            raise given.refused(message, one_line(error)) from error
        allowed = [rounding(wanted)] * len(wanted)
        verdict = compared(CLAIM, _again(given, file), wanted, allowed)
        if verdict.holds:
            write_file(path, file.read_bytes())
    return (verdict,)


def _wanted(given: Exportable) -> list[list[Tensor]]:
    """Without the fused kernel of attention: torch.export never takes it."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        return [tensors_in(outputs(given.module, example.args)) for example in given.examples]
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _impersonal(program: torch.export.ExportedProgram) -> None:
    """A file for others holds no inputs of its maker, and no paths of a machine."""
    program.example_inputs = None
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)


def _own_memory(module: nn.Module) -> None:
    """A file holds the whole memory that a tensor lies in: a slice alone gets its own."""
    tensors = [*module.parameters(), *module.buffers()]
    users: dict[int, int] = {}
    for tensor in tensors:
        start = tensor.untyped_storage().data_ptr()
        users[start] = users.get(start, 0) + 1
    for tensor in tensors:
        memory = tensor.untyped_storage()
        used = tensor.numel() * tensor.element_size()
        if users[memory.data_ptr()] == 1 and memory.nbytes() > used:
            tensor.data = tensor.detach().clone()


def _again(given: Exportable, file: Path) -> list[Ran]:
    """What a fresh process gives that has torch alone."""
    asked, said = file.with_name("inputs"), file.with_name("outputs")
    torch.save([own_inputs(example.args) for example in given.examples], asked)
    command = [sys.executable, "-c", _RUN, str(torch.get_num_threads()), file, asked, said]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return [Ran(e.label, lines[-1] if lines else "no output") for e in given.examples]
    found = torch.load(said, weights_only=True)
    return [Ran(e.label, values) for e, values in zip(given.examples, found, strict=True)]


_RUN = """
import sys
sys.modules["lissom"] = None
import torch
from torch.utils._pytree import tree_leaves
threads, file, asked, said = sys.argv[1:]
torch.set_num_threads(int(threads))
model = torch.export.load(file).module()

def run(args):
    try:
        with torch.no_grad():
            return [v for v in tree_leaves(model(*args)) if isinstance(v, torch.Tensor)]
    except Exception as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]

torch.save([run(args) for args in torch.load(asked, weights_only=False)], said)
"""
