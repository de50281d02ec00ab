"""Results for machines: SARIF 2.1.0, GitHub's workflow commands, JUnit XML."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from ..grammar.diagnostics import Diagnostic, Span

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def sarif(found: Sequence[Diagnostic]) -> str:
    """One SARIF run; columns count characters from 1."""
    codes = sorted({diagnostic.code for diagnostic in found})
    driver = {"name": "lissom", "rules": [{"id": code} for code in codes]}
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "results": [_result(diagnostic) for diagnostic in found],
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1)


def _result(found: Diagnostic) -> dict[str, Any]:
    return {
        "ruleId": found.code,
        "level": found.severity,
        "message": {"text": _text(found)},
        "locations": [_location(span) for span in _spans(found)[:1]],
    }


def _location(span: Span) -> dict[str, Any]:
    source = span.source
    end = max(span.end, span.start)
    region = {
        "startLine": span.line,
        "startColumn": span.column,
        "endLine": source.line_of(end),
        "endColumn": source.column_of(end),
    }
    return {"physicalLocation": {"artifactLocation": {"uri": source.name}, "region": region}}


def github(found: Iterable[Diagnostic]) -> str:
    """One line for each diagnostic; GitHub shows them beside the changed lines."""
    return "\n".join(map(_annotation, found))


def _annotation(found: Diagnostic) -> str:
    level = "notice" if found.severity == "note" else found.severity
    places = [
        f"file={_property(span.source.name)},line={span.line},col={span.column},"
        for span in _spans(found)[:1]
    ]
    title = _property(found.code)
    return f"::{level} {''.join(places)}title={title}::{_data(_text(found))}"


def _spans(found: Diagnostic) -> list[Span]:
    return [label.span for label in found.labels if label.span is not None]


def _text(found: Diagnostic) -> str:
    return "\n".join([found.message, *found.notes, *found.helps])


def _data(text: str) -> str:
    """GitHub's escapes: without them a message could end its line and start a command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def junit(suite: str, cases: Sequence[tuple[str, str, float, str | None]]) -> str:
    """One test suite; a case is a name, a place, seconds, and what failed."""
    root = ElementTree.Element("testsuite", name=suite, tests=str(len(cases)))
    root.set("failures", str(sum(failed is not None for *_, failed in cases)))
    for name, place, seconds, failed in cases:
        settings = {"name": name, "classname": place, "time": f"{seconds:.3f}"}
        case = ElementTree.SubElement(root, "testcase", settings)
        if failed is not None:
            lines = failed.splitlines() or [""]
            ElementTree.SubElement(case, "failure", message=lines[0]).text = failed
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


FORMATS: Mapping[str, Callable[[Sequence[Diagnostic]], str]] = {"sarif": sarif, "github": github}
