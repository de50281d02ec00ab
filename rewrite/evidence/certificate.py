"""The certificate: what was changed, by which rule, what was checked and how well. Anyone can check
it again.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...grammar.documents import sha256
from ..capture.equality import first_difference
from ..graph.digest import model_digest, tensor_digest
from ..journal import (
    Applied,
    Calibrated,
    Epoch,
    ExitsFitted,
    Refused,
    StageEnd,
    Trained,
    Verdict,
    VerdictKind,
    plain,
)
from ..measure.compare import distance, outputs
from ..measure.integer_layers import largest_sums
from ..measure.processor import processor
from ..measure.samples import Example
from ..measure.twins import FAULTY, KernelFault, faults_text, kernel_faults
from ..pipeline.compile import Compiled
from ..runtime.kernels import LIMIT
from .recorded import recorded, recorded_inputs, restored

FORMAT = 2

RELOAD_TOLERANCE = 1e-4
"""Relative L2 difference allowed when outputs are computed again on another machine or with another
torch.
"""


def certificate(compiled: Compiled) -> dict[str, Any]:
    """Everything a third party needs to judge the result, as plain JSON values."""
    return {
        "format": FORMAT,
        "environment": environment(),
        "program": {
            "sha256": sha256(compiled.program.text),
            "pipeline": _pipeline_name(compiled),
            "settings": {name: str(value) for name, value in compiled.args.items()},
        },
        "seed": compiled.seed,
        "capture": compiled.capture_how,
        "model": {"original": compiled.digests["original"], "result": compiled.digests["result"]},
        "costs": {"before": asdict(compiled.before), "after": asdict(compiled.after)},
        "applications": [_timeless(event) for event in compiled.applied],
        "calibrations": [_timeless(event) for event in compiled.journal.of(Calibrated)],
        "trainings": _trainings(compiled),
        "exits": [_timeless(event) for event in compiled.journal.of(ExitsFitted)],
        "kernels": [
            _timeless(event) for event in compiled.journal.of(Refused) if event.code == FAULTY
        ],
        "accumulators": largest_sums(compiled.model),
        "stages": [_timeless(event) for event in compiled.journal.of(StageEnd)],
        "verdicts": [plain(verdict) for verdict in compiled.verdicts],
        "examples": [_example(compiled, one) for one in recorded(compiled.samples.examples)],
        "claims": STATEMENT,
    }


def _trainings(compiled: Compiled) -> list[dict[str, Any]]:
    """Each training with its epochs: settings and seed, the data by SHA-256, versions. Those that
    are not in the result (rounds that were taken back, controls) say so.
    """
    found = []
    for event in compiled.journal.of(Trained):
        epochs = [e for e in compiled.journal.of(Epoch) if e.stage == event.stage]
        said = _timeless(event) | {"kept": event.stage in compiled.kept_stages}
        found.append(said | {"history": [_timeless(epoch) for epoch in epochs]})
    return found


STATEMENT = (
    "proved: follows from the op declarations for all inputs of the recorded ranks. tested: "
    "compared on the stated number of samples within the stated tolerance; it says nothing about "
    "other inputs. Each application compares the perturbed "
    "original with the rewrite in float64 and in the model's own precision, on random inputs. A "
    "cut of a dimension compares the whole perturbed model with the cut one on the example inputs. "
    "Stages are compared on every example, whose sizes the verdict names."
)


def environment() -> dict[str, str]:
    """Versions and the processor: what numbers depend on. No host names."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        **processor(),
    }


def _pipeline_name(compiled: Compiled) -> str | None:
    return compiled.pipeline.name.text if compiled.pipeline is not None else None


def _timeless(
    event: Applied | Calibrated | Epoch | ExitsFitted | Refused | StageEnd | Trained,
) -> dict[str, Any]:
    """An event without its duration: equal work gives equal certificates."""
    return {key: value for key, value in plain(event).items() if key != "seconds"}


def _example(compiled: Compiled, example: Example) -> dict[str, Any]:
    """Inputs by their structure, and digests of the outputs; the tensors are saved beside."""
    found = [v for v in outputs(compiled.model, example.args) if isinstance(v, Tensor)]
    return {
        "label": example.label,
        "inputs": recorded_inputs(example.args)[0],
        "outputs": [{"sha256": tensor_digest(v), "shape": list(v.shape)} for v in found],
    }


# -- checking again --------------------------------------------------------------------------------


