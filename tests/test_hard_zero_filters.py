"""S12: a filter of zeros is a constant behind a batch norm, not nothing.

The rule that forgets it is refused on a model and fails its own test; with a guard it is right.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lissom.grammar.text.parse import parse
from lissom.grammar.tree import tree as t
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.ops.vocabulary import Vocabulary
from lissom.rewrite.proving.prove import explore, prove
from lissom.rewrite.proving.subject import Subject

from .support import Fn, random_norms
from .test_hard_mistakes import X, conv, verdict

DROP = """
extern fn live(w: f[O, ...]) -> i[K] pure
extern fn rows(w: f[O, ...], keep: any) -> f[...] pure
extern fn columns(w: f[O, I, ...], keep: any) -> f[...] pure
extern fn count(keep: any) -> int pure
extern fn silent(b: any, keep: any) -> bool pure
extern fn without(w: f[O, ...], keep: any) -> f[O, ...] pure

KIND rule drop_zero_filters {
  match {
    h = conv2d(x, groups = 1, stride = s, padding = p, dilation = d) as a
    m = batch_norm(h) as n
    y = conv2d(m, groups = 1, stride = t, padding = q, dilation = e) as b
    a.weight : [O, I, K, L]
  }
  let { keep = live(a.weight) }
  where {
    mode(n) == eval
    n.track_running_stats
    0 < count(keep) and count(keep) < O  else "no filter is all zeros"
    GUARD
  }
  MOVE
  rewrite {
    g = conv2d(x, weight = rows(a.weight, keep), bias = rows(a.bias, keep), groups = 1, stride = s,
               padding = p, dilation = d) from a
    k = batch_norm(g, running_mean = rows(n.running_mean, keep),
                   running_var = rows(n.running_var, keep), weight = rows(n.weight, keep),
                   bias = rows(n.bias, keep), eps = n.eps) from n
    y = conv2d(k, weight = columns(b.weight, keep), bias = b.bias, groups = 1, stride = t,
               padding = q, dilation = e) from b
  }
  CLAIM
}
"""
SILENT = """silent(((a.bias or 0) - n.running_mean) * (n.weight or 1) / sqrt(n.running_var + n.eps)
           + (n.bias or 0), keep)  else "a filter of zeros is a constant behind {n}" """


def live(w: Tensor) -> Tensor:
    """Filters that are not all zero."""
    return w.flatten(1).abs().sum(1).nonzero().flatten()


def strong(w: Tensor) -> Tensor:
    """The half of the filters with the largest norm."""
    norms = w.flatten(1).abs().sum(1)
    return norms.argsort(descending=True)[: max(1, len(norms) // 2)].sort().values


def silent(b: Any, keep: Tensor) -> bool:
    """Whether what is dropped would be zero behind the norm."""
    dropped = b.index_fill(0, keep, 0.0) if isinstance(b, Tensor) and b.dim() else torch.tensor(b)
    return not dropped.any()


def without(w: Tensor, keep: Tensor) -> Tensor:
    mask = torch.zeros(w.shape[0], dtype=w.dtype).index_fill(0, keep, 1.0)
    return w * mask.reshape(-1, *(1,) * (w.dim() - 1))


S12 = {
    "live": live,
    "rows": lambda w, keep: None if w is None else w[keep],
    "columns": lambda w, keep: w[:, keep],
    "count": len,
    "silent": silent,
    "without": without,
}


def dropping(guard: str) -> str:
    exact = DROP.replace("KIND", "exact").replace("MOVE", "").replace("CLAIM", "")
    return exact.replace("GUARD", guard)


def zero_filters(constant: bool, bias: bool) -> nn.Module:
    """Two filters are zero; behind the norm they are a constant, or nothing."""
    torch.manual_seed(0)
    parts = {"a": conv(bias=bias), "n": nn.BatchNorm2d(8), "b": conv()}
    model = random_norms(Fn(lambda m, x: m.b(m.n(m.a(x))), **parts))
    dead = torch.tensor([2, 5])
    with torch.no_grad():
        model.a.weight[dead] = 0.0
        if not constant:
            model.n.bias[dead] = model.n.running_mean[dead] = 0.0
        if not constant and bias:
            model.a.bias[dead] = 0.0
    return model


@pytest.mark.parametrize("bias", [False, True])
def test_s12_a_filter_of_zeros_behind_a_norm(bias: bool) -> None:
    """H22: microsoft/nni#2130, #3010, #5095."""
    for constant, guard, expected in (
        (True, "", "V101"),
        (True, SILENT, "a filter of zeros is a constant behind n"),
        (False, "", "applied"),
        (False, SILENT, "applied"),
    ):
        found = verdict(zero_filters(constant, bias), X, dropping(guard), S12)
        assert found == expected, (constant, guard)


def pruning(guard: str) -> Subject:
    """The same mistake as an approximate rule, so that it finds work in every generated model."""
    text = DROP.replace("KIND", "approx").replace("GUARD", guard)
    text = text.replace("MOVE", "perturb { a.weight := without(a.weight, keep) }")
    text = text.replace("CLAIM", "ensure { error(y) <= 100% on calib }")
    functions = {**FUNCTIONS, **S12, "live": strong}
    return Subject(parse(text).all(t.Rule)[0], Vocabulary.library(), functions)


def test_s12_the_rule_fails_its_own_test() -> None:
    """Without a model of anyone: the budget of 100 % does not hide it either."""
    proof = prove(pruning(""), 60)
    assert proof.verdict == "FAILED"
    assert (proof.failures[0].kind, proof.failures[0].condition) == ("UNSOUND", "V101")


def test_s12_with_the_guard_the_rule_passes() -> None:
    found = explore(pruning(SILENT), 10)
    assert found.failure is None
    assert found.fired > 0
    assert any("silent(" in condition for condition in found.silent)
