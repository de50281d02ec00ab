"""What a rewrite does to the graph and to the weights, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.graph.runs import watched
from lissom.rewrite.journal import Applied
from lissom.rewrite.ops.spec import spec_of

from .support import Driven, Fn, digests, library, random_norms, run

X = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))
FOLD = library("fold")


def rule(match: str, rewrite: str, more: str = "") -> str:
    return f"exact rule r {{ {more}\nmatch {{\n{match}\n}}\nrewrite {{\n{rewrite}\n}} }}"


# -- structure -------------------------------------------------------------------------------------


def test_the_model_may_become_its_own_input() -> None:
    driven = run(Fn(lambda m, x: m.i(m.i(x)), i=nn.Identity()), X, library("tidy")).check()
    assert driven.ops() == []
    assert list(driven.module.children()) == []


def test_a_part_that_the_rewrite_reads_must_stay() -> None:
    text = rule(
        "(a, b) = chunk(x, chunks = 2, dim = 1)\nu = relu(a)\nv = relu(b)",
        "u = clamp(a, min = 0)\nv = relu(b)",
    )
    with pytest.raises(LissomError) as caught:
        run(Fn(lambda m, x: (lambda a, b: a.relu() - b.relu())(*x.chunk(2, 1))), X, text)
    assert caught.value.diagnostics[0].code == "N005"


def test_an_op_with_one_input_is_applied_to_each_of_the_rest() -> None:
    model = Fn(lambda m, x: torch.cat([x, x.tanh(), x + 1], 1).relu())
    text = rule("h = cat(xs...) as c\ny = relu(h)", "rs = relu(xs)\ny = c(rs)")
    driven = run(model, X, text).check()
    assert driven.ops() == ["tanh", "add", "relu", "relu", "relu", "cat"]


def test_the_rest_stands_beside_what_has_a_name() -> None:
    model = Fn(lambda m, x: torch.where(x > 0, x, x.tanh()).neg())
    text = rule("h = where(c, more...) as w\ny = neg(h)", "y = neg(where(c, more))")
    assert run(model, X, text).check().ops() == ["gt", "tanh", "where", "neg"]


@pytest.mark.parametrize("length", [0, 1, 3])
def test_a_chain_is_copied_link_by_link(length: int) -> None:
    """`f(g)` is all that `f` matched, on another value, with the settings of each link."""
    text = rule("h = neg(x)\nk = leaky_relu*(h) as f\ny = abs(k)", "g = mul(x, -1)\ny = abs(f(g))")
    model = Fn(lambda m, x: _bent(-x, length).abs())
    assert run(model, X, text).check().ops() == ["mul", *["leaky_relu"] * length, "abs"]


@pytest.mark.parametrize("present", [True, False])
def test_an_op_that_may_be_absent_is_copied_where_it_is(present: bool) -> None:
    model = Fn(lambda m, x: (_bent(-x, 1) if present else -x).abs())
    text = rule("h = neg(x)\nk = leaky_relu?(h) as f\ny = abs(k)", "g = mul(x, -1)\ny = abs(f(g))")
    assert run(model, X, text).check().ops() == ["mul", *["leaky_relu"] * present, "abs"]


def _bent(x: torch.Tensor, times: int) -> torch.Tensor:
    for _ in range(times):
        x = nn.functional.leaky_relu(x, 0.5)
    return x


NUMBERS = """
approx rule r {
  match { y = linear(x) as l }
  let { g = sqrt(abs(l.weight[0, :])) }
  perturb { MOVED := mul(MOVED, h) }
  rewrite { REWRITE }
  ensure { error(y) <= 900% on calib }
}
"""


@pytest.mark.parametrize(
    ("moved", "rewrite"),
    [("x", "h = mul(x, g); y = l(h)"), ("y", "h = l(x); y = mul(h, g)")],
)
def test_numbers_of_the_rule_are_operands(moved: str, rewrite: str) -> None:
    """They are rounded as weights are, and the model keeps them, saved or copied."""
    torch.manual_seed(0)
    model, x = nn.Linear(5, 5).eval(), torch.randn(3, 5)
    text = NUMBERS.replace("REWRITE", rewrite).replace(", h)", ", g)").replace("MOVED", moved)
    driven = run(model, x, text)
    assert driven.applied == 1, driven.reasons()
    driven.module.recompile()
    gain = model.weight[0].abs().sqrt()
    want = model(x * gain) if moved == "x" else model(x) * gain
    assert torch.allclose(driven.module(x), want, atol=1e-6)
    (kept,) = driven.module.buffers()
    assert kept.dtype == torch.float32


# -- names and weights -----------------------------------------------------------------------------


def many() -> nn.Module:
    torch.manual_seed(1)
    layers = [
        layer
        for _ in range(3)
        for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    ]
    return random_norms(nn.Sequential(*layers))


def test_each_site_has_weights_of_its_own() -> None:
    driven = run(many(), X, FOLD).check()
    paths = [node.target for node in driven.module.graph.nodes if node.op == "call_module"]
    assert len(set(paths)) == len(paths) == 6
    weights = [m.weight for m in driven.module.modules() if isinstance(m, nn.Conv2d)]
    assert len({w.data_ptr() for w in weights}) == 3


def test_a_path_that_exists_is_never_taken() -> None:
    """The model already has what the rule would call its first result."""
    model = random_norms(
        Fn(
            lambda m, x: m.fold_bn_c_0(m.n(m.c(x))),
            c=nn.Conv2d(8, 8, 1),
            n=nn.BatchNorm2d(8),
            fold_bn_c_0=nn.Conv2d(8, 8, 1),
        )
    )
    holder = nn.Module()
    holder.fold_bn_0 = nn.Parameter(torch.ones(1))
    driven = run(model, X, FOLD).check()
    assert driven.applied == 1


@pytest.mark.parametrize("name", ["fold_bn_0", "c_fold_bn_0", "fold_bn_1"])
def test_a_weight_may_have_the_name_of_a_result(name: str) -> None:
    parts = {"c": nn.Conv2d(8, 8, 1), "n": nn.BatchNorm2d(8), name: nn.Parameter(torch.ones(1))}
    model = random_norms(Fn(lambda m, x: m.n(m.c(x)) * getattr(m, name), **parts))
    assert run(model, X, library("fold")).check().sites("fold_bn") == ["c"]


def test_dead_layers_go_and_others_keep_their_bits() -> None:
    model = random_norms(
        nn.Sequential(nn.Linear(6, 6), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Linear(6, 5))
    )
    before = digests(model)
    driven = run(model, X, FOLD).check()
    after = digests(driven.module)
    assert digests(model) == before, "the caller's model is not touched"
    for name in ("0.weight", "0.bias", "3.weight", "3.bias"):
        assert after[name] == before[name]
    assert not any(name.startswith("2.") or name == "1.weight" for name in after)


def test_new_nodes_know_where_they_come_from() -> None:
    model = many()
    driven = run(model, X, FOLD).check()
    for node in driven.module.graph.nodes:
        if "fold_bn" in str(node.target):
            assert len(node.meta["origins"]) == 2
            assert isinstance(node.meta["rules"], tuple)
            assert "source" in node.meta
            assert str(node.meta["site"]) == node.target


def test_recorded_values_of_new_nodes_are_those_of_a_run() -> None:
    driven = run(many(), X, FOLD)
    driven.module.recompile()

    def check(node: torch.fx.Node, value: Any) -> None:
        assert node.op == "output" or node.meta["val"] == spec_of(value), node.name

    watched(driven.module, (X,), check)


def written(driven: Driven) -> tuple[str, dict[str, str]]:
    driven.module.recompile()
    return driven.module.code, digests(driven.module)


def test_the_same_bytes_twice() -> None:
    assert written(run(many(), X, FOLD)) == written(run(many(), X, FOLD))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_new_weights_keep_the_dtype(dtype: torch.dtype) -> None:
    driven = run(many().to(dtype), X.to(dtype), FOLD)
    assert driven.applied == 3
    assert {p.dtype for p in driven.module.parameters()} == {dtype}


# -- merging ---------------------------------------------------------------------------------------


def test_two_pointwise_convolutions_become_one() -> None:
    layers = {"c": nn.Conv2d(8, 8, 1), "d": nn.Conv2d(8, 8, 1)}
    driven = run(Fn(lambda m, x: m.d(m.c(x)), **layers), X, library("merge")).check()
    assert driven.ops() == ["conv2d"]
    (event,) = driven.journal.of(Applied)
    assert event.after.ops == event.before.ops - 1
    assert event.removed == ("c", "d")
