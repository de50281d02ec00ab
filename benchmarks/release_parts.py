"""What `release.py` runs: parts, each cut into units that one process works through alone.

A unit is named by text and gives whole numbers, which add up over units, and a list of mistakes.
"""

from __future__ import annotations

import random
import shutil
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from lissom.jobs.testing import Job, jobs_of, prove_job
from lissom.rewrite.proving.compose import Company
from tests import channel_graphs
from tests import test_hostile_text as hostile
from tests import test_proving_together as together
from tests import test_store_faults as faults

ROOT = Path(__file__).resolve().parents[1]
EXACT_RULES = sorted(together.subjects())
CROWD = 16
"""Rules in one model, behind one another: 120 ordered pairs at the price of ten models."""


@dataclass
class Found:
    """What a unit tried. counts: further numbers that add up; pairs: models by ordered pair."""

    tried: int = 0
    wrong: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    pairs: Counter[str] = field(default_factory=Counter)
    details: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        plain = {"counts": dict(self.counts), "pairs": dict(self.pairs)}
        return {"tried": self.tried, "wrong": self.wrong, **plain, "details": self.details}


@dataclass(frozen=True)
class Unit:
    """One piece of a part: `number` things to try, with choices that start at `seed`."""

    part: str
    name: str
    number: int
    seed: int

    def run(self) -> Found:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        return PARTS[self.part].run(self)


@dataclass(frozen=True)
class Part:
    """What a part is called, its units for a share and a seed, and how one of them runs."""

    title: str
    units: Callable[[float, int], list[Unit]]
    run: Callable[[Unit], Found]


def _least(number: float) -> int:
    return max(1, int(number))


def _chunks(part: str, total: int, size: int, seed: int) -> list[Unit]:
    """Units of at most `size` things, each with choices of its own."""
    sizes = [min(size, total - start) for start in range(0, total, size)]
    return [Unit(part, str(i), n, seed * 10_000 + i) for i, n in enumerate(sizes)]


# -- generated models of each rule -----------------------------------------------------------------


def _jobs(models: int, seed: int) -> list[Job]:
    return jobs_of(sorted((ROOT / "passes").glob("*.lissom")), (), models, seed, None)


def _rule_units(share: float, seed: int) -> list[Unit]:
    models = _least(10_000 * share)
    return [Unit("rules", job.rule, models, seed) for job in _jobs(models, seed)]


def _rule(unit: Unit) -> Found:
    job = next(job for job in _jobs(unit.number, unit.seed) if job.rule == unit.name)
    report = prove_job(job)
    if isinstance(report, str):
        return Found(wrong=[f"{unit.name}: {report}"])
    found = Found(report.models, [f"{unit.name}: {f}" for f in report.failures])
    found.counts.update(rules=1, rewrites=report.fired, verified=report.verdict == "verified")
    found.counts.update(mutants=report.mutants, killed=report.killed)
    found.counts.update(near=sum(near.silent + near.equal for near in report.near))
    found.details = report.as_json()
    return found


# -- rules in company ------------------------------------------------------------------------------


def _pair_units(share: float, seed: int) -> list[Unit]:
    return [Unit("pairs", name, _least(10 * share), seed) for name in EXACT_RULES]


def _pairs(unit: Unit) -> Found:
    """One rule before every one, itself too."""
    found = Found()
    for second in EXACT_RULES:
        for number in range(unit.number):
            names = (unit.name, second)
            _meet(found, names, f"{unit.seed}/{'/'.join(names)}/{number}")
    return found


def _crowd_units(share: float, seed: int) -> list[Unit]:
    return _chunks("crowds", _least(25_000 * share), 500, seed)


def _crowds(unit: Unit) -> Found:
    found = Found()
    generator = random.Random(unit.seed)
    for number in range(unit.number):
        names = tuple(generator.choices(EXACT_RULES, k=CROWD))
        _meet(found, names, f"crowd {unit.seed}/{number}")
    return found


def _meet(found: Found, names: Sequence[str], seed: str) -> None:
    try:
        company = together.tried(seed, names)
    except Exception as error:  # whatever escapes is the finding
        company = Company({}, f"{seed}: {error!r}")
    if company is None:  # no model has a site of each
        return
    found.tried += 1
    fired = [name for name in names if company.fired.get(name)]
    found.counts.update({"rewrites": sum(company.fired.values()), "two or more": len(fired) > 1})
    found.counts.update({"refused for precision": bool(company.imprecise)})
    found.counts.update({"vacuous": company.vacuous})
    found.pairs.update(f"{a}, {b}" for a, b in combinations(names, 2))
    if company.imprecise:
        found.details[seed] = company.imprecise
    if company.wrong:
        found.wrong.append(f"{'/'.join(names)}: {company.wrong}")


