"""A network with exits for another runtime: each part a file, and how they go together."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from ...grammar.documents import json_text
from ..exits.segments import Behind, early_exit
from ..journal import Verdict
from ..measure.samples import Example
from ..runtime.exits import EarlyExit
from ..store.files import write_file
from .exportable import Exportable

DRIVER = Path(__file__).with_name("exit_driver.py")

Write = Callable[[Exportable, Path], tuple[Verdict, ...]]
"""Writes one module to a file, and says how it was compared."""


def export_parts(
    given: Exportable, behind: Behind, path: Path, write: Write
) -> tuple[Path, tuple[Verdict, ...]]:
    """Writes `NAME.body1.onnx`, `NAME.head1.onnx` ... beside `NAME.onnx.json`, which is returned;
    of ONNX the driver `NAME_exits.py` too. Nothing is written where a part is not what it should
    be.
    """
    if not isinstance(_output(given.module), fx.Node):
        raise given.refused("the outputs of a model with exits are one tensor in a file")
    network = early_exit(given.module, behind)
    verdicts: list[Verdict] = []
    parts = list(_parts(network, given.examples))  # writing one changes it
    with tempfile.TemporaryDirectory() as folder:
        for name, part, examples in parts:
            file = Path(folder, f"{path.stem}.{name}{path.suffix}")
            found = write(replace(given, module=part, examples=examples), file)
            verdicts += [replace(one, claim=f"{name}: {one.claim}") for one in found]
        for file in sorted(Path(folder).iterdir()):
            write_file(path.with_name(file.name), file.read_bytes())
    if path.suffix == ".onnx":
        driver = f"{path.stem}_exits.py".replace("-", "_")
        write_file(path.with_name(driver), DRIVER.read_bytes())
    target = path.with_name(f"{path.name}.json")
    write_file(target, json_text(_said(network, path), ordered=True).encode())
    return target, tuple(verdicts)


def _output(module: fx.GraphModule) -> Any:
    return next(node for node in reversed(module.graph.nodes) if node.op == "output").args[0]


def _parts(
    network: EarlyExit, examples: tuple[Example, ...]
) -> Iterator[tuple[str, fx.GraphModule, tuple[Example, ...]]]:
    """Each part with a name, and what it is given for each example."""
    for at, body in enumerate(network.bodies, 1):
        yield f"body{at}", _graph(body), examples
        if at < len(network.bodies):
            examples = tuple(_behind(body, example) for example in examples)
            yield f"head{at}", _graph(network.heads[at - 1]), examples


def _graph(part: nn.Module) -> fx.GraphModule:
    assert isinstance(part, fx.GraphModule)
    return part


def _behind(body: nn.Module, example: Example) -> Example:
    with torch.no_grad():
        return Example(example.label, tuple(nn.Module.__call__(body, *example.args)))


def _said(network: EarlyExit, path: Path) -> dict[str, Any]:
    """How the parts go together."""
    names = [f"{path.stem}.body{at}{path.suffix}" for at in range(1, len(network.bodies) + 1)]
    exits = [
        {
            "head": f"{path.stem}.head{at}{path.suffix}",
            "test": test.test,
            "limit": test.threshold,
            "counts": test.counts,
            "by_row": list(rows),
        }
        for at, (test, rows) in enumerate(zip(network.tests, network.by_row, strict=True), 1)
    ]
    return {"bodies": names, "exits": exits}
