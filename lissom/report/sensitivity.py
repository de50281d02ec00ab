"""How sensitivities look: a table, and a heat map of places and values."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from html import escape
from typing import Any

from ..jobs.sensitivity import SensitivityTable
from ..output import Output
from ..rewrite.explain.sensitivity import SiteCost

FIELDS = ("site", "value", "drift", "drop", "params", "macs", "reason")


def fields(found: SensitivityTable) -> dict[str, Any]:
    """Everything, for JSON."""
    return {"effects": list(_records(found)), "processes": found.processes}


def _records(found: SensitivityTable) -> Iterator[dict[str, Any]]:
    for column in found.columns:
        for effect in column.effects:
            yield asdict(effect) | {"value": column.value}


def csv_text(found: SensitivityTable) -> str:
    """A row for each place and value."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_records(found))
    return text.getvalue()


def rows(out: Output, found: SensitivityTable, name: str, metric: str | None) -> None:
    """A row for each place at which the rule applies, then why it does not elsewhere."""
    title = f"drop of {metric}" if metric else "drift of the outputs"
    values = [f"{name} = {column.value}" if name else title for column in found.columns]
    if name:
        out.say(f"{title}, one place at a time")
    places = _applied(found)
    effects = [column.effects[at] for column in found.columns for at in places]
    # A smaller image saves no parameters.
    unit = "parameters" if any(effect.params for effect in effects) else "MACs"
    saves = [f"{unit} saved"] if len(values) == 1 else [f"{unit} saved: least", "most"]
    lines = [_row(found, at, unit) for at in places]
    out.table([("place", *values, *saves), *lines], "<" + ">" * 99, header=True)
    for reason, count in _reasons(found).most_common():
        out.say(f"{count} x not: {reason}")


def _row(found: SensitivityTable, at: int, unit: str) -> tuple[str, ...]:
    effects = [column.effects[at] for column in found.columns]
    saved = [e.params if unit == "parameters" else e.macs for e in effects]
    ends = saved if len(saved) == 1 else [min(saved), max(saved)]
    return (effects[0].site, *map(_cell, effects), *(f"{n:,}" for n in ends))


def _cell(effect: SiteCost) -> str:
    return "-" if effect.reason else f"{100 * _cost(effect):.2f} %"


def _cost(effect: SiteCost) -> float:
    return effect.drift if effect.drop is None else effect.drop


def _applied(found: SensitivityTable) -> list[int]:
    """The places at which the rule applies with one value at least."""
    count = len(found.columns[0].effects) if found.columns else 0
    return [i for i in range(count) if not all(c.effects[i].reason for c in found.columns)]


def _reasons(found: SensitivityTable) -> Counter[str]:
    effects = (effect for column in found.columns[:1] for effect in column.effects)
    return Counter(effect.reason for effect in effects if effect.reason)


# -- heat map --------------------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, TOP = 90, 22, 260, 60
DARK, PALE = (165, 15, 21), (255, 245, 240)
"""Colours of the largest cost and of none."""


def svg(found: SensitivityTable, rule: str, name: str, metric: str | None) -> str:
    """Places under each other, values side by side; the darker, the more it costs."""
    places = _applied(found)
    effects = [column.effects[at] for column in found.columns for at in places]
    most = max((_cost(e) for e in effects if not e.reason), default=0.0)
    size = LEFT + WIDTH * len(found.columns), TOP + HEIGHT * (len(places) + 1)
    what = f"drop of {metric}" if metric else "drift of the outputs"
    body = [_text(8, 20, f"{rule}: {what}, one place at a time", "start", "bold")]
    for x, column in enumerate(found.columns):
        title = f"{name} = {column.value}" if name else ""
        body.append(_text(LEFT + WIDTH * x + WIDTH // 2, TOP - 8, title, "middle"))
        for y, at in enumerate(places):
            body.append(_square(x, y, column.effects[at], most))
    for y, at in enumerate(places):
        site = found.columns[0].effects[at].site
        body.append(_text(LEFT - 8, TOP + HEIGHT * y + 15, site, "end"))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *body, "</svg>"])


def _square(x: int, y: int, effect: SiteCost, most: float) -> str:
    share = 0.0 if effect.reason or most <= 0 else max(0.0, _cost(effect) / most)
    fill = "#eeeeee" if effect.reason else _colour(share)
    ink = "white" if share > 0.5 else "black"
    left, top = LEFT + WIDTH * x, TOP + HEIGHT * y
    box = f'<rect x="{left}" y="{top}" width="{WIDTH - 2}" height="{HEIGHT - 2}" fill="{fill}"/>'
    return box + _text(left + WIDTH // 2, top + 15, _cell(effect), "middle", "normal", ink)


def _colour(share: float) -> str:
    mixed = (round(p + share * (d - p)) for p, d in zip(PALE, DARK, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _text(
    x: int, y: int, text: str, anchor: str, weight: str = "normal", fill: str = "black"
) -> str:
    style = f'font-family="sans-serif" font-size="12" font-weight="{weight}" fill="{fill}"'
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" {style}>{escape(text)}</text>'
