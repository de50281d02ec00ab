"""The long form of the proofs: what is too slow for every change, run before a release.

    python benchmarks/release.py [PART ...] [--share 100%] [--jobs 2] [--out release.jsonl]

rules      10,000 generated models for each library rule, with near-misses, mutants and algebra
pairs      10 models for each ordered pair of exact rules
crowds     25,000 models of 16 exact rules each: more than 1,000 for each ordered pair
cuts       5,000 random graphs, of which random features are cut
networks   2,000 networks drawn by NNSmith (extra `diversity`), through the whole compiler
texts      100,000 mutated rule files: no crash, none longer than a second
artifacts  10,000 changed artifacts: each is refused
kills      200 writers killed at random moments: the folder is whole

`--share 1%` runs a hundredth of everything. Every unit is written to --out as it ends, so that a
run that was stopped goes on where it was; units of another commit are done again. Figures go to
stdout as Markdown.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import report
from release_parts import PARTS, ROOT, Found, Unit

Done = dict[str, Any]
"""A unit as JSON: `key`, `seconds`, and what `Found` holds."""


def main() -> None:
    options = _options()
    parts = options.parts or list(PARTS)
    units = [unit for name in parts for unit in PARTS[name].units(options.share, options.seed)]
    units = [unit for unit in units if not options.units or unit.name in options.units]
    out = Path(options.out) if options.out else None
    done = _run(units, options.jobs, out)
    mistakes = [(unit.part, text) for unit in units for text in done[_key(unit)]["wrong"]]
    for part, text in mistakes:
        print(f"{part}: {text}", file=sys.stderr)
    rows = [_row(name, [done[_key(unit)] for unit in units if unit.part == name]) for name in parts]
    print(report.table(("part", "tried", "wrong", "processor time", "of these"), rows))
    print(f"\nCommit {_commit()[:10]}. {report.machine()}")
    sys.exit(1 if mistakes else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="PART")
    parser.add_argument("--share", type=lambda t: float(t.rstrip("%")) / 100, default=1.0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--units", nargs="*", help="only these units, such as rules by name")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="JSON lines, one for each unit; read if it is there")
    return parser.parse_args()


# -- units -----------------------------------------------------------------------------------------


def _key(unit: Unit) -> str:
    return json.dumps({**asdict(unit), "commit": _commit()}, sort_keys=True)


@cache
def _commit() -> str:
    asked = ["git", "rev-parse", "HEAD"]
    return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def _run(units: Sequence[Unit], jobs: int, out: Path | None) -> Mapping[str, Done]:
    """Every unit, from the file where it has it."""
    done = {row["key"]: row for row in _written(out)}
    left = [unit for unit in units if _key(unit) not in done]
    print(f"{len(left)} of {len(units)} units to do", file=sys.stderr, flush=True)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(_timed, unit): unit for unit in left}
        for number, future in enumerate(as_completed(waiting), 1):
            unit, row = waiting[future], future.result()
            done[_key(unit)] = row = {"key": _key(unit), **row}
            if out is not None:
                with out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            said = f"{unit.part} {unit.name}: {row['tried']:,} tried, {len(row['wrong'])} wrong"
            print(f"{number}/{len(left)} {said}", file=sys.stderr, flush=True)
    return done


def _written(out: Path | None) -> Iterator[Done]:
    if out is None or not out.exists():
        return
    for line in out.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # the line that was being written when the run was stopped
            continue


def _timed(unit: Unit) -> Done:
    begun = time.process_time()
    try:
        found = unit.run().as_json()
    except Exception as error:  # one unit that fails must not lose the others
        found = Found(wrong=[f"{unit.name}: {error!r}"]).as_json()
    return {**found, "seconds": time.process_time() - begun}


# -- figures ---------------------------------------------------------------------------------------


def _row(part: str, found: Sequence[Done]) -> tuple[str, ...]:
    counts: Counter[str] = Counter()
    pairs: Counter[str] = Counter()
    for row in found:
        counts.update(row["counts"])
        pairs.update(row["pairs"])
    said = [f"{count:,} {name}" for name, count in counts.items()]
    if pairs:
        said.append(f"{len(pairs):,} pairs, at least {min(pairs.values()):,} models each")
    tried, wrong = sum(row["tried"] for row in found), sum(len(row["wrong"]) for row in found)
    seconds = report.seconds(sum(row["seconds"] for row in found))
    return PARTS[part].title, f"{tried:,}", str(wrong), seconds, ", ".join(said)


if __name__ == "__main__":
    main()
