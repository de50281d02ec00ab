"""Cutting channels out of public models: lissom beside Torch-Pruning.

    python benchmarks/channels.py [torchvision] [timm] [transformers] [detection] [speed] [latency]
        [--kind KIND] [--only NAME ...] [--limit N] [--jobs 1] [--seconds 600] [--no-peer]
        [--out results.jsonl] [--table results.jsonl]

Every model is built with random weights and runs on one thread, each tool in a process of its own.
lissom removes a random half of every dimension that it finds cuttable, and the result is compared
with the whole model whose sums leave the same features out, at two batch sizes where the model has
no batch size written into it. Torch-Pruning removes half of the channels of every layer by L1 norm
and must run and keep the form of the output. Prints Markdown; the exit code is 1 if a cut model
computes something else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from zlib import crc32

import torch

sys.path.insert(0, str(Path(__file__).parent))

import channels_cut as ours
import channels_peer as peer
import channels_race
import report
import torchvision_cpu
from channels_models import SETS, Key, Measure, Row, alive, in_processes

LISSOM, PEER = "lissom", "peer"
RACES = ("speed", "latency")
_HEAD = ("set", "models", "captured", "cut and equal", "nothing to cut", "refused by name")
_HEAD += ("failed", "WRONG", "half or more cuttable", "median cuttable share")
_HEAD += ("peer: ran and kept shape", "peer: failed")
_COLUMNS = (
    "model",
    "captured by",
    "outcome",
    "cuttable classes",
    "parameters",
    "cuttable share",
    "difference",
)
_COLUMNS += ("moved", "CPU analysis", "CPU cut", "peak MB", "stored", "peer", "peer CPU")


def main() -> int:
    options = _options()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.table:
        rows = _read(options.table)
    else:
        torchvision_cpu.prepare()
        rows = _run(options)
    print(markdown(rows))
    return int(any(ours.outcome(row) == ours.WRONG for row in rows if row["tool"] == LISSOM))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", type=_known, help=", ".join([*SETS, *RACES]))
    parser.add_argument("--kind", default="*", help="one kind of models: classification, video")
    parser.add_argument("--only", nargs="+", default=["*"], help="names, or patterns such as vit_*")
    parser.add_argument("--limit", type=int, help="so many models of each set")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--seconds", type=int, default=600, help="time limit for a tool on a model")
    parser.add_argument("--peer", action=argparse.BooleanOptionalAction, default=peer.installed())
    parser.add_argument("--out", help="append results to this file, and skip what it holds")
    parser.add_argument("--table", help="print the tables of an earlier run")
    return parser.parse_args()


def _known(name: str) -> str:
    if name not in SETS and name not in RACES:
        raise argparse.ArgumentTypeError(f"{name} is none of {', '.join([*SETS, *RACES])}")
    return name


# -- running ---------------------------------------------------------------------------------------


def _read(path: str | None) -> list[Row]:
    if path is None or not Path(path).exists():
        return []
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def _run(options: argparse.Namespace) -> list[Row]:
    """All rows: those of an earlier run that are asked for again, and the new ones."""
    tasks = dict(_tasks(options))
    rows = [row for row in _read(options.out) if _key(row) in tasks]
    for row in rows:
        tasks.pop(_key(row), None)
    for key, row in in_processes(tasks.items(), options.jobs, options.seconds):
        rows.append(dict(zip(("set", "kind", "name", "tool"), key, strict=True)) | row)
        _note(rows[-1], options.out)
    return rows


def _key(row: Row) -> Key:
    return row["set"], row["kind"], row["name"], row["tool"]


def _tasks(options: argparse.Namespace) -> Iterator[tuple[Key, Measure]]:
    """Models in an order that has nothing to do with their names: a run cut short is a fair sample
    of them.
    """
    wanted = options.sets or [*SETS, *RACES]
    for name in (each for each in wanted if each in SETS):
        entries = sorted(SETS[name](), key=lambda entry: crc32(entry[0].encode()))
        chosen = [e for e in entries if _is_chosen(e[0], e[1], options)]
        for model, kind, build in chosen[: options.limit]:
            yield (name, kind, model, LISSOM), ours.measured(alive(build))
            if options.peer:
                yield (name, kind, model, PEER), peer.measured(alive(build))
    for name in (each for each in wanted if each in RACES):
        for model, measure in channels_race.entries(name, options.peer):
            if _is_chosen(model, "*", options):
                yield (name, "race", model, "both"), measure


def _is_chosen(model: str, kind: str, options: argparse.Namespace) -> bool:
    known = kind == "*" or fnmatch(kind, options.kind)
    return known and any(fnmatch(model, pattern) for pattern in options.only)


def _note(row: Row, out: str | None) -> None:
    told = ours.outcome(row) if row["tool"] == LISSOM else row["stage"]
    print(row["name"], row["tool"], told, row.get("error", ""), file=sys.stderr, flush=True)
    if out:
        with Path(out).open("a") as file:
            file.write(json.dumps(row) + "\n")


# -- the tables ------------------------------------------------------------------------------------


def markdown(rows: Sequence[Row]) -> str:
    """A summary of each set, a line for each model, what went wrong, and the races."""
    models = _by_model(rows)
    parts = [report.machine()]
    if models:
        parts += [summary(models), _per_model(models), "\n".join(_exceptions(models))]
    parts += [channels_race.table(name, [r for r in rows if r["set"] == name]) for name in RACES]
    return "\n\n".join(part for part in parts if part)


def _by_model(rows: Iterable[Row]) -> dict[Key, dict[str, Row]]:
    found: dict[Key, dict[str, Row]] = {}
    for row in rows:
        if row["tool"] in (LISSOM, PEER):
            found.setdefault(_key(row)[:3], {})[row["tool"]] = row
    return found


def summary(models: dict[Key, dict[str, Row]]) -> str:
    """One line for each set, and for each kind of torchvision's models."""
    groups: dict[str, list[dict[str, Row]]] = {}
    for (name, kind, _), row in models.items():
        label = f"{name}, {kind}" if name in ("torchvision", "detection") else name
        groups.setdefault(label, []).append(row)
    return report.table(_HEAD, [_line(label, group) for label, group in sorted(groups.items())])


