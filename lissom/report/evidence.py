"""The certificate that `lissom test` writes, read again: what was tried and found for each rule.

It may come from anywhere, so nothing in it is trusted: a field of another type counts as missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..grammar.diagnostics import Diagnostic, Label, fail
from ..grammar.documents import sha256
from ..grammar.tree import tree as t

FORMAT = 1
NEEDED = ("rule", "sha256", "verdict")


@dataclass(frozen=True, slots=True)
class RuleEvidence:
    """What the certificate says of one rule. Numbers that it does not give are None."""

    fields: Mapping[str, Any]

    def text(self, name: str) -> str:
        found = self.fields.get(name)
        return found if isinstance(found, str) else ""

    def number(self, name: str) -> float | None:
        return _number(self.fields.get(name))

    def part(self, name: str) -> RuleEvidence:
        """A field that has fields; an empty one if there is none."""
        found = self.fields.get(name)
        return RuleEvidence(found if isinstance(found, dict) else {})

    def parts(self, name: str) -> list[RuleEvidence]:
        return [
            RuleEvidence(item) for item in _list(self.fields.get(name)) if isinstance(item, dict)
        ]

    def texts(self, name: str) -> list[str]:
        return [item for item in _list(self.fields.get(name)) if isinstance(item, str)]

    def counts(self) -> dict[str, float]:
        """The fields that are numbers."""
        found = {str(key): _number(value) for key, value in self.fields.items()}
        return {key: value for key, value in found.items() if value is not None}


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


@dataclass(frozen=True)
class Evidence:
    """A whole certificate, by the names of its rules."""

    path: Path
    document: RuleEvidence

    def of(self, rule: t.Rule) -> RuleEvidence | None:
        """What was found for this very text; None where it was not tested."""
        return next((e for e in self._named(rule) if e.text("sha256") == digest(rule)), None)

    def stale(self, rule: t.Rule) -> Diagnostic | None:
        """V113 where the evidence for the rule is about another text."""
        named = self._named(rule)
        return self._other_text(rule, named[0]) if named and self.of(rule) is None else None

    def _named(self, rule: t.Rule) -> list[RuleEvidence]:
        return [e for e in self.document.parts("rules") if e.text("rule") == rule.name.text]

    def _other_text(self, rule: t.Rule, entry: RuleEvidence) -> Diagnostic:
        return Diagnostic(
            "V113",
            f"`{rule.name}` is not the text that was tested",
            (Label(rule.name.span, "changed since"),),
            (f"SHA-256 of this text: {digest(rule)[:12]}; tested: {entry.text('sha256')[:12]}",),
            (f"test all of its files again: lissom test FILES --certificate {self.path}",),
        )


def digest(rule: t.Rule) -> str:
    """SHA-256 of a rule's text: what a certificate names."""
    return sha256(rule.span.text)


def read_evidence(path: Path) -> Evidence:
    """A certificate. Raises U009 for a file that is none."""
    place = Label(None, where=str(path))
    try:
        document = json.loads(path.read_bytes())
        _check(document)
    except OSError as error:
        raise fail("U009", f"cannot read the certificate: {error.strerror}", place) from None
    except (ValueError, RecursionError) as error:
        hint = "make one with `lissom test FILES --certificate FILE`"
        note = f"{type(error).__name__}: {error}"
        raise fail("U009", f"`{path}` is no certificate", place, note=note, help=hint) from None
    return Evidence(path, RuleEvidence(document))


def _check(document: Any) -> None:
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"it is no JSON object with `format` {FORMAT}")
    rules = document.get("rules")
    if not isinstance(rules, list):
        raise ValueError("`rules` is no list")
    for number, rule in enumerate(rules):
        known = isinstance(rule, dict) and all(isinstance(rule.get(key), str) for key in NEEDED)
        if not known:
            raise ValueError(f"rule {number} lacks one of {', '.join(NEEDED)}")
