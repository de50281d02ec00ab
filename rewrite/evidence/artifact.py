"""Saving a compilation with its evidence, and reading it back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, fx

from ...grammar.diagnostics import Label, LissomError, fail
from ...grammar.documents import json_text, sha256
from ..exits.segments import Behind, running
from ..journal import Verdict, VerdictKind
from ..measure.compare import outputs
from ..measure.samples import Example
from ..measure.twins import KernelFault, faults_text, kernel_faults
from ..pipeline.compile import Compiled
from ..runtime.exits import EarlyExit
from ..store.folder import Loaded, load, save
from ..store.values import canonical_json, fields, malformed, parse_json
from .certificate import FORMAT as CERTIFICATE_FORMAT
from .certificate import RELOAD_TOLERANCE, certificate, recheck
from .recorded import recorded, recorded_inputs, restored

PROGRAM, PLAN, CERTIFICATE, JOURNAL, PROBE = (
    "program.lissom",
    "plan.json",
    "certificate.json",
    "journal.json",
    "probe.safetensors",
)


EXITS = "exits.json"
"""What goes on behind the exits of a model: `Behind`."""


def behind_in(documents: Mapping[str, bytes]) -> Behind:
    """The same from an artifact; nothing for a model without exits. Raises A025 where it says
    something else.
    """
    if EXITS not in documents:
        return Behind()
    said = parse_json(documents[EXITS], EXITS)
    rows, sizes, order = fields(said, EXITS, rows=dict, sizes=list, order=dict)
    if not all(isinstance(row, bool) for row in rows.values()):
        raise malformed("says of a value neither yes nor no", EXITS)
    known = (
        isinstance(names, list) and all(isinstance(n, str) for n in names)
        for names in order.values()
    )
    if not all(known):
        raise malformed("does not list what runs in front of a node", EXITS)
    return Behind(rows, frozenset(map(str, sizes)), order)


def running_in(loaded: Loaded) -> fx.GraphModule | EarlyExit:
    """The model of an artifact as it is run. Raises A025 where what it says of its exits is of
    another graph.
    """
    behind = behind_in(loaded.documents)
    try:
        return running(loaded.module, behind)
    except (KeyError, AssertionError):
        raise malformed("does not fit the graph beside it", EXITS) from None


def plan_of(compiled: Compiled) -> dict[str, Any]:
    """What the compilation does, so that it can be looked at first and then be done exactly."""
    return {
        "format": 1,
        "program": {"sha256": sha256(compiled.program.text), "text": compiled.program.text},
        "pipeline": compiled.pipeline.name.text if compiled.pipeline is not None else None,
        "seed": compiled.seed,
        "original": compiled.digests["original"],
        "result": compiled.digests["result"],
        "applications": [
            {
                "stage": e.stage,
                "rule": e.rule,
                "site": e.site,
                "params": e.after.params - e.before.params,
                "bytes": e.after.bytes - e.before.bytes,
                "macs": e.after.macs - e.before.macs,
            }
            for e in compiled.applied
        ],
    }


def check_plan(plan: Mapping[str, Any], compiled: Compiled) -> None:
    """Raises P101 where a saved plan is not what was done now: another model, program, data or
    version.
    """
    now = plan_of(compiled)
    if plan["result"] == now["result"]:
        return
    for key, what in (("original", "the model's weights or graph"), ("program", "the program")):
        if plan[key] != now[key]:
            raise fail(
                "P101",
                "the plan does not fit any more",
                Label(None),
                note=f"{what} changed since it was made",
                help="make a new plan",
            )
    planned = [(a["stage"], a["rule"], a["site"]) for a in plan["applications"]]
    done = [(a["stage"], a["rule"], a["site"]) for a in now["applications"]]
    first = next((p for p, d in zip([*planned, None], [*done, None], strict=False) if p != d), None)
    note = (
        f"the first difference is {first}"
        if first
        else "the same sites were changed, with other numbers"
    )
    raise fail(
        "P101",
        "the plan does not fit any more",
        Label(None),
        note=note,
        help="data or versions changed; make a new plan",
    )


def _bytes(document: Any) -> bytes:
    """Equal documents give equal bytes."""
    return json_text(document, ordered=True).encode()


def save_compiled(
    compiled: Compiled, folder: Path, check_reload: bool = True
) -> tuple[Path, tuple[Verdict, ...]]:
    """Writes the artifact. `check_reload` loads it in a fresh process and compares its outputs bit
    for bit. Where they differ and a kernel is at fault, the outputs that are recorded are those
    with float64 in its place, and they are compared up to rounding.

    Raises V103 where the reloaded model differs; the folder then keeps what it held before.
    """
    documents = {
        PROGRAM: compiled.program.text.encode(),
        PLAN: _bytes(plan_of(compiled)),
        CERTIFICATE: _bytes(certificate(compiled)),
        JOURNAL: _bytes(_timeless(compiled.journal.as_json())),
        PROBE: probe(compiled),
    }
    behind = compiled.behind
    if behind.rows:
        said = {"rows": dict(behind.rows), "sizes": sorted(behind.sizes), "order": behind.order}
        documents[EXITS] = canonical_json(said)
    written = save(compiled.model, folder, documents)
    if not check_reload:
        return written, ()
    try:
        return written, reload_check(written)
    except LissomError:
        faults = kernel_faults(lambda: True, lambda: documents.update({PROBE: probe(compiled)}))
        if not faults:
            raise
    save(compiled.model, folder, documents)
    return written, reload_check(written, faults)


def _timeless(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Durations are no part of an artifact: equal work gives equal bytes."""
    return [{key: value for key, value in event.items() if key != "seconds"} for event in events]


