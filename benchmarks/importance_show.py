"""The tables and the figure of the importance benchmark."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import report

Row = dict[str, Any]

WHOLE, RANDOM = "whole", "random"
SETTLED = "_settled"
"""What the columns of a network end in whose norms have new statistics."""
VARIANTS = {"": "", SETTLED: "norm statistics made anew"}
# Colour (Okabe and Ito's, told apart by the colour-blind) and line; one line for each kind of
# source: weights are drawn through, activations dotted, gradients dashed with dots.
LOOKS = {
    "l1": ("#0072B2", "-", "o", "L1 of writers"),
    "l2": ("#56B4E9", "-", "s", "L2 of writers"),
    "median": ("#E69F00", "-", "^", "geometric median"),
    "readers": ("#000000", "-", "v", "L1 of readers"),
    "scale": ("#CC79A7", "-", "D", "norm scale"),
    "apoz": ("#8C510A", ":", "P", "activity (APoZ)"),
    "mean": ("#7B5EA7", ":", "X", "mean activation"),
    "taylor": ("#D55E00", "-.", "*", "Taylor"),
    "hessian": ("#009E73", "-.", "h", "Hessian (Fisher)"),
}
GREY = "#808080"


def of(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """The rows that have these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def values(rows: Iterable[Row], column: str) -> list[Any]:
    """What a column holds, each value once, in order of appearance."""
    return list(dict.fromkeys(row[column] for row in rows))


def points(rows: Sequence[Row], score: str, mark: str = "") -> dict[int, list[float]]:
    """Accuracies on the validation split by ratio, one of each network and draw; 0 is uncut."""
    found: dict[int, list[float]] = {}
    for row in (*of(rows, score=WHOLE), *of(rows, score=score)):
        found.setdefault(row["ratio"], []).append(row["valid" + mark])
    return dict(sorted(found.items()))


def panels(rows: Sequence[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    """For each model, and again where its norms were settled: name, mark of the columns, rows."""
    for model in values(rows, "model"):
        own = of(rows, model=model)
        count = len(values(own, "network"))
        name = f"{model}, {'one network' if count == 1 else f'mean of {count} networks'}"
        for mark, variant in VARIANTS.items():
            if "valid" + mark in own[0]:
                yield f"{name}{', ' if variant else ''}{variant}", mark, own


def _scores(rows: Sequence[Row]) -> list[str]:
    return [name for name in values(rows, "score") if name != WHOLE]


# -- tables ----------------------------------------------------------------------------------------


def markdown(rows: Sequence[Row]) -> str:
    """For each panel: accuracy by ratio and score, on the test split, and the cost of a score."""
    parts = [report.machine()]
    for name, mark, own in panels(rows):
        images = f"{own[0]['images']:,} validation images"
        parts += [f"**{name}**: {images}, accuracy in %", _by_ratio(own, mark), _on_test(own, mark)]
    return "\n\n".join(parts)


def _by_ratio(rows: Sequence[Row], mark: str) -> str:
    curves = {score: points(rows, score, mark) for score in _scores(rows)}
    ratios = sorted({ratio for curve in curves.values() for ratio in curve})
    head = ["removed", "parameters", *curves]
    return report.table(head, [_line(rows, curves, ratio) for ratio in ratios])


def _line(rows: Sequence[Row], curves: dict[str, dict[int, list[float]]], ratio: int) -> list[str]:
    left = max(row["params"] for row in of(rows, ratio=ratio))
    cells = [_cell(curve.get(ratio, []), name == RANDOM) for name, curve in curves.items()]
    return [f"{ratio} %", f"{left:,}", *cells]


def _cell(found: Sequence[float], spread: bool) -> str:
    """The mean in percent, with the smallest and the largest where they are asked for."""
    if not found:
        return "--"
    mean = _percent(statistics.fmean(found))
    if not spread or min(found) == max(found):
        return mean
    return f"{mean} ({_percent(min(found))} to {_percent(max(found))})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _on_test(rows: Sequence[Row], mark: str) -> str:
    """Scores by accuracy on the test split, with the range over networks, and CPU seconds."""
    column = "test" + mark
    tested = [row for row in rows if column in row]
    ratios = sorted(values(tested, "ratio"))[1:]
    head = ["score", *(f"test, {ratio} % removed" for ratio in ratios), "CPU of a cut"]
    lines = [
        [name, *(_tests(tested, name, r, column) for r in ratios), _cost(rows, name)]
        for name in _scores(rows)
    ]
    whole = _cell([row[column] for row in of(tested, score=WHOLE)], True)
    return f"On the test split; uncut {whole}:\n\n{report.table(head, lines)}"


def _tests(tested: Sequence[Row], name: str, ratio: int, column: str) -> str:
    return _cell([row[column] for row in of(tested, score=name, ratio=ratio)], True)


def _cost(rows: Sequence[Row], name: str) -> str:
    return report.seconds(statistics.median(row["cpu_s"] for row in of(rows, score=name)))


# -- the figure ------------------------------------------------------------------------------------


def plot(rows: Sequence[Row], path: Path) -> None:
    """All panels side by side, written as SVG; the same rows give the same bytes."""
    import matplotlib

    matplotlib.use("svg")
    # Without a fixed salt and date each writing would differ.
    settings = {"svg.hashsalt": "lissom", "svg.fonttype": "none", "font.size": 9}
    matplotlib.rcParams.update({**settings, "axes.linewidth": 0.6})
    from matplotlib import pyplot

    shown = list(panels(rows))
    size = (3.9 * len(shown) + 0.4, 4.2)
    figure, axes = pyplot.subplots(1, len(shown), figsize=size, sharey=True, squeeze=False)
    for panel, (name, mark, own) in zip(axes[0], shown, strict=True):
        _panel(panel, name, mark, own)
    axes[0][0].set_ylabel("accuracy on the validation split (%)")
    _legend(figure, axes[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None, "Creator": None}, bbox_inches="tight")
    pyplot.close(figure)


def _panel(panel: Any, name: str, mark: str, rows: Sequence[Row]) -> None:
    panel.set_title(name.replace(", norm", ",\nnorm"), fontsize=9)
    panel.set_xlabel("channels removed from every dimension (%)")
    panel.set_ylim(0, 102)
    panel.grid(linewidth=0.4, alpha=0.4)
    panel.spines[["top", "right"]].set_visible(False)
    for score in _scores(rows):
        gid = f"line-{rows[0]['model']}{mark}-{score}"
        _draw(panel, gid, score, points(rows, score, mark))


def _draw(panel: Any, gid: str, score: str, curve: dict[int, list[float]]) -> None:
    means = [100 * statistics.fmean(found) for found in curve.values()]
    style: dict[str, Any] = {"linewidth": 1.3, "gid": gid}
    if score != RANDOM:
        colour, line, marker, label = LOOKS[score]
        panel.plot([*curve], means, line, color=colour, marker=marker, ms=4, label=label, **style)
        return
    low = [100 * min(found) for found in curve.values()]
    high = [100 * max(found) for found in curve.values()]
    panel.fill_between([*curve], low, high, color=GREY, alpha=0.2, linewidth=0)
    label = "random: mean and range"
    panel.plot([*curve], means, "--", color=GREY, label=label, **style)


def _legend(figure: Any, panels: Sequence[Any]) -> None:
    """One legend below all panels, each score once."""
    handles = {
        label: line
        for panel in panels
        for line, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.tight_layout()
    figure.legend(
        handles.values(), handles, loc="upper center", bbox_to_anchor=(0.5, 0.01), ncols=4,
        frameon=False, handlelength=3,
    )  # fmt: skip
