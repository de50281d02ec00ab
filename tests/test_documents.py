"""JSON that other programs read: one way to write it, whatever command writes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lissom.commands import test as command
from lissom.grammar.documents import json_text, sha256
from lissom.rewrite.proving import report


class Seeded:
    seed = 0


def strict(text: str) -> Any:
    """Read as JavaScript or Go does: there is no `Infinity` in JSON."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)


def test_a_certificate_of_rules_holds_no_number_that_json_has_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: dict[str, Any] = {"worst": math.inf, "drifts": (math.nan, 0.5)}
    monkeypatch.setattr(report, "rule_certificate", lambda reports, seed: written)
    job: Any = Seeded()
    command._write_certificate(tmp_path / "rules.json", [job], {})
    found = strict((tmp_path / "rules.json").read_text())
    assert found == {"worst": "inf", "drifts": ["nan", 0.5]}


def test_equal_values_give_equal_texts_where_that_is_asked_for() -> None:
    one, other = {"a": 1, "b": {2: "ä"}}, {"b": {"2": "ä"}, "a": 1}
    assert json_text(one, ordered=True) == json_text(other, ordered=True)
    assert json_text(one) != json_text(other)
    assert strict(json_text(one)) == other


def test_a_text_and_its_bytes_have_one_hash() -> None:
    assert sha256("rule ä") == sha256("rule ä".encode())
