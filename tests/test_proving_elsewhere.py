"""A rewritten model is run on other inputs than its example's: other sizes, other numbers."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch

from lissom.grammar.text.parse import parse
from lissom.grammar.tree import tree as t
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.ops.vocabulary import Vocabulary
from lissom.rewrite.proving import trial
from lissom.rewrite.proving.choices.source import Rolled, Unsuitable
from lissom.rewrite.proving.models.variants import LARGEST, variants
from lissom.rewrite.proving.prove import Explored, explore
from lissom.rewrite.proving.subject import Subject
from lissom.rewrite.proving.trial import Outcome, model

from .support import library


def explored(text: str, models: int = 40) -> Explored:
    rule = parse(text).all(t.Rule)[0]
    return explore(Subject(rule, Vocabulary.library(), FUNCTIONS), models)


def mistake(text: str) -> Outcome:
    failure = explored(text).failure
    assert failure is not None
    return failure.outcome


FROZEN = """
exact rule mean_by_hand {
  match {
    y = mean(x, dim = -1, keepdim = false, dtype = none)
    x : f[N, L]
  }
  where { L > 0  else "empty" }
  rewrite {
    s = sum(x, dim = -1)
    y = SCALED
  }
}
"""


def test_a_size_of_the_example_that_became_a_number() -> None:
    """One batch fits all batches here; another length tells."""
    found = mistake(FROZEN.replace("SCALED", "div(s, L)"))
    assert found.kind == "WRONG"
    assert found.condition.startswith("right at [")
    before, _, after = found.condition.partition(", wrong at ")
    rows, columns = torch.zeros(eval(before.removeprefix("right at "))).shape
    assert torch.zeros(eval(after)).shape == (rows, columns + 1)


def test_a_rewritten_model_that_another_batch_does_not_fit() -> None:
    text = FROZEN.replace("keepdim = false", "keepdim = true")
    text = text.replace("sum(x, dim = -1)", "mean(x, dim = -1, keepdim = true)")
    found = mistake(text.replace("SCALED", "reshape(s, shape = (N, 1))"))
    assert found.kind == "WRONG"
    assert "the rewritten model cannot run: shape '[" in found.detail


def elementwise(before: str, after: str) -> str:
    return f"exact rule other {{\n  match {{ {before}\n x : f[...] }}\n  rewrite {{ {after} }}\n}}"


@pytest.mark.parametrize(
    ("before", "after", "where"),
    [
        (
            "y = softplus(x, beta = 1, threshold = 20)",
            "e = exp(x)\n y = log1p(e)",
            "numbers up to 10000",
        ),
        ("y = expm1(x)", "e = exp(x)\n y = sub(e, 1)", "numbers of 0.0001"),
    ],
)
def test_forms_that_are_equal_for_middling_numbers_only(
    before: str, after: str, where: str
) -> None:
    found = mistake(elementwise(before, after))
    assert (found.kind, found.condition.partition("wrong ")[2]) == ("WRONG", where)


def test_both_sides_may_overflow_together() -> None:
    found = explored(elementwise("y = mul(x, x)", "y = pow(x, 2)"))
    assert found.failure is None
    assert found.elsewhere["other sizes"] >= 40
    assert found.elsewhere[f"numbers up to {LARGEST:g}"] >= 8


@pytest.mark.parametrize("seed", range(3))
def test_variants_keep_what_belongs_together(seed: int) -> None:
    """Two inputs as long as each other stay so; whole numbers stay those of the example."""
    rows, index = torch.randn(3, 4), torch.tensor([[2, 0, 1, 1]] * 3)
    shapes = [
        tuple(map(tuple, (v.shape for v in one.inputs))) for one in variants((rows, index), seed)
    ]
    assert shapes[:2] == [((4, 4), (4, 4)), ((3, 5), (3, 5))]
    assert set(shapes[2:]) == {((3, 4), (3, 4))}
    for one in variants((rows, index), seed):
        assert int(one.inputs[1].max()) == 2
        assert torch.isfinite(one.inputs[0]).all()
        assert float(one.inputs[0].abs().max()) <= LARGEST


def test_a_border_that_only_a_guard_mentions_is_drawn() -> None:
    text = """
    exact rule wide_clamp {
      match { y = hardtanh(x, min_val = a, max_val = b) }
      where { a <= -500 and b >= 500  else "a narrow clamp" }
      rewrite { y = x }
    }
    """
    found = mistake(text)
    assert (found.kind, found.condition) == ("UNSOUND", "V101")


ORDER = """
exact rule in_order {
  match { y = contiguous(x) }
  rewrite { y = RESULT }
}
"""


def test_an_order_in_memory_that_a_view_relies_on() -> None:
    found = mistake(ORDER.replace("RESULT", "x"))
    assert (found.kind, found.condition) == ("WRONG", "the rewritten model cannot run")
    assert "view size is not compatible" in found.detail
    assert explored(ORDER.replace("RESULT", "clone(x)")).failure is not None
    twice = ORDER.replace("y = contiguous(x)", "h = contiguous(x)\n y = contiguous(h)")
    assert (
        explored(twice.replace("{ h", "{\n h").replace("RESULT", "contiguous(x)")).failure is None
    )


def test_a_permutation_of_axes_that_are_equally_long() -> None:
    text = """
    extern fn shape(x: any) -> any pure
    exact rule same_shape {
      match { y = permute(x, dims = d) }
      where { shape(x) == shape(y)  else "another shape" }
      rewrite { y = x }
    }
    """
    found = mistake(text)
    assert (found.kind, found.condition) == ("UNSOUND", "V101")


def test_a_model_that_cannot_run_says_nothing_about_the_rule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        trial, "run_or_error", lambda module, inputs: RuntimeError("no such kernel")
    )
    found = explored(ORDER.replace("RESULT", "contiguous(clone(x))"))
    assert found.failure is None
    assert found.fired == 0
    assert set(found.vacuous) == {"the model itself cannot run"}


SUMMED = """exact rule r {
  match { y = sum(x, dim = d, keepdim = k, dtype = none)
          x : f[...] }
  rewrite { y = OTHER(x, dim = d, keepdim = k) }
}"""
LARGEST_FIRST = """exact rule r {
  match { h = relu(x)
          y = amax(h, dim = d, keepdim = k) }
  rewrite { y = relu(amax(x, dim = d, keepdim = k)) }
}"""


def test_what_a_reduction_makes_of_nan_is_compared() -> None:
    found = mistake(SUMMED.replace("OTHER", "nansum"))
    assert (found.kind, found.condition) == ("UNSOUND", "V101")
    assert "is NaN at other places" in found.detail


@pytest.mark.parametrize("text", [SUMMED.replace("OTHER", "sum"), LARGEST_FIRST])
def test_reductions_that_take_nan_alike_are_right(text: str) -> None:
    found = explored(text)
    assert found.failure is None
    assert found.fired > 0


def test_two_ops_may_have_one_weight() -> None:
    rule = parse(library("merge")).all(t.Rule)
    (merge,) = [one for one in rule if one.name.text == "merge_linear"]
    subject = Subject(merge, Vocabulary.library(), FUNCTIONS)
    tied = fired = 0
    for seed in range(60):
        with suppress(Unsuitable):
            grown = model(Rolled(seed), subject)
            named = dict(grown.module.named_parameters(remove_duplicate=False))
            if len(set(map(id, named.values()))) < len(named):
                tied += 1
                fired += any(outcome.kind == "fired" for outcome in trial.trial(subject, grown))
    assert tied > 1
    assert fired > 0
