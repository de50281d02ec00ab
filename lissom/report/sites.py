"""What `plan` prints of each place: ops, types, bytes, milliseconds, and the kernel that runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from ..output import Output
from ..rewrite.explain.site_changes import SiteChange, Timed, site_changes, timed
from ..rewrite.measure.processor import integer_instructions, processor, processor_name
from ..rewrite.pipeline.compile import Compiled
from .tables import cut

MOST_PLACES = 40
"""Places that are shown without -v."""


def show_processor(out: Output) -> None:
    """One line about the machine that kernels are chosen for."""
    integers = integer_instructions()
    out.say(f"on {processor_name()}; products of int8: {integers}")
    out.fields["processor"] = {**processor(), "integers": integers}


def show_sites(out: Output, compiled: Compiled, latency: bool) -> None:
    """A row for each place that changed; with `latency` both models are run, node by node."""
    changes = site_changes(compiled)
    measured = Timed(changes, [], "")
    if latency and changes:
        with out.progress("measuring"):
            measured = timed(compiled, changes)
    _table(out, measured.changes)
    _say_sums(out, changes)
    if measured.how:
        _say_times(out, measured)
    out.fields["sites"] = [_as_json(change) for change in measured.changes]


def _as_json(change: SiteChange) -> dict[str, Any]:
    sides = {"before": asdict(change.before), "after": asdict(change.after)}
    return {"site": change.site, **sides, "kernel": change.kernel, "sums": change.sums}


def _table(out: Output, changes: Sequence[SiteChange]) -> None:
    shown = changes if out.verbose else changes[:MOST_PLACES]
    titles, align = ("place", "ops", "bits", "bytes", "MACs", "ms", "runs"), "<<>>>><"
    rows = [_row(change) for change in shown]
    used = [number for number in range(len(titles)) if any(row[number] for row in rows)]
    lines = [[row[number] for number in used] for row in (titles, *rows)]
    if rows:
        out.table(lines, "".join(align[number] for number in used), header=True)
    if len(changes) > len(shown):
        out.say(f"{len(changes) - len(shown)} more places; -v lists them")


def _row(change: SiteChange) -> tuple[str, ...]:
    was, now = change.before, change.after
    return (
        change.site,
        cut(_pair(", ".join(was.ops) or "-", ", ".join(now.ops) or "-")),
        _bits(change),
        _pair(*(f"{size:,}" for size in (was.bytes, now.bytes))) if was.bytes or now.bytes else "",
        _pair(f"{was.macs:,}", f"{now.macs:,}") if was.macs != now.macs else "",
        f"{was.ms:.3f} -> {now.ms:.3f}" if was.ms is not None and now.ms is not None else "",
        change.kernel,
    )


def _bits(change: SiteChange) -> str:
    """Nothing where they are no news: ops without weights that give what they gave."""
    was, now = change.before, change.after
    known = was.bytes or now.bytes or (was.bits and now.bits and was.bits != now.bits)
    return _pair(str(was.bits or ""), str(now.bits or "")) if known else ""


def _pair(was: str, now: str) -> str:
    return was if was == now or not now else f"{was} -> {now}" if was else now


def _say_sums(out: Output, changes: Sequence[SiteChange]) -> None:
    """How near sums of integer layers may come to the end of int32, whatever the data."""
    known = [(change.sums, change.site) for change in changes if change.sums is not None]
    if known:
        most, site = max(known)
        out.say(f"sums of integer layers reach at most {100 * most:.2g} % of 2^31, at {site}")


def _say_times(out: Output, measured: Timed) -> None:
    was = _sum(change.before.ms for change in measured.changes)
    now = _sum(change.after.ms for change in measured.changes)
    out.say(f"these places: {was:.3f} -> {now:.3f} ms, {measured.how}")
    slower = [change.site for change in measured.slower]
    if slower:
        said = "1 place takes" if len(slower) == 1 else f"{len(slower)} places take"
        hint = "`each RULE order by latency` leaves sites that are slower"
        out.say(f"{said} longer than before: {cut(', '.join(slower))}; {hint}")


def _sum(times: Iterable[float | None]) -> float:
    return sum(ms or 0.0 for ms in times)
