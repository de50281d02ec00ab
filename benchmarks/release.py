"""The long form of the proofs: what is too slow for every change, run before a release.

    python benchmarks/release.py [rules] [pairs] [texts] [artifacts] [kills] [--share 100%]
        [--jobs 2] [--out release.json]

rules      10,000 generated models for each library rule, with near-misses, mutants and algebra
pairs      1,000 models for each ordered pair of exact rules
texts      100,000 mutated rule files: no crash, none longer than a second
artifacts  10,000 changed artifacts: each is refused
kills      200 writers killed at random moments: the folder is whole

`--share 1%` runs a hundredth of everything. Figures go to stdout as Markdown, details to --out.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import report
import torch

from lissom.testing import jobs_of, run_all
from tests import test_hostile_text as hostile
from tests import test_proving_together as together
from tests import test_store_faults as faults

ROOT = Path(__file__).resolve().parents[1]
EXACT_RULES = sorted(together.subjects())


@dataclass
class Figures:
    """What one part tried and found."""

    part: str
    tried: int = 0
    wrong: int = 0
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)


def main() -> None:
    options = _options()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = []
    for name in options.parts or PARTS:
        begun = time.perf_counter()
        figures = PARTS[name](options)
        figures.seconds = time.perf_counter() - begun
        print(
            f"{name}: {figures.tried:,} tried, {figures.wrong} wrong", file=sys.stderr, flush=True
        )
        found.append(figures)
    rows = [
        (f.part, f"{f.tried:,}", str(f.wrong), report.seconds(f.seconds), _said(f)) for f in found
    ]
    print(report.table(("part", "tried", "wrong", "time", "of these"), rows))
    print(f"\n{report.machine()}")
    if options.out:
        Path(options.out).write_text(json.dumps([asdict(f) for f in found], indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="PART")
    parser.add_argument("--share", type=lambda t: float(t.rstrip("%")) / 100, default=1.0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out")
    return parser.parse_args()


def _said(figures: Figures) -> str:
    plain = {k: v for k, v in figures.details.items() if isinstance(v, int)}
    return ", ".join(f"{count:,} {name}" for name, count in plain.items())


# -- the parts -------------------------------------------------------------------------------------


def rules(options: argparse.Namespace) -> Figures:
    models = max(1, int(10_000 * options.share))
    paths = sorted((ROOT / "passes").glob("*.lissom"))
    figures = Figures("generated models")
    sums: Counter[str] = Counter()
    for _, found in run_all(jobs_of(paths, (), models, options.seed, None), options.jobs):
        if isinstance(found, str):
            continue
        figures.tried += found.models
        figures.wrong += len(found.failures)
        sums.update(rules=1, rewrites=found.fired, mutants=found.mutants, killed=found.killed)
        sums.update(weak=bool(found.weak), near=sum(n.silent + n.equal for n in found.near))
        figures.details[found.rule] = found.as_json()
    figures.details |= dict(sums)
    return figures


def pairs(options: argparse.Namespace) -> Figures:
    each = max(1, int(1_000 * options.share))
    figures = Figures("ordered pairs of exact rules")
    fired = both = 0
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        work = [(name, each, options.seed) for name in EXACT_RULES]
        for tried, rewrites, together_, wrong in pool.map(_pairs_of, work):
            figures.tried += tried
            figures.wrong += len(wrong)
            fired, both = fired + rewrites, both + together_
            figures.details.setdefault("mistakes", []).extend(wrong)
    figures.details |= {"pairs": len(EXACT_RULES) ** 2, "rewrites": fired, "with both": both}
    return figures


def _pairs_of(work: tuple[str, int, int]) -> tuple[int, int, int, list[str]]:
    """One rule before every other."""
    first, each, seed = work
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    tried = fired = both = 0
    wrong = []
    for second in EXACT_RULES:
        for number in range(each):
            found = together.tried(f"{seed}/{first}/{second}/{number}", (first, second))
            if found is None:
                continue
            tried += 1
            fired += sum(found.fired.values())
            both += all(found.fired.get(name) for name in {first, second})
            wrong += [f"{first}/{second}/{number}: {found.wrong}"] if found.wrong else []
    return tried, fired, both, wrong


def texts(options: argparse.Namespace) -> Figures:
    figures = Figures("mutated rule files")
    generator = random.Random(options.seed)
    slow = whole = 0
    for number in range(int(100_000 * options.share)):
        mutate = (hostile.mutate_bytes, hostile.mutate_tokens)[number % 2]
        text = mutate(generator.choice(hostile.PROGRAMS), generator)
        begun = time.perf_counter()
        try:
            whole += hostile.assert_answered(text) is None
        except Exception as error:  # whatever escapes is the finding
            figures.wrong += 1
            figures.details.setdefault("mistakes", []).append([repr(error), text])
        slow += time.perf_counter() - begun > 1
        figures.tried += 1
    figures.wrong += slow
    figures.details |= {"longer than a second": slow, "still whole": whole}
    return figures


def artifacts(options: argparse.Namespace) -> Figures:
    """Random changes of the files of an artifact: bytes changed, cut out, put in, files cut."""
    from lissom.grammar.diagnostics import LissomError
    from lissom.rewrite.store import load

    figures = Figures("changed artifacts")
    generator = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        _artifact(whole)
        files = sorted(path for path in whole.iterdir() if path.is_file())
        for _ in range(int(10_000 * options.share)):
            broken = Path(folder) / "broken"
            shutil.copytree(whole, broken)
            _change(broken / generator.choice(files).name, generator)
            figures.tried += 1
            try:
                load(broken)
                figures.wrong += 1
            except LissomError:
                pass
            shutil.rmtree(broken)
    return figures


def _artifact(folder: Path) -> None:
    import lissom

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3)).eval()
    program = "pipeline p { stage s { fixpoint { fold_bn } } }"
    lissom.compile(model, program, inputs=(torch.rand(1, 2, 5, 5),)).save(folder)


def _change(path: Path, generator: random.Random) -> None:
    data = bytearray(path.read_bytes())
    before = bytes(data)
    while bytes(data) == before:
        at = generator.randrange(len(data))
        kind = generator.choice(("flip", "cut", "put", "end"))
        if kind == "flip":
            data[at] ^= 1 << generator.randrange(8)
        elif kind == "end":
            del data[at:]
        else:
            data[at : at + (kind == "cut")] = b"" if kind == "cut" else bytes([data[at] ^ 7, 0])
    path.write_bytes(bytes(data))


def kills(options: argparse.Namespace) -> Figures:
    figures = Figures("killed writers")
    generator = random.Random(options.seed)
    inside = 0
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "a"
        faults.write_folder(target, dict.fromkeys("abc", b"z" * 20_000))
        for _ in range(max(1, int(200 * options.share))):
            process = faults.writer(target)
            time.sleep(generator.uniform(0.0, 0.15))
            process.send_signal(signal.SIGKILL)
            process.wait()
            inside += bool(faults.leftovers(Path(folder)))
            figures.tried += 1
            try:
                faults.require_whole(target)
            except (AssertionError, OSError) as error:
                figures.wrong += 1
                figures.details.setdefault("mistakes", []).append(repr(error))
    figures.details["inside a write"] = inside
    return figures


PARTS: dict[str, Callable[[argparse.Namespace], Figures]] = {
    "rules": rules, "pairs": pairs, "texts": texts, "artifacts": artifacts, "kills": kills,
}  # fmt: skip

if __name__ == "__main__":
    main()
