"""What was tried and found for one rule, as a table in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .evidence import RuleEvidence
from .page_text import code, prose, table

NOT_TESTED = "not tested"
FROM_TEXT = "generated from the rule's text"
WIRED = "with random wiring, each of their dimensions or parameters in turn"
SHOWN = 12
"""Characters of a SHA-256 that are shown."""


def verdict(entry: RuleEvidence | None) -> str:
    return prose(entry.text("verdict")) if entry is not None else NOT_TESTED


def evidence_table(entry: RuleEvidence, digest: str, drawn: str) -> str:
    """Every row says what was done and what came of it; what the certificate lacks has no row.
    drawn: how models came about.
    """
    rows = [("verdict", f"**{verdict(entry)}**"), *_rows(entry, drawn)]
    rows.append(("text", f"SHA-256 `{digest}`"))
    return table(("evidence", ""), rows)


def _rows(entry: RuleEvidence, drawn: str) -> Iterator[tuple[str, str]]:
    yield from _problems(entry)
    yield from _models(entry, drawn)
    yield from _elsewhere(entry.part("elsewhere").counts())
    yield from _near(entry)
    yield from _share(entry, "mutants", "killed", "mutants", "noticed")
    yield from (("mutant that survives", prose(text)) for text in entry.texts("survivors"))
    yield from _algebra(entry.part("algebra"))
    yield from _share(entry, "bits", "bit_equal", "bits", "models without rounding: same bits")
    ratio = entry.number("ratio")
    if ratio is not None:
        yield "rounding", f"the largest difference is {ratio:.2g} of what is allowed"
    yield from _confidence(entry.part("confidence"))
    yield from _bounds(entry)


def _problems(entry: RuleEvidence) -> Iterator[tuple[str, str]]:
    """Why the verdict is not `verified`."""
    for found in entry.parts("failures"):
        kind, condition = prose(found.text("kind")), prose(found.text("condition"))
        yield "mistake", f"**{kind}** ({condition}): {prose(found.text('detail'))}"
    for found in entry.parts("blamed"):
        yield "left", _blamed(found)
    for found in entry.parts("died"):
        yield "ended the process", prose(f"{found.text('trial')}: {found.text('how')}")
    yield from (("not shown", prose(text)) for text in entry.texts("weak"))


def _blamed(found: RuleEvidence) -> str:
    """Sites that were left because of a kernel of the processor."""
    worst, sites = found.part("worst"), found.number("sites") or 0
    kernel = f"{worst.text('op')} in {worst.text('dtype')}"
    off = f" by {worst.number('off') or 0:.0%}" if worst.number("off") else ""
    return prose(
        f"{sites:,} sites: kernel of {kernel} differs from float64{off} ({worst.text('cpu')})"
    )


def _models(entry: RuleEvidence, drawn: str) -> Iterator[tuple[str, str]]:
    models, fired = entry.number("models"), entry.number("fired")
    if models is not None:
        yield "models", f"{models:,} {drawn}"
    if fired is not None:
        yield "fired", f"{fired:,} times, each application verified and the whole model compared"
    kept = sum(entry.part("silent").counts().values())
    if kept:
        yield "silent", f"{kept:,} times, because a guard or a shape did not hold"
    refused = entry.part("refused").counts()
    if refused:
        count, codes = sum(refused.values()), ", ".join(map(code, refused))
        yield "refused", f"{count:,} times by the engine, before anything was changed ({codes})"


def _elsewhere(found: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    if found:
        said = "; ".join(f"{kind}: {count:,}" for kind, count in found.items())
        yield "other inputs", f"the rewritten model compared at {said}"


def _near(entry: RuleEvidence) -> Iterator[tuple[str, str]]:
    near = entry.parts("near")
    silent = sum(item.number("silent") or 0 for item in near)
    equal = sum(item.number("equal") or 0 for item in near)
    if not near:
        return
    kinds = len({item.text("name") for item in near})
    tail = f"; fired with an equal result at {equal:,}" if equal else ""
    yield "near-misses", f"{kinds} kinds: silent for the right reason at {silent:,}{tail}"


def _share(
    entry: RuleEvidence, title: str, part: str, whole: str, what: str
) -> Iterator[tuple[str, str]]:
    count, of = entry.number(part), entry.number(whole)
    if count is not None and of:
        yield title, f"{count:,} of {of:,} {what}"


def _algebra(found: RuleEvidence) -> Iterator[tuple[str, str]]:
    proved, sites, error = (found.number(name) for name in ("proved", "sites", "error"))
    if not sites or proved is None:
        return
    if proved:
        chance = f", wrong with probability below {error:.1g} each" if error else ""
        yield "algebra", f"{proved:,} of {sites:,} sites are identities in a finite field{chance}"
    # The first part of a reason counts elements; its last one says why they decide nothing.
    why = dict.fromkeys(text.rpartition("; ")[2] for text in found.part("open").counts())
    if why:
        yield "not for algebra", f"{sites - proved:,} of {sites:,} sites: {prose('; '.join(why))}"


def _confidence(found: RuleEvidence) -> Iterator[tuple[str, str]]:
    """How well an approximate rule keeps its budget."""
    held, rate, level = (found.number(name) for name in ("held", "rate_below", "level"))
    if held is not None and rate is not None and level is not None:
        sure = f"with {level:.0%} confidence fewer than {rate:.2%} of such applications break it"
        broken = found.number("broken")
        tail = f", broken in {broken:,}" if broken else ""
        yield "budget", f"kept in {held:,} applications{tail}; {sure}"
    worst, fresh = found.number("worst"), found.number("fresh")
    if worst is not None and fresh is not None:
        yield "error", f"at most {worst:.3g} of the budget; within it on {fresh:.0%} of fresh data"
    drift, most = found.number("drift"), found.number("drift_worst")
    if drift is not None and most is not None:
        yield "drift", f"the model's outputs move by {drift:.1%} (median), {most:.1%} at most"


def _bounds(entry: RuleEvidence) -> Iterator[tuple[str, str]]:
    text = entry.text("bounds")
    if text:
        yield "bounds", prose(text)
    for name, value in entry.part("bounds").fields.items():
        if isinstance(value, str | int | float):
            shown = f"{value:.3g}" if isinstance(value, float) else str(value)
            yield f"bound: {prose(str(name))}", code(shown)
