"""What exits save, as a picture: costs and metric of all thresholds that no others beat."""

from __future__ import annotations

from html import escape

from ..rewrite.journal import ExitsFitted

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 520, 320, 70, 40, 50
LINE, CHOSEN = "#2166ac", "#b2182b"


def svg(found: ExitsFitted) -> str:
    """A step for each choice of thresholds, left what is cheap; a dot for the one that was taken.
    Costs are shares of those of the last depth.
    """
    whole = found.rows[-1].macs
    metric = next(iter(found.metrics), "")
    points = [(macs / whole, value) for macs, value in found.frontier] or [(1.0, 0.0)]
    low, high = min(v for _, v in points), max(v for _, v in points)
    body = [_text(8, 20, f"exits on {found.data}: until {found.asked}", "start", "bold")]
    body += _axes(metric, low, high)
    places = [_place(share, value, low, high) for share, value in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    body.append(f'<polyline points="{line}" fill="none" stroke="{LINE}" stroke-width="2"/>')
    body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{LINE}"/>' for x, y in places]
    if metric:
        x, y = _place(found.macs / whole, found.metrics[metric], low, high)
        body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{CHOSEN}"/>')
    size = LEFT + WIDTH + 20, TOP + HEIGHT + BOTTOM
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *body, "</svg>"])


def _place(share: float, value: float, low: float, high: float) -> tuple[float, float]:
    across = LEFT + WIDTH * min(share, 1.0)
    return across, TOP + HEIGHT * (1 - (value - low) / ((high - low) or 1.0))


def _axes(metric: str, low: float, high: float) -> list[str]:
    left, under = f"M{LEFT},{TOP} V{TOP + HEIGHT}", f"H{LEFT + WIDTH}"
    found = [f'<path d="{left} {under}" fill="none" stroke="black"/>']
    for step in range(5):
        share, value = step / 4, low + (high - low) * step / 4
        x, y = _place(share, value, low, high)
        found.append(_text(x, TOP + HEIGHT + 18, f"{share:.0%}", "middle"))
        found.append(_text(LEFT - 8, y + 4, f"{value:.3f}", "end"))
    middle = LEFT + WIDTH / 2
    under = "multiply-accumulates, of those of all bodies and heads"
    found.append(_text(middle, TOP + HEIGHT + 38, under, "middle"))
    return [*found, _text(LEFT - 8, TOP - 10, metric, "end")]


def _text(x: float, y: float, text: str, anchor: str, weight: str = "normal") -> str:
    style = f'font-family="sans-serif" font-size="12" font-weight="{weight}"'
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" {style}>{escape(text)}</text>'