def probe(compiled: Compiled) -> bytes:
    """The recorded examples, and what the result gives on each."""
    tensors: dict[str, Tensor] = {}
    for number, example in enumerate(recorded(compiled.samples.examples)):
        found = [v for v in outputs(compiled.model, example.args) if isinstance(v, Tensor)]
        _, given = recorded_inputs(example.args)
        tensors |= {f"{number}.in.{i}": value for i, value in enumerate(given)}
        tensors |= {f"{number}.out.{i}": value for i, value in enumerate(found)}
    return save_tensors(
        {name: value.detach().contiguous().clone() for name, value in tensors.items()}
    )


def read_probe(data: bytes, count: int) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Inputs and outputs of the `count` examples of a probe."""
    tensors = load_tensors(data)

    def part(start: str) -> list[Tensor]:
        names = [name for name in tensors if name.startswith(start)]
        return [tensors[name] for name in sorted(names, key=lambda n: int(n.rpartition(".")[2]))]

    return [(part(f"{number}.in."), part(f"{number}.out.")) for number in range(count)]


def verify_artifact(folder: Path) -> tuple[Loaded, tuple[Verdict, ...]]:
    """Loads an artifact and checks it against its certificate. Raises A-codes for damage."""
    loaded = load(folder)
    written, probes = _evidence(loaded, folder)
    program = loaded.documents[PROGRAM].decode()
    return loaded, recheck(loaded.module, written, program, probes)


def examples_of(loaded: Loaded, folder: Path) -> list[Example]:
    """The examples that an artifact records. Raises A-codes where it has none or is damaged."""
    written, probes = _evidence(loaded, folder)
    pairs = zip(written["examples"], probes, strict=True)
    found = [(one["label"], restored(one["inputs"], inputs)) for one, (inputs, _) in pairs]
    return [Example(label, args) for label, args in found if args is not None]


def _evidence(
    loaded: Loaded, folder: Path
) -> tuple[dict[str, Any], list[tuple[list[Tensor], list[Tensor]]]]:
    """Certificate and probe."""
    missing = [name for name in (PROGRAM, CERTIFICATE, PROBE) if name not in loaded.documents]
    if missing:
        place = Label(None, where=str(folder))
        raise fail(
            "A020",
            f"the artifact has no {missing[0]}",
            place,
            help="only artifacts written by `lissom apply` have their evidence beside them",
        )
    written = json.loads(loaded.documents[CERTIFICATE])
    if written.get("format") != CERTIFICATE_FORMAT:
        place = Label(None, where=str(folder))
        message = f"the certificate has format {written.get('format')}"
        help_ = f"this lissom reads {CERTIFICATE_FORMAT}; the model itself still loads"
        raise fail("A020", message, place, help=help_)
    return written, read_probe(loaded.documents[PROBE], len(written["examples"]))


def reload_check(folder: Path, faults: Sequence[KernelFault] = ()) -> tuple[Verdict, ...]:
    """Loads the artifact in a fresh process and compares its outputs with the recorded ones: bit
    for bit, or up to rounding where kernels are at fault.
    """
    threads, what = str(torch.get_num_threads()), "rounding" if faults else "bits"
    command = [sys.executable, "-c", _RELOAD, str(folder), threads, what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    claim = "reloaded in a fresh process, same outputs"
    if done.returncode == 0 and done.stdout.strip() == "equal":
        said = f"up to rounding, with float64 in its place: {faults_text(faults)}"
        detail, allowed = (said, RELOAD_TOLERANCE) if faults else ("bit for bit", 0.0)
        kind = VerdictKind.ARTIFACT
        return (Verdict(claim, "tested", True, 1, 0.0, allowed, detail, kind=kind),)
    said = (done.stdout + done.stderr).strip().splitlines()
    raise fail(
        "V103",
        "the saved model does not give the same outputs",
        Label(None, where=str(folder)),
        note=said[-1] if said else "no output",
    )


_RELOAD = """
import sys, torch
from pathlib import Path
from lissom.rewrite.evidence.artifact import verify_artifact
torch.set_num_threads(int(sys.argv[2]))
_, verdicts = verify_artifact(Path(sys.argv[1]))
bits = sys.argv[3] == "bits"
broken = [v for v in verdicts if not v.holds or bits and "not bit for bit" in v.detail]
print("equal" if not broken else f"{broken[0].claim}: {broken[0].detail}")
"""