def recheck(
    model: nn.Module,
    written: Mapping[str, Any],
    program: str,
    probes: Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]],
) -> tuple[Verdict, ...]:
    """Compares a loaded artifact with its certificate: program, weights, and outputs on the
    recorded inputs of each example.
    """
    same_program = sha256(program) == written["program"]["sha256"]
    same_model = model_digest(model) == written["model"]["result"]  # type: ignore[arg-type]
    held = all(v["holds"] for a in written["applications"] for v in a["verdicts"])
    return (
        _same("the program is the one that was run", same_program),
        _same("graph and weights are those that were verified", same_model),
        Verdict(
            "every recorded verdict holds",
            "proved",
            held,
            len(written["applications"]),
            kind=VerdictKind.ARTIFACT,
        ),
        *sums_again(model, written.get("accumulators")),
        _outputs_again(model, written["examples"], probes),
    )


def sums_again(model: nn.Module, written: Mapping[str, int] | None) -> tuple[Verdict, ...]:
    """That the certificate says how far the sums of integer layers may go, and that no kernel lets
    them wrap; nothing where there are none.
    """
    found = largest_sums(model)
    if not found:
        return ()
    claim = "sums of integer layers stay below 2^31"
    beyond = sum(largest >= LIMIT for largest in found.values())
    path, largest = max(found.items(), key=lambda pair: pair[1])
    said = [
        f"from the weights of {len(found)}, at most {100 * largest / LIMIT:.2g} % of it: {path}"
    ]
    said += [f"{beyond} that may go beyond run in plain torch"] if beyond else []
    holds, kind = written is None or found == dict(written), VerdictKind.ARTIFACT
    said += [] if holds else ["the certificate says otherwise"]
    return (Verdict(claim, "proved", holds, len(found), detail="; ".join(said), kind=kind),)


def _same(claim: str, holds: bool) -> Verdict:
    return Verdict(claim, "proved", holds, detail="SHA-256", kind=VerdictKind.ARTIFACT)


def _outputs_again(
    model: nn.Module,
    examples: Sequence[Mapping[str, Any]],
    probes: Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]],
) -> Verdict:
    """The verdict of the first example, which names the others, or the first that does not hold."""
    found = [
        _as_recorded(model, restored(example["inputs"], inputs), expected)
        for example, (inputs, expected) in zip(examples, probes, strict=True)
    ]
    for example, verdict in zip(examples, found, strict=True):
        if not verdict.holds:
            return replace(verdict, detail=f"on {example['label']}: {verdict.detail}")
    also = ", ".join(str(example["label"]) for example in examples[1:])
    worst = max(found, key=lambda verdict: verdict.worst or 0.0)
    return replace(worst, detail=f"{worst.detail}; also at {also}") if also else worst


def _as_recorded(
    model: nn.Module, inputs: tuple[Any, ...] | None, expected: Sequence[Tensor]
) -> Verdict:
    """Bit for bit on the same machine; within rounding elsewhere, and then the verdict says so."""
    if inputs is None:
        said = "an input is an object of a class of its own, which is not recorded"
        return _again("not checked", True, 0, detail=said)
    found = [value for value in outputs(model, inputs) if isinstance(value, Tensor)]
    if len(found) != len(expected):
        said = f"{len(found)} outputs instead of {len(expected)}"
        return _again("tested", False, 1, detail=said)
    if first_difference(list(expected), found) is None:
        return _again("tested", True, 1, 0.0, 0.0, "bit for bit")
    worst, allowed = _apart(found, expected), _tolerance(expected)
    faults = () if worst <= allowed else _faults(model, inputs, expected)
    detail = "relative L2; not bit for bit"
    if faults:
        detail = f"{detail}; with float64 in its place they agree: {faults_text(faults)}"
    return _again("tested", worst <= allowed or bool(faults), 1, worst, allowed, detail)


_again = partial(
    Verdict, "outputs on the recorded inputs are the recorded ones", kind=VerdictKind.ARTIFACT
)


def _faults(
    model: nn.Module, inputs: tuple[Any, ...], expected: Sequence[Tensor]
) -> tuple[KernelFault, ...]:
    """The kernels without whose mistakes the outputs would be the recorded ones."""

    def holds() -> bool:
        found = [value for value in outputs(model, inputs) if isinstance(value, Tensor)]
        return _apart(found, expected) <= _tolerance(expected)

    return kernel_faults(holds)


def _tolerance(expected: Sequence[Tensor]) -> float:
    """A few units in the last place of the coarsest type, if that is more than usual."""
    narrow = (torch.finfo(v.dtype).eps for v in expected if v.is_floating_point())
    return max((RELOAD_TOLERANCE, *(8 * eps for eps in narrow)))


def _apart(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    return max(distance(b, a) for a, b in zip(found, expected, strict=True))
