"""A rule that fails says where: the setting, mode or weight that its failing models share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import lissom
from lissom.grammar.program import program_of
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.ops import Vocabulary
from lissom.rewrite.proving.because import because
from lissom.rewrite.proving.trial import Subject
from lissom.testing import diagnostics, jobs_of, run

torch.set_num_threads(1)

SCALED = """exact rule r {
  match { y = sub(x, k) as n
          x : f[N, C]
          k : f[N, C] }
  rewrite { y = add(x, neg(k)) }
}"""
UNBIASED = """exact rule r {
  match { h = linear(x) as l
          y = neg(h) }
  where { owned(l.weight) }
  rewrite { y = linear(x, weight = 0 - l.weight) from l }
}"""
NOISY = "exact rule r { match { y = dropout(x) } rewrite { y = x } }"
NEVER = "exact rule r { match { y = sigmoid(x) } rewrite { y = tanh(x) } }"


def why(text: str) -> tuple[str, ...]:
    program = program_of(text)
    subject = Subject(program.own_rules["r"], Vocabulary.library(), FUNCTIONS)
    return because(subject)


@pytest.mark.parametrize(
    ("text", "guard", "model"),
    [
        (SCALED, "where { n.alpha == 1 }", "alpha = "),
        (UNBIASED, "where { max(abs(l.bias or 0)) == 0 }", "linear("),
        (NOISY, "where { mode(n1) == eval }, with `y = dropout(x) as n1`", "dropout("),
    ],
)
def test_the_missing_guard_is_named(text: str, guard: str, model: str) -> None:
    counted, smallest, missing = why(text)
    assert "at none where" in counted
    assert model in smallest
    assert "the sides differ by" in smallest
    assert missing == f"a guard is missing: {guard}"


def test_a_rule_that_is_wrong_everywhere_is_told_so() -> None:
    counted, smallest = why(NEVER)
    assert counted.startswith("the sides differ at all")
    assert "sigmoid([" in smallest


def test_nothing_is_said_of_a_rule_whose_sides_agree() -> None:
    assert why("exact rule r { match { h = neg(x)\ny = neg(h) } rewrite { y = x } }") == ()


def test_a_failed_test_says_why(tmp_path: Path) -> None:
    path = tmp_path / "r.lissom"
    path.write_text(NOISY)
    (job,) = jobs_of([path], [], 20, 0, None)
    (found,) = diagnostics(job, run(job))
    assert found.code == "V110"
    assert any("mode(n1) == eval" in note for note in found.notes)


@pytest.mark.parametrize("kind", ["exact", "approx"])
def test_only_an_approximate_rule_is_sent_to_perturb(kind: str) -> None:
    """And the settings that matched are shown, those that no name of the rule holds included."""
    text = f"""{kind} rule r {{
      match {{ y = leaky_relu(x) }}
      PERTURB
      rewrite {{ y = relu(x) }}
      ENSURE }}"""
    more = {"exact": ("", ""), "approx": ("perturb { }", "ensure { error(y) <= 90% }")}[kind]
    text = text.replace("PERTURB", more[0]).replace("ENSURE", more[1])
    model = nn.Sequential(nn.LeakyReLU(0.5)).eval()
    with pytest.raises(lissom.LissomError, match="V101") as caught:
        lissom.compile(model, text, inputs=(torch.randn(4, 8),))
    (found,) = caught.value.diagnostics
    assert ("perturb" in found.helps[0]) == (kind == "approx")
    assert "matched: leaky_relu([4, 8], negative_slope = 0.5)" in found.notes
