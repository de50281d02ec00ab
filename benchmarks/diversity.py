"""Networks that nobody here wrote, through the whole compiler: none may compute anything else.

    pip install 'lissom[diversity]'
    python benchmarks/diversity.py [--graphs 2000] [--seed 0] [--jobs 1] [--out found.json]

NNSmith draws networks (diversity_models.py). Each is captured, rewritten by every exact rule of
tidy, fold, absorb and merge until none fires, and run on inputs that the compiler has not seen. The
result is compared by the compiler's own whole-model check and by one that shares no code with it
(diversity_judge.py). A network that capture refuses with a diagnostic is counted; any other error
is a mistake, and so is a rule that breaks its promise. Exit code 1 with mistakes, 4 without
NNSmith.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import report
import torch
from diversity_judge import judge

from lissom import LissomError, Result
from lissom.grammar.checks.check import require_sound
from lissom.grammar.library.program import Program, program_of
from lissom.grammar.text.parse import parse
from lissom.grammar.tree import tree as t
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.measure.compare import model_equality
from lissom.rewrite.pipeline.compile import Options, compile_checked

if TYPE_CHECKING:
    from diversity_models import Drawn

ROOT = Path(__file__).resolve().parents[1]

NEEDED = ("nnsmith", "z3")
MISSING = 4
"""Exit code where NNSmith is not installed; the program `lissom` has the same for a package."""

FILES = ("tidy", "fold", "absorb", "merge")
FRESH = 2
"""Draws of inputs that the compiler has not seen."""
CHUNK = 25


@dataclass
class Found:
    """What became of some networks. `wrong`: the seed of each mistake, and what it is."""

    tried: int = 0
    invalid: int = 0
    captured: int = 0
    rewritten: int = 0
    layers: int = 0
    border: int = 0
    loose: int = 0
    captured_by: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    rewrites: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0

    def __iadd__(self, other: Found) -> Found:
        for name, value in vars(other).items():
            mine = getattr(self, name)
            setattr(self, name, mine + value)
        return self


class NeedsNNSmith(Exception):
    """NNSmith is not installed. The message says how to get it."""


def require() -> None:
    """Raises `NeedsNNSmith` where a package is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise NeedsNNSmith(
            f"no package `{missing[0]}`: networks are drawn by NNSmith, which the extra"
            " `diversity` brings: pip install 'lissom[diversity]'"
        )


# -- for the long form of the proofs ---------------------------------------------------------------


def run(count: int, seed: int = 0, jobs: int = 1) -> Found:
    """`count` networks on `jobs` processes. The same seed gives the same networks on any number of
    them. Raises `NeedsNNSmith`.
    """
    begun = time.perf_counter()
    total = Found()
    for found in chunks(count, seed, jobs):
        total += found
    total.seconds = time.perf_counter() - begun
    return total


def chunks(count: int, seed: int = 0, jobs: int = 1) -> Iterator[Found]:
    """What became of each `CHUNK` networks, in order, as they are done."""
    require()
    work = [(seed, first, min(CHUNK, count - first)) for first in range(0, count, CHUNK)]
    if jobs <= 1:
        yield from map(chunk, work)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(chunk, work)


def chunk(work: tuple[int, int, int]) -> Found:
    """The networks `first` to `first + count` of a seed; what a process of a pool runs."""
    seed, first, count = work
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    begun = time.perf_counter()
    found = Found()
    for number in range(first, first + count):
        tried(f"{seed}/{number}", found)
    found.seconds = time.perf_counter() - begun
    return found


# -- one network -----------------------------------------------------------------------------------


def tried(seed: str, found: Found, *, verify: bool = True) -> None:
    """Adds to `found` what becomes of the network of this seed."""
    from diversity_models import Undrawn, draw

    found.tried += 1
    try:
        drawn = draw(seed)
    except Undrawn:
        found.invalid += 1
        return
    if not _runs(drawn):
        found.invalid += 1
        return
    found.layers += drawn.layers
    try:
        _through(seed, drawn, found, verify)
    except LissomError as error:
        _refused(seed, error, found)
    except Exception as error:  # Whatever escapes is the finding.
        found.wrong.append((seed, f"crash: {type(error).__name__}: {error}"))


