"""How results look: tables of rules, stages, verdicts, and of before and after."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..jobs.benching import BenchRow
from ..jobs.summary import Compared, RuleRow, rewrites
from ..output import Output
from ..rewrite.apply.cost import said_of_uncounted
from ..rewrite.explain.funnel import Funnel
from ..rewrite.journal import Costs, ExitsFitted, Opaque, StageEnd, Verdict
from ..rewrite.match.opaque_report import Hidden
from ..rewrite.pipeline.compile import Compiled
from ..rewrite.train.report import TrainingRow

LONG = 72
"""Characters of a site list or a claim that are shown at most."""

MOST_REASONS = 8
"""Reasons of one rule that are shown without -v."""

MOST = 5
"""Opaque nodes of one kind that are shown at most."""


def captured(out: Output, compiled: Compiled) -> None:
    """One line about what was captured, and how; one for each op that no rule can see and that
    holds parameters.
    """
    was = compiled.before
    out.say(
        f"captured {was.ops} ops, {was.params:,} parameters, {was.macs_said} MACs"
        f"  ({compiled.capture_how})"
    )
    uncounted(out, was)
    opaque(out, was.opaque)


def uncounted(out: Output, costs: Costs) -> None:
    """What the multiply-accumulates leave out."""
    left = said_of_uncounted(costs)
    if left:
        out.say(left)


def opaque(out: Output, nodes: Iterable[Opaque]) -> None:
    """The parameters that stand where no rule can see them."""
    weighing = [node for node in nodes if node.params]
    shown = weighing if out.verbose else weighing[:MOST]
    for node in shown:
        out.say(f"no rule can see {node}, {node.params:,} parameters: {node.reason}")
    rest = weighing[len(shown) :]
    if rest:
        left = sum(node.params for node in rest)
        out.say(f"no rule can see {len(rest)} more ops, {left:,} parameters; -v lists them")


def rules(out: Output, rows: Sequence[RuleRow]) -> None:
    """A row for each rule: how many sites, what they change; below it the misses, counted."""
    lines: list[Sequence[str]] = [("stage", "kind", "rule", "sites", "parameters", "bytes", "MACs")]
    for row in rows:
        lines.append(_rule_line(row))
        lines += [("", "", f"  {text}", "", "", "", "") for text in _below(row, out.verbose)]
    out.table(lines, "<<<>>>>", header=True)


def trainings(out: Output, rows: Sequence[TrainingRow]) -> None:
    """A row for each `recover`: its epochs, the best one, validation metrics before and after."""
    lines: list[Sequence[str]] = [("training", "epochs", "kept", "on validation data", "in result")]
    for row in rows:
        moved = ", ".join(f"{k} {row.before[k]:.4f} -> {v:.4f}" for k, v in row.after.items())
        inside = "yes" if row.kept else "no"
        lines.append((row.name, str(row.epochs), str(row.best), moved or "not measured", inside))
    if rows:
        out.table(lines, "<>><<", header=True)


def exits(out: Output, found: ExitsFitted) -> None:
    """Where samples of the data leave, and what it costs up to there."""
    whole = found.rows[-1].macs
    lines: list[Sequence[str]] = [("depth", "leave if", f"of {found.data}", "MACs")]
    lines += [(r.name, r.test, f"{r.share:.1%}", f"{r.macs / whole:.1%}") for r in found.rows]
    told = ", ".join(f"{name} {value:.4f}" for name, value in found.metrics.items())
    out.table([*lines, ("on average", "", told, f"{found.macs / whole:.1%}")], "<<>>", header=True)


def _rule_line(row: RuleRow) -> tuple[str, ...]:
    count = str(len(row.sites)) if row.kept else "undone"
    changes = (row.params, row.bytes, row.macs) if row.kept else (0, 0, 0)
    return (row.stage, row.kind, row.rule, count, *map(_change, changes))


def _below(row: RuleRow, verbose: int) -> list[str]:
    misses = row.misses.most_common()
    shown = misses if verbose else misses[:MOST_REASONS]
    lines = [f"{count} x not: {reason}" for reason, count in shown]
    if len(misses) > len(shown):
        rest = sum(count for _, count in misses[len(shown) :])
        lines.append(f"{rest} x not, for {len(misses) - len(shown)} more reasons; -v lists them")
    if verbose:
        lines += [f"{count} x no match: {why}" for why, count in row.structural.most_common()]
        lines += [f"at {cut(', '.join(row.sites))}"] if row.sites else []
    return lines


def _change(value: int) -> str:
    return f"{value:+,}" if value else ""


def cut(text: str) -> str:
    return text if len(text) <= LONG else f"{text[: LONG - 3]}..."


def total(out: Output, compiled: Compiled) -> None:
    """The plan in one line."""
    old, new = compiled.before, compiled.after
    parts = [f"{old.ops} -> {new.ops} ops"]
    parts += [
        f"{was:,} -> {now:,} {name} ({_share(was, now)})"
        for was, now, name in (
            (old.params, new.params, "parameters"),
            (old.bytes, new.bytes, "bytes of weights"),
        )
    ]
    share = f"{new.macs - old.macs:+,}" if old.uncounted else _share(old.macs, new.macs)
    parts.append(f"{old.macs_said} -> {new.macs_said} MACs ({share})")
    out.say(f"{rewrites(compiled)}: {', '.join(parts)}")


def stages(out: Output, ends: Iterable[StageEnd]) -> None:
    """What was checked after each stage."""
    rows = []
    for end in ends:
        if not end.verdicts:
            rows.append((end.stage, "-", "changed nothing", ""))
        rows += [(end.stage, *_verdict(verdict)) for verdict in end.verdicts]
        if not end.kept:
            rows.append((end.stage, "undone", end.reason, ""))
    out.table(rows)


def verdicts(out: Output, about: str, found: Iterable[Verdict]) -> None:
    out.table([(about, *_verdict(verdict)) for verdict in found])


def bench(out: Output, rows: Iterable[BenchRow]) -> None:
    """Milliseconds of a batch, and where samples leave."""
    lines = [("", "batch", "mean ms", "median", "99 %", "samples/s", "leave at each exit")]
    lines += [_bench_line(row) for row in rows]
    out.table(lines, "<>>>>><", header=True)


def _bench_line(row: BenchRow) -> tuple[str, ...]:
    times = (f"{value:.3g}" for value in (row.mean, row.p50, row.p99))
    left = ", ".join(f"{share:.1%}" for share in row.shares)
    return row.name, str(row.batch), *times, f"{row.per_second:,.0f}", left


def _verdict(verdict: Verdict) -> tuple[str, str, str]:
    mark = "FAILED" if not verdict.holds else "-" if verdict.how == "not checked" else "ok"
    return mark, verdict.claim, f"{verdict.how}: {_numbers(verdict)}"


def _numbers(verdict: Verdict) -> str:
    parts = [verdict.detail] if verdict.detail else []
    if verdict.worst is not None and " against " not in verdict.detail:
        allowed = "" if verdict.tolerance is None else f" <= {verdict.tolerance:.2g}"
        parts.insert(0, f"{verdict.worst:.2g}{allowed}")
    if verdict.samples > 1 and verdict.how == "tested":
        parts.append(f"{verdict.samples} samples")
    return ", ".join(parts) or "holds"


def comparison(out: Output, rows: Iterable[Compared]) -> None:
    """Before and after, side by side."""
    lines = [("", "before", "after", "change", "")]
    lines += [
        (row.name, _number(row.before, row), _number(row.after, row), _difference(row), row.how)
        for row in rows
    ]
    out.table(lines, "<>>><", header=True)


def _number(value: float, row: Compared) -> str:
    return f"at least {_exact(value, row)}" if row.at_least else _exact(value, row)


def _exact(value: float, row: Compared) -> str:
    if row.unit:
        return f"{value:.3f} {row.unit}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _difference(row: Compared) -> str:
    """Costs change by a share; metrics, which are shares themselves, by a difference."""
    if row.at_least:
        return f"{row.after - row.before:+,}"
    if row.unit or isinstance(row.before, int):
        return _share(row.before, row.after)
    return f"{row.after - row.before:+.4f}"


def _share(old: float, new: float) -> str:
    return f"{100 * (new - old) / old:+.1f} %" if old else ""


def funnel(out: Output, found: Funnel) -> None:
    """How many candidates came to each condition, and how many passed."""
    out.say(f"{found.rule}  ({found.place})")
    rows: list[Sequence[str]] = [("", "condition", "came", "passed")]
    rows.append(("anchor", found.anchor, "", str(found.candidates)))
    asked = [level for level in found.levels if level.came or out.verbose]
    rows += [(level.kind, level.text, str(level.came), str(level.passed)) for level in asked]
    out.table(rows, "<<>>", header=True)
    _sought(out, found)
    unasked = len(found.levels) - len(asked)
    if unasked and found.candidates:
        out.say(f"{unasked} more conditions were not reached")
    places = cut(", ".join(found.sites))
    out.say(f"applies at {len(found.sites)} of {found.candidates} candidates: {places or 'none'}")


def _sought(out: Output, found: Funnel) -> None:
    """Why there is no candidate: the ops that are not there, and where they may hide."""
    if found.candidates:
        return
    rows = [(" or ".join(line.ops), str(line.count)) for line in found.sought]
    if rows:
        out.table([("the rule looks for", "in the graph"), *rows], "<>", header=True)
    for line in found.sought:
        _hidden(out, f"may be {' or '.join(line.ops)}", line.hidden)
    _hidden(out, "may be anything", found.unknown)


def _hidden(out: Output, what: str, nodes: Sequence[Hidden]) -> None:
    shown = nodes if out.verbose else nodes[:MOST]
    for node in shown:
        out.say(f"{what}: {node}: {node.reason}")
    if len(nodes) > len(shown):
        out.say(f"{what}: {len(nodes) - len(shown)} more; -v lists them")
