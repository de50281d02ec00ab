"""JSON that is written for people and other programs, and the hash of a text."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any


def sha256(text: str | bytes) -> str:
    """In hexadecimal; of a text, that of its UTF-8."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def json_text(value: Any, *, ordered: bool = False) -> str:
    """A value as JSON, indented. Any reader takes it: numbers that JSON has not become words.

    ordered: keys are sorted, so that equal values give equal texts.
    """
    return json.dumps(_finite(value), indent=1, sort_keys=ordered, ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