def _through(seed: str, drawn: Drawn, found: Found, verify: bool) -> None:
    result = compiled(drawn, verify=verify)
    found.captured += 1
    found.captured_by[result.compiled.capture_how] += 1
    found.rewritten += bool(result.applied)
    found.rewrites.update(event.rule for event in result.applied)
    _compare(seed, drawn, result, found)


def compiled(drawn: Drawn, *, verify: bool = True) -> Result:
    """The network after every exact rule, until none fires: what `lissom.compile` does, but for the
    program's own check, which takes longer than a network does and is made once.
    """
    options = Options(functions=FUNCTIONS, verify=verify)
    inputs = drawn.inputs(0)
    return Result(compile_checked(drawn.net, program(), inputs, None, {}, options))


@cache
def program() -> Program:
    """Every exact rule in one stage. Raises `LissomError` where the checker finds an error."""
    names = [
        rule.name.text
        for file in FILES
        for rule in parse((ROOT / "passes" / f"{file}.lissom").read_text()).all(t.Rule)
        if rule.kind == "exact"
    ]
    text = "pipeline every_exact_rule { stage exact { fixpoint { " + "; ".join(names) + " } } }"
    found = program_of(text, "<diversity>", ROOT)
    require_sound(found)
    return found


def _runs(drawn: Drawn) -> bool:
    """Some networks cannot run at all: a whole number to a negative power, say."""
    try:
        with torch.no_grad():
            drawn.net(*drawn.inputs(0))
    except (RuntimeError, ValueError, IndexError, TypeError, OverflowError):
        return False
    return True


def _refused(seed: str, error: LissomError, found: Found) -> None:
    """Codes of the capture are answers; any other says that a rule or the engine is wrong."""
    code = error.diagnostics[0].code
    found.refused[code] += 1
    if not code.startswith("M"):
        found.wrong.append((seed, f"refused: {error}"))


def _compare(seed: str, drawn: Drawn, result: Result, found: Found) -> None:
    border = loose = False
    nodes = len(result.model.graph.nodes)
    for number in range(1, FRESH + 1):
        inputs = drawn.inputs(number)
        own = model_equality(drawn.net, result.model, inputs, nodes)
        seen = judge(drawn.net, result.model, inputs, seed=number, bits=not result.applied)
        if seen.wrong:
            found.wrong.append((seed, f"differs: {seen.wrong}"))
        elif not own.holds:
            text = f"{own.worst:.3g} > {own.tolerance}; {own.detail}"
            found.wrong.append((seed, f"only lissom's own check: {text}"))
        border, loose = border or seen.border, loose or seen.loose
    found.border += border
    found.loose += loose


# -- by hand ---------------------------------------------------------------------------------------


def main() -> int:
    options = _options()
    found = Found()
    try:
        for part in chunks(options.graphs, options.seed, options.jobs):
            found += part
            said = "".join(f"; {seed}: {text}" for seed, text in part.wrong)
            print(f"{found.tried:,} tried{said}", file=sys.stderr, flush=True)
    except NeedsNNSmith as error:
        print(f"error: {error}", file=sys.stderr)
        return MISSING
    print(table(found))
    print(f"\n{report.machine()}")
    for name, text in found.wrong:
        print(f"\n{name}: {text}")
    if options.out:
        Path(options.out).write_text(json.dumps(vars(found), indent=1))
    return 1 if found.wrong else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--graphs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out")
    return parser.parse_args()


def table(found: Found) -> str:
    rows: list[tuple[str, Any]] = [
        ("networks", found.tried),
        ("of layers", found.layers),
        ("that NNSmith gave up, or that cannot run", found.invalid),
        *((f"refused: {code}", count) for code, count in sorted(found.refused.items())),
        ("captured", found.captured),
        *((f"captured by {how}", count) for how, count in sorted(found.captured_by.items())),
        ("rewritten at least once", found.rewritten),
        ("rewrites", found.rewrites.total()),
        ("rules that fired", len(found.rewrites)),
        ("decided by rounding", found.border),
        ("too ill-conditioned to say much", found.loose),
        ("mistakes", len(found.wrong)),
    ]
    lines = [(name, f"{count:,}") for name, count in rows]
    fired = [(f"`{rule}`", f"{count:,}") for rule, count in found.rewrites.most_common()]
    lines.append(("time", report.seconds(found.seconds)))
    return "\n\n".join((report.table(("", "count"), lines), report.table(("rule", "fired"), fired)))


if __name__ == "__main__":
    sys.exit(main())