def _line(label: str, group: list[dict[str, Row]]) -> list[str]:
    own = [rows[LISSOM] for rows in group if LISSOM in rows]
    words = [ours.outcome(row) for row in own]
    idle = sum(word in (ours.NOTHING, ours.SILENT) for word in words)
    shares = [row["share"] for row in own if "share" in row]
    others = [peer.works(rows[PEER]) for rows in group if PEER in rows]
    numbers = [
        len(own),
        len(own) - words.count(ours.UNSEEN),
        words.count(ours.EQUAL),
        idle,
        words.count(ours.REFUSED),
        words.count(ours.FAILED),
        words.count(ours.WRONG),
        sum(share >= 0.5 for share in shares),
    ]
    share = f"{statistics.median(shares):.2f}" if shares else "--"
    theirs = [str(sum(others)), str(len(others) - sum(others))] if others else ["--", "--"]
    return [label, *map(str, numbers), share, *theirs]


def _per_model(models: dict[Key, dict[str, Row]]) -> str:
    lines = [
        [f"{key[2]}", *_own_cells(rows.get(LISSOM, {})), *_peer_cells(rows.get(PEER))]
        for key, rows in sorted(models.items())
    ]
    return report.table(_COLUMNS, lines)


def _own_cells(row: Row) -> list[str]:
    counts = f"{row['free']} of {row['classes']}" if "free" in row else "--"
    sizes = [_millions(row.get("before")), _millions(row.get("after"))]
    difference = _scientific(row.get("diff"))
    if isinstance(row.get("diff64"), float):
        difference += f", float64 {_scientific(row['diff64'])}"
    return [
        row.get("how", "--"),
        ours.outcome(row),
        counts,
        " -> ".join(sizes),
        f"{row['share']:.3f}" if "share" in row else "--",
        difference,
        f"{row['moved']:.2g}" if "moved" in row else "--",
        _seconds(row.get("analyse_s")),
        _seconds(row.get("cut_s")),
        str(row.get("peak_mb", "--")),
        row.get("stored", "--").partition(":")[0],
    ]


def _peer_cells(row: Row | None) -> list[str]:
    if row is None:
        return ["--", "--"]
    if not peer.works(row):
        return [f"failed: {peer_failure(row)}", _seconds(row.get("seconds"))]
    return [_millions(row["after"]), _seconds(row["seconds"])]


def peer_failure(row: Row) -> str:
    if "error" in row:
        return row["error"].partition(":")[0]
    return "nothing removed" if row["kept"] else "another output shape"


def _exceptions(models: dict[Key, dict[str, Row]]) -> Iterator[str]:
    """What did not work, with its own words; and what keeps models whole."""
    for (_, _, name), rows in sorted(models.items()):
        row = rows.get(LISSOM, {})
        word = ours.outcome(row)
        if word != ours.EQUAL:
            told = row.get("error") or "; ".join(row.get("blockers", []))
            yield f"- {name}: {word} ({row.get('stage')}): {_one_line(told)}"
        other = rows.get(PEER, {})
        if "error" in other:
            yield f"- {name}, peer ({other.get('stage')}): {_one_line(other['error'])}"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def _millions(value: int | None) -> str:
    return "--" if value is None else f"{value / 1e6:.2f} M"


def _scientific(value: Any) -> str:
    return f"{value:.0e}" if isinstance(value, float) else "--"


def _seconds(value: float | None) -> str:
    return "--" if value is None else report.seconds(value)


if __name__ == "__main__":
    sys.exit(main())
