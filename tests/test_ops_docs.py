"""The examples of docs/ops.md give what the page says."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

from lissom.rewrite.ops.vocabulary import Vocabulary

PAGE = Path(__file__).parent.parent / "docs" / "ops.md"


def test_the_examples_run() -> None:
    found = doctest.testfile(str(PAGE), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert found.attempted > 20
    assert found.failed == 0


def test_every_trait_in_use_is_explained() -> None:
    library = Vocabulary.library()
    row = next(line for line in PAGE.read_text().splitlines() if line.startswith("| `trait"))
    explained = set(re.findall(r"`(\w+)`", row))
    assert explained == {trait for name in library.names() for trait in library[name].traits}
