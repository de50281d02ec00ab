"""What a compilation did, as rows: per rule, before and after. Numbers only, no layout."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..grammar.diagnostics import Label, fail
from ..model_file import ModelFile
from ..rewrite.apply.cost import said_of_uncounted
from ..rewrite.journal import Applied, Attached, ExitsFitted, Refused, StageEnd, Verdict
from ..rewrite.measure.compare import Metrics
from ..rewrite.measure.latency import Latency, batch_of
from ..rewrite.pipeline.compile import Compiled
from ..rewrite.store.folder import file_bytes, save


@dataclass
class RuleRow:
    """One rule in one stage. `params`, `bytes` and `macs` are changes, so savings are negative.

    `misses` counts reasons that a guard or a budget gave; `structural` those of candidates that
    only looked like one. `kept` is False where the stage was rolled back.
    """

    stage: str
    rule: str
    kind: str
    kept: bool = True
    sites: list[str] = field(default_factory=list)
    params: int = 0
    bytes: int = 0
    macs: int = 0
    misses: Counter[str] = field(default_factory=Counter)
    structural: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        counts = {"misses": dict(self.misses), "structural": dict(self.structural)}
        return vars(self) | counts


def rule_rows(compiled: Compiled) -> list[RuleRow]:
    """A row for each rule of each stage, in the order in which things happened; last, the rules
    that had no candidate.
    """
    rows: dict[tuple[str, str], RuleRow] = {}
    kinds = compiled.journal.kinds
    for event in compiled.journal.events:
        if isinstance(event, Applied | Attached | Refused):
            key = event.stage, event.rule
            if key not in rows:
                kept = event.stage in compiled.kept_stages
                rows[key] = RuleRow(*key, kinds[event.rule], kept)
            _count(rows[key], event)
    seen = {rule for _, rule in rows}
    silent = [rule for rule in compiled.journal.tried if rule not in seen]
    return [*rows.values(), *(RuleRow("-", rule, kinds[rule]) for rule in silent)]


def _count(row: RuleRow, event: Applied | Attached | Refused) -> None:
    if isinstance(event, Refused):
        (row.structural if event.structural else row.misses)[_condition(event)] += 1
        return
    row.sites.append(event.site)
    if isinstance(event, Attached):
        return
    change = event.after - event.before
    row.params += change.params
    row.bytes += change.bytes
    row.macs += change.macs


def _condition(event: Refused) -> str:
    """What was refused, without the numbers of the site, so that equal reasons count together."""
    head, broken, _ = event.reason.partition(" does not hold")
    return head + broken if event.code.startswith("B") else event.reason


def stage_ends(compiled: Compiled) -> list[StageEnd]:
    return compiled.journal.of(StageEnd)


def rewrites(compiled: Compiled) -> str:
    """`1 rewrite`, `5 rewrites`."""
    count = len(compiled.applied)
    return f"{count} rewrite{'' if count == 1 else 's'}"


# -- before and after ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """One quantity before and after; `how` says what the numbers depend on, `at_least` that they
    are lower bounds.
    """

    name: str
    before: float
    after: float
    unit: str = ""
    how: str = ""
    at_least: bool = False


def compared(
    compiled: Compiled, folder: Path, latency: Latency | None, measured: Iterable[Compared]
) -> list[Compared]:
    """Everything that was counted or measured about the original and the written result."""
    old, new = compiled.before, compiled.after
    batch = f"at batch {batch_of(compiled.samples.inputs)}"
    rows = [
        Compared("parameters", old.params, new.params),
        Compared("file bytes", stored_bytes(compiled), file_bytes(folder), "", "as written"),
        _macs_at(compiled, batch),
        Compared("ops", old.ops, new.ops),
    ]
    if latency is not None:
        times = 1e3 * latency.before, 1e3 * latency.after
        rows.append(Compared("latency", *times, "ms", latency.how))
    return [*rows, *measured]


def _macs_at(compiled: Compiled, batch: str) -> Compared:
    """Of a model with exits what its thresholds came to on the data that they were chosen on."""
    old, new, left = compiled.before, compiled.after.macs, said_of_uncounted(compiled.before)
    for fitted in compiled.journal.of(ExitsFitted)[-1:]:
        new, batch = round(fitted.macs), f"{batch}, on average over {fitted.data}"
    return Compared("MACs", old.macs, new, "", f"{batch}; {left}" if left else batch, bool(left))


def stored_bytes(compiled: Compiled) -> int:
    """Bytes of the original, written to disk as the result is, and measured there."""
    with tempfile.TemporaryDirectory() as folder:
        return file_bytes(save(compiled.original, Path(folder) / "original"))


def metrics_on(file: ModelFile, compiled: Compiled, split: str) -> list[Compared]:
    """Every metric of the model file on a split, of the original and of the result.

    Raises D002 without data, D001 for a split that is not there.
    """
    batches = batches_of(file, split)
    samples = compiled.samples.count(batches)
    how, place = f"{split}, {samples} samples", Label(None, where=f"--measure {split}")
    metrics = Metrics(compiled.original, file.metrics)

    def value(name: str, model: nn.Module) -> float:
        return metrics.value(model, name, batches, place)

    return [
        Compared(name, value(name, compiled.original), value(name, compiled.running), "", how)
        for name in file.metrics
    ]


def batches_of(file: ModelFile, split: str, option: str = "--measure") -> list[tuple[Any, Any]]:
    """The data of a split that an option names. Raises D001 or D002."""
    place = Label(None, where=f"{option} {split}")
    if file.data is None:
        hint = "define data(split) in the model file"
        raise fail("D002", "measuring needs data, and the model file has none", place, help=hint)
    try:
        return list(file.data(split))
    except (ValueError, KeyError) as error:
        raise fail("D001", f"there is no split `{split}`", place, note=str(error)) from error


def refuse_broken(verdicts: Iterable[Verdict]) -> None:
    """Raises V104 where a claim of the program's `verify` block does not hold."""
    broken = [verdict for verdict in verdicts if not verdict.holds]
    if broken:
        notes = [f"`{verdict.claim}`: {verdict.detail}" for verdict in broken]
        hint = "allow more rules, loosen the claim, or see what each stage did: lissom plan -v"
        text = "the result is not what `verify` asks for, and was not written"
        raise fail("V104", text, note="\n".join(notes), help=hint)
