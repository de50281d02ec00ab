"""What the words of the language mean, for `lissom explain`: the sections of words.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources

_SECTION = re.compile(r"^## (\w+)\n(.*?)(?=^## |\Z)", re.M | re.S)


@cache
def words() -> Mapping[str, str]:
    """Each word with its text, in the order of words.md."""
    text = resources.files(__package__ or "").joinpath("words.md").read_text("utf-8")
    return {found[1]: found[2].strip() for found in _SECTION.finditer(text)}
