"""A rule that fails says where: the setting, mode or weight that its failing models share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import lissom
from lissom.grammar.library.program import program_of
from lissom.jobs.testing import diagnostics, jobs_of, prove_job
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.ops.vocabulary import Vocabulary
from lissom.rewrite.proving import because as because_module
from lissom.rewrite.proving import prove
from lissom.rewrite.proving.because import because
from lissom.rewrite.proving.dims.trial import dim_outcomes
from lissom.rewrite.proving.prove import explore
from lissom.rewrite.proving.subject import Subject

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

PINNED = """
exact rule rows {
  match {
    y = flatten(x, start_dim = 1)
    x : f[N, C, L]
  }
  rewrite { y = reshape(x, shape = (-1, C * L)) }
}
"""


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


EITHER = """exact rule r {
  match { h = (relu | tanh)(x)
          y = relu(h) }
  rewrite { y = relu(x) }
}"""


def test_the_op_is_named_where_no_guard_tells() -> None:
    counted, smallest = why(EITHER)
    assert "at none without `tanh`" in counted
    assert "tanh([" in smallest


MEASURED = """exact rule r {
  match dim D in channels
  where { not boundary(D); sliceable(D); known(readers(D)) }
  let { score = l1_over(readers(D))
        N = max(nonzeros(score), 1) }
  where { N < D }
  let { keep = top(score, N) }
  rewrite { D := keep }
}"""


def test_a_rule_over_dimensions_is_told_what_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no weight reads, a norm may: its statistics are over all features."""
    monkeypatch.setattr(prove, "_smallest", lambda subject, failure, tried: failure)
    monkeypatch.setattr(because_module, "MODELS", 30)
    program = program_of(MEASURED)
    subject = Subject(program.own_rules["r"], Vocabulary.library(), FUNCTIONS)
    failure = explore(subject, 150, 0, dim_outcomes, any).failure
    assert failure is not None
    counted, smallest, missing = because(subject, like=failure.tape)
    assert "at none where" in counted
    assert "the cut model differs by" in smallest
    assert missing == "a guard is missing: where { not known(gathers(D)) }"


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
    (found,) = diagnostics(job, prove_job(job))
    assert found.code == "V110"
    assert any("mode(n1) == eval" in note for note in found.notes)


def test_no_guard_is_asked_for_where_other_inputs_show_the_mistake(tmp_path: Path) -> None:
    """A guard would leave some sites; those that are left would hold sizes as numbers still."""
    path = tmp_path / "r.lissom"
    path.write_text(PINNED)
    (job,) = jobs_of([path], [], 20, 0, None)
    (found,) = diagnostics(job, prove_job(job))
    assert found.code == "V110"
    assert "wrong at [" in found.message
    assert not any("guard" in note for note in found.notes)


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
