"""The whole suite on several releases of torch, each in an environment of its own.

    python benchmarks/matrix.py 2.10.0 2.15.0 [--files test_capture.py ...] [--jobs 1]

Environments lie in build/matrix/, and so do the results: one line for each file of tests. A few
files share a process, since each process imports torch; the lines are written as it ends, so that a
run that was stopped goes on where it was. Files of another commit are run again. The table goes to
the page docs/versions.md, and says how many of all files were run; rows of releases that are not
named here stay.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import date
from itertools import chain
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

sys.path.insert(0, str(Path(__file__).parent))

import report

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/versions.md"
WORK = ROOT / "build/matrix"
HEADER = (
    "torch", "Python", "processor", "files run", "passed", "failed", "skipped", "seconds", "date",
    "commit",
)  # fmt: skip
SHARE = 6
"""Files of tests to a process."""
COUNTS = ("passed", "failed", "skipped")
ABOUT = """
import json, platform, torch
from lissom.rewrite.measure.processor import processor_name
print(json.dumps([torch.__version__, platform.python_version(), processor_name()]))
"""

Result = dict[str, Any]
"""Of one file of tests: `file`, `commit`, the counts, `seconds`, and the names of what failed."""


class Release:
    """One release of torch and what is known of it."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.folder = WORK / version
        self.python = self.folder / "venv/bin/python"
        self.results = self.folder / "results.jsonl"

    def install(self) -> None:
        """An environment with this torch, and with what the tests need. Raises CalledProcessError
        where it cannot be had.
        """
        if (self.folder / "installed").exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        pinned = self.folder / "torch.txt"
        pinned.write_text(f"torch=={self.version}\n")
        pip = [str(self.python), "-m", "pip", "install", "--quiet", "--constraint", str(pinned)]
        subprocess.run([sys.executable, "-m", "venv", str(self.folder / "venv")], check=True)
        subprocess.run([*pip, "--editable", f"{ROOT}[test]"], check=True)
        (self.folder / "installed").touch()

    def about(self) -> list[str]:
        """Build of torch, Python, and the processor with its instructions."""
        done = subprocess.run(
            [self.python, "-c", ABOUT], cwd=ROOT, check=True, capture_output=True, text=True
        )
        return json.loads(done.stdout)

    def known(self, commit: str) -> dict[str, Result]:
        """The results of this commit, by file."""
        lines = self.results.read_text().splitlines() if self.results.exists() else []
        found = [json.loads(line) for line in lines]
        return {each["file"]: each for each in found if each["commit"] == commit}

    def run(self, files: Sequence[Path], commit: str) -> list[Result]:
        """The tests of these files in one process. Where it dies, each file has one of its own; a
        file that ends its process is one failure more.
        """
        written = self.folder / f"{files[0].stem}.xml"
        written.unlink(missing_ok=True)
        command = [self.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, files)]
        begun = time.perf_counter()
        done = subprocess.run(
            [*command, f"--junitxml={written}"], cwd=ROOT, capture_output=True, text=True
        )
        took = round(time.perf_counter() - begun, 1)
        if done.returncode in (0, 1, 5):
            found = counted(written, files)
        elif len(files) > 1:
            return [result for file in files for result in self.run([file], commit)]
        else:
            found = [died(files[0], done.returncode) | {"seconds": took}]
        return [{"commit": commit, **each} for each in found]

    def keep(self, result: Result) -> None:
        with self.results.open("a") as out:
            out.write(json.dumps(result) + "\n")


def counted(written: Path, files: Sequence[Path]) -> list[Result]:
    """What pytest reports of one run, by file."""
    cases = list(ElementTree.parse(written).getroot().iter("testcase"))
    return [
        {"file": file.name, **counts([case for case in cases if belongs(case, file)])}
        for file in files
    ]


def belongs(case: Element, file: Path) -> bool:
    """A file that cannot be imported is a case itself: it has no class."""
    named = case.get("classname") or case.get("name") or ""
    return file.stem in named.split(".")


def counts(cases: Sequence[Element]) -> Result:
    failed = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    skipped = [c for c in cases if c.find("skipped") is not None]
    names = [f"{case.get('classname')}::{case.get('name')}" for case in failed]
    passed = len(cases) - len(failed) - len(skipped)
    took = round(sum(float(case.get("time", 0)) for case in cases), 1)
    return {
        "passed": passed, "failed": len(failed), "skipped": len(skipped), "names": names,
        "seconds": took,
    }  # fmt: skip


def died(file: Path, code: int) -> Result:
    names = [f"{file.name}: the process ended with {code}"]
    return {"file": file.name, "passed": 0, "failed": 1, "skipped": 0, "names": names}


def tested(release: Release, files: Sequence[Path], commit: str, jobs: int) -> list[Result]:
    """The results of these files and of those that are known; only what is not known is run."""
    known = release.known(commit)
    missing = [file for file in files if file.name not in known]
    shares = [missing[at : at + SHARE] for at in range(0, len(missing), SHARE)]
    with ThreadPoolExecutor(jobs) as pool:
        runs = [pool.submit(release.run, share, commit) for share in shares]
        for result in chain.from_iterable(run.result() for run in as_completed(runs)):
            release.keep(result)
            known[result["file"]] = result
            print(f"torch {release.version}  {told(result)}", flush=True)
    return list(known.values())


def told(result: Result) -> str:
    counts = ", ".join(f"{result[key]} {key}" for key in COUNTS if result[key])
    return f"{result['file']}  {counts or 'no test'}  {result['seconds']} s"


def row(release: Release, results: Sequence[Result], every: int, commit: str) -> list[str]:
    totals = [f"{sum(each[key] for each in results):,}" for key in COUNTS]
    took = f"{sum(each['seconds'] for each in results):,.0f}"
    run = f"{len(results)} of {every}"
    return [*release.about(), run, *totals, took, date.today().isoformat(), commit]


def kept(page: str, versions: Sequence[str]) -> Iterator[list[str]]:
    """The rows of the page for other releases."""
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        known = len(cells) == len(HEADER) and cells[0][:1].isdigit()
        if known and cells[0].partition("+")[0] not in versions:
            yield cells


def order(cells: Sequence[str]) -> list[int]:
    return [int(part) for part in cells[0].partition("+")[0].split(".")]


def commit_of() -> str:
    """The commit; a working tree that differs from it, in more than the page, is marked."""
    ask = ["git", "rev-parse", "--short=10", "HEAD"]
    found = subprocess.run(ask, cwd=ROOT, check=True, capture_output=True, text=True)
    differs = ["git", "diff", "--quiet", "HEAD", "--", ".", f":(exclude){PAGE.relative_to(ROOT)}"]
    return found.stdout.strip() + "-dirty" * subprocess.run(differs, cwd=ROOT).returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("versions", nargs="+", help="releases of torch")
    parser.add_argument("--files", nargs="*", help="files of tests; without it all")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    every = sorted((ROOT / "tests").glob("test_*.py"))
    files = [ROOT / "tests" / name for name in options.files or []] or every
    commit, rows, wrong = commit_of(), [], []
    for release in map(Release, options.versions):
        release.install()
        results = tested(release, files, commit, options.jobs)
        wrong += [f"torch {release.version}: {n}" for each in results for n in each["names"]]
        rows.append(row(release, results, len(every), commit))
    page = PAGE.read_text()
    rows = sorted([*rows, *kept(page, options.versions)], key=order)
    PAGE.write_text(report.put(page, "versions", report.table(HEADER, rows)))
    print(report.table(HEADER, rows), *wrong, sep="\n")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
