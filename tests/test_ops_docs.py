"""The examples of docs/ops.md give what the page says."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

from lissom.grammar.checks.declared import TRAITS
from lissom.rewrite.ops.vocabulary import Vocabulary

PAGE = Path(__file__).parent.parent / "docs" / "ops.md"


def test_the_examples_run() -> None:
    found = doctest.testfile(str(PAGE), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert found.attempted > 20
    assert found.failed == 0


def test_every_trait_in_use_is_explained() -> None:
    library = Vocabulary.library()
    table = PAGE.read_text().partition("| trait | says |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", table, re.MULTILINE)
    explained = {trait for row in rows for trait in re.findall(r"`(\w+)`", row)}
    assert explained == {trait for name in library.names() for trait in library[name].traits}
    assert explained == TRAITS
