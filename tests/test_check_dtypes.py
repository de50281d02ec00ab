"""Types of numbers have one spelling in the text of a rule."""

from __future__ import annotations

import pytest

from lissom.grammar.checks.check import check
from lissom.grammar.diagnostics import Diagnostic
from lissom.grammar.text.parse import parse
from lissom.rewrite.ops.vocabulary import Vocabulary

RULE = """
exact rule sums {
  match {
    h = cast(x, dtype = "float64")
    y = sum(h, dim = -1, dtype = none)
    x : f[N, C]
  }
  where { dtype(x) == "float32"  else "{dtype(x)}" }
  rewrite { y = sum(x, dim = -1, dtype = "float64") }
}
"""


def errors(old: str, new: str) -> list[Diagnostic]:
    assert old in RULE
    file = parse(RULE.replace(old, new))
    found = check(file, Vocabulary.library().declarations)
    return [diagnostic for diagnostic in found if diagnostic.severity == "error"]


def test_a_type_in_quotes_is_fine_everywhere() -> None:
    assert errors("x", "x") == []


@pytest.mark.parametrize(
    ("old", "new", "said", "help"),
    [
        ('x, dtype = "float64"', "x, dtype = float64", "in quotes", 'write `"float64"`'),
        ('-1, dtype = "float64"', "-1, dtype = bfloat16", "in quotes", 'write `"bfloat16"`'),
        ('== "float32"', "== float16", "in quotes", 'write `"float16"`'),
        ('== "float32"', '== "flaot32"', "`flaot32` is not a type", "did you mean `float32`?"),
        ('-1, dtype = "float64"', '-1, dtype = "double"', "`double` is not a type", "known: "),
        (
            "x : f[",
            "x : float32[",
            "`float32` is no class",
            'and `where { dtype(x) == "float32" }`',
        ),
        ("x : f[", "x : real[", "`real` is no class", "goes into a guard"),
    ],
)
def test_another_word_is_an_error(old: str, new: str, said: str, help: str) -> None:
    (found,) = errors(old, new)
    assert found.code == "T003"
    assert said in found.message
    assert help in found.helps[0]