# -- channels --------------------------------------------------------------------------------------


def _cuts(unit: Unit) -> Found:
    """Random graphs, random features of which are cut: each must equal the masked graph."""
    found = Found(unit.number)
    for number in range(unit.number):
        seed = f"{unit.seed}/{number}"
        try:
            tried = channel_graphs.try_graph(seed)
        except Exception as error:  # whatever escapes is the finding
            found.wrong.append(f"{seed}: {error!r}")
            continue
        found.wrong += [f"{seed}: {text}" for text in tried.wrong]
        found.counts.update(tried.counts)
    return found


# -- networks of another generator -----------------------------------------------------------------


def _networks(unit: Unit) -> Found:
    """Networks drawn by NNSmith, through the whole compiler, judged by what shares no code with it.

    Raises `NeedsNNSmith`, which names the extra.
    """
    import diversity

    diversity.require()
    drawn = diversity.chunk((unit.seed, 0, unit.number))
    found = Found(drawn.tried, [f"{seed}: {text}" for seed, text in drawn.wrong])
    found.counts.update({"captured": drawn.captured, "refused by name": drawn.refused.total()})
    found.counts.update({"rewritten": drawn.rewritten, "rewrites": drawn.rewrites.total()})
    found.details = {"rules": dict(drawn.rewrites), "codes": dict(drawn.refused)}
    return found


# -- the tool under attack -------------------------------------------------------------------------


def _texts(unit: Unit) -> Found:
    found = Found(unit.number)
    generator = random.Random(unit.seed)
    for number in range(unit.number):
        mutate = (hostile.mutate_bytes, hostile.mutate_tokens)[number % 2]
        text = mutate(generator.choice(hostile.PROGRAMS), generator)
        begun = time.process_time()
        try:
            found.counts["still whole"] += hostile.assert_answered(text) is None
        except Exception as error:  # whatever escapes is the finding
            found.wrong.append(f"{error!r}: {text!r}")
        if time.process_time() - begun > 1:
            found.wrong.append(f"longer than a second: {text!r}")
    return found


def _artifacts(unit: Unit) -> Found:
    """Random changes of the files of an artifact: bytes changed, cut out, put in, files cut."""
    from lissom.grammar.diagnostics import LissomError
    from lissom.rewrite.store.folder import load

    found = Found(unit.number)
    generator = random.Random(unit.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        _artifact(whole)
        files = sorted(path for path in whole.iterdir() if path.is_file())
        for number in range(unit.number):
            broken = Path(folder) / "broken"
            shutil.copytree(whole, broken)
            name = generator.choice(files).name
            _change(broken / name, generator)
            try:
                load(broken)
                found.wrong.append(f"{unit.seed}/{number}: {name} was changed and accepted")
            except LissomError:
                pass
            shutil.rmtree(broken)
    return found


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


def _kills(unit: Unit) -> Found:
    found = Found(unit.number)
    generator = random.Random(unit.seed)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "a"
        faults.write_folder(target, dict.fromkeys("abc", b"z" * 20_000))
        for number in range(unit.number):
            process = faults.writer(target)
            time.sleep(generator.uniform(0.0, 0.15))
            process.send_signal(signal.SIGKILL)
            process.wait()
            found.counts["inside a write"] += bool(faults.leftovers(Path(folder)))
            try:
                faults.require_whole(target)
            except (AssertionError, OSError) as error:
                found.wrong.append(f"{unit.seed}/{number}: {error!r}")
    return found


def _in_chunks(part: str, total: int, size: int) -> Callable[[float, int], list[Unit]]:
    return lambda share, seed: _chunks(part, _least(total * share), size, seed)


PARTS = {
    "rules": Part("generated models", _rule_units, _rule),
    "pairs": Part("ordered pairs of exact rules", _pair_units, _pairs),
    "crowds": Part(f"{CROWD} exact rules together", _crowd_units, _crowds),
    "cuts": Part("random graphs cut at random", _in_chunks("cuts", 5_000, 250), _cuts),
    "networks": Part("NNSmith networks", _in_chunks("networks", 2_000, 100), _networks),
    "texts": Part("mutated rule files", _in_chunks("texts", 100_000, 5_000), _texts),
    "artifacts": Part("changed artifacts", _in_chunks("artifacts", 10_000, 1_000), _artifacts),
    "kills": Part("killed writers", _in_chunks("kills", 200, 50), _kills),
}
