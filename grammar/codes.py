"""Every code that lissom reports: what it means, an example that triggers it, and the usual fix."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from .diagnostics import did_you_mean, fail

_SECTION = re.compile(r"^## ([A-Z]\d{3}) (.+)$", re.M)
_EXAMPLE = re.compile(r"^```lissom\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True, slots=True)
class CodeInfo:
    """`example` is a rule file that triggers the code; empty for codes that need a model."""

    code: str
    title: str
    explanation: str
    example: str
    fix: str

    @property
    def static(self) -> bool:
        """Whether the code is found without a model."""
        return bool(self.example)

    def __str__(self) -> str:
        parts = [f"{self.code}: {self.title}", self.explanation]
        if self.example:
            parts.append("For example:\n\n" + _indented(self.example))
        return "\n\n".join([*parts, f"Fix: {self.fix}"])


def explain(code: str) -> str:
    """The page for a code. Raises N001 for a code that does not exist."""
    info = codes().get(code.upper())
    if info is None:
        hint = next(iter(did_you_mean(code.upper(), codes())), "")
        raise fail("N001", f"there is no code `{code}`", help=hint)
    return str(info)


@cache
def codes() -> Mapping[str, CodeInfo]:
    """All codes in the order of codes.md."""
    text = resources.files(__package__ or "").joinpath("codes.md").read_text("utf-8")
    return {info.code: info for info in _sections(text)}


def _sections(text: str) -> Iterator[CodeInfo]:
    starts = list(_SECTION.finditer(text))
    ends = [start.start() for start in starts[1:]] + [len(text)]
    for start, end in zip(starts, ends, strict=True):
        body, _, fix = text[start.end() : end].rpartition("\nFix: ")
        example = _EXAMPLE.search(body)
        shown = _visible(example[1]) if example else ""
        explanation = body[: example.start()] if example else body
        yield CodeInfo(start[1], start[2], explanation.strip(), shown, fix.strip())


def _visible(example: str) -> str:
    """An example may name one invisible character by its escape."""
    return example.replace("\\u200b", "\u200b")


def _indented(text: str) -> str:
    shown = text.replace("\u200b", "\\u200b").splitlines()
    return "\n".join(f"    {line}" if line else "" for line in shown)
