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
MERGE = library("merge")
FOLD = library("fold")


def rule(match: str, rewrite: str, more: str = "") -> str:
    return f"exact rule r {{ {more}\nmatch {{\n{match}\n}}\nrewrite {{\n{rewrite}\n}} }}"


def pair(cin: int = 8, mid: int = 8, cout: int = 8) -> dict[str, Any]:
    torch.manual_seed(0)
    return {"c": nn.Conv2d(cin, mid, 1), "d": nn.Conv2d(mid, cout, 1)}


def test_a_new_mean_is_no_new_parameter() -> None:
    """Counted before and after in the same way: buffers are none, wherever their numbers are."""
    text = """exact rule r {
      match { h = conv2d(x) as c
              y = batch_norm(h) as n }
      where { known(c.bias); mode(n) == eval; owned(c.bias) }
      rewrite { k = c(x, bias = none)
                y = n(k, running_mean = n.running_mean - c.bias) }
      ensure { params(after) == params(before) - 8
               bytes(after) == bytes(before) - 32 }
    }"""
    layers = {"c": nn.Conv2d(8, 8, 1), "n": nn.BatchNorm2d(8)}
    model = random_norms(Fn(lambda m, x: m.n(m.c(x)), **layers)).eval()
    driven = run(model, X, text).check()
    assert driven.applied == 1


@pytest.mark.parametrize(("others", "applied"), [(False, 1), (True, 0)])
def test_a_shared_op_costs_where_others_read_it(others: bool, applied: int) -> None:
    """Where nobody does it goes with the rest, and the claim holds."""
    text = """exact rule r {
      match { shared h = conv2d(x) as c
              y = relu(h) }
      rewrite { k = c(x)
                y = clamp(k, min = 0) }
      ensure { macs(after) <= macs(before) }
    }"""

    def forward(m: nn.Module, x: torch.Tensor) -> Any:
        h = m.c(x)
        return (h.relu(), h.sigmoid()) if others else h.relu()

    driven = run(Fn(forward, c=nn.Conv2d(8, 8, 1)), X, text, how="once")
    assert driven.applied == applied
    assert all("macs(after)" in reason for reason in driven.reasons()[:others])


# -- structure -------------------------------------------------------------------------------------


def test_back_to_back_matches() -> None:
    """The second match reads the result of the first, in a list (pytorch/pytorch#159613)."""
    text = rule("h = cat(x, z, dim = 1)\ny = relu(h)", "y = cat(relu(x), relu(z), dim = 1)")

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        a = torch.cat([x, x], 1).relu()
        return torch.cat([a, x], 1).relu()

    driven = run(Fn(forward), X, text, how="once").check()
    assert driven.applied == 2


def test_three_removals_in_a_row() -> None:
    driven = run(Fn(lambda m, x: (x + 1).neg().neg().neg().neg()), X, library("tidy")).check()
    assert driven.ops() == ["add"]


def test_the_model_may_become_its_own_input() -> None:
    driven = run(Fn(lambda m, x: m.i(m.i(x)), i=nn.Identity()), X, library("tidy")).check()
    assert driven.ops() == []
    assert list(driven.module.children()) == []


def test_several_results_are_replaced_where_each_is_read() -> None:
    text = rule(
        "y = tanh(x)\nz = sigmoid(x)",
        "y = sub(mul(2, sigmoid(mul(2, x))), 1)\nz = div(add(tanh(div(x, 2)), 1), 2)",
    )
    driven = run(Fn(lambda m, x: (x.tanh() + 1) * x.sigmoid()), X, text)
    assert driven.applied == 1
    driven.check()


def test_results_read_before_the_inputs_exist_are_refused() -> None:
    text = rule(
        "y = relu(x)\nz = add(y, w)\nv = add(y, 1)", "v = add(w, 1)\nz = relu(w)\ny = sub(z, w)"
    )

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = x.relu()
        early = y + 1
        w = early.sigmoid()
        return (y + w) * early

    driven = run(Fn(forward), X, text, how="once")
    assert driven.applied == 0
    assert driven.difference() == 0


def test_parts_go_with_the_op_that_made_them() -> None:
    text = rule("(a, b) = chunk(x, chunks = 2, dim = 1)\ny = cat(a, b, dim = 1)", "y = x")

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        a, b = (x + 1).chunk(2, 1)
        return torch.cat([a, b], 1)

    driven = run(Fn(forward), X, text).check()
    assert driven.applied == 1
    assert driven.ops() == ["add"]


def test_parts_may_be_results() -> None:
    text = rule("h = relu(x)\n(a, b) = chunk(h, chunks = 2, dim = 1)", "a = relu(narrow(x))\nb = a")
    text = rule(
        "(a, b) = chunk(x, chunks = 2, dim = 1)\nu = relu(a)\nv = relu(b)",
        "u = clamp(a, min = 0)\nv = relu(b)",
    )
    with pytest.raises(LissomError) as caught:
        run(Fn(lambda m, x: (lambda a, b: a.relu() - b.relu())(*x.chunk(2, 1))), X, text)
    assert caught.value.diagnostics[0].code == "N005"
    kept = text.replace("(a, b) =", "shared (a, b) =")
    driven = run(
        Fn(lambda m, x: (lambda a, b: a.relu() - b.relu())(*x.chunk(2, 1))), X, kept
    ).check()
    assert driven.applied == 1


def test_an_op_with_any_number_of_inputs_can_be_built() -> None:
    text = rule("h = cat(xs..., dim = 1)\ny = cat(h, z, dim = 1)", "y = cat(xs, z, dim = 1)")
    driven = run(Fn(lambda m, x: torch.cat([torch.cat([x, x + 1], 1), x * 2], 1)), X, text).check()
    assert driven.ops() == ["add", "mul", "cat"]


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


@pytest.mark.parametrize("use", ["twice", "tied", "get_attr"])
def test_shared_weights_are_not_rewritten(use: str) -> None:
    """H01, S01, S02, S20: a layer on two values, two layers over one weight, a weight by name."""
    parts: dict[str, Any] = {
        "c": nn.Conv2d(8, 8, 1),
        "n": nn.BatchNorm2d(8),
        "e": nn.Conv2d(8, 8, 1),
    }
    if use == "tied":
        parts["e"].weight = parts["c"].weight
    function = {
        "twice": lambda m, x: m.n(m.c(x)) + m.c(x + 1),
        "tied": lambda m, x: m.n(m.c(x)) + m.e(x),
        "get_attr": lambda m, x: m.n(m.c(x)) + nn.functional.conv2d(x, m.c.weight),
    }[use]
    driven = run(random_norms(Fn(function, **parts)), X, FOLD).check()
    assert driven.sites("fold_bn") == []
    assert any("other calls" in reason for reason in driven.reasons("fold_bn"))


def test_ownership_is_checked_without_a_guard() -> None:
    text = rule(
        "h = conv2d(x) as c\ny = mul(h, 2)",
        "y = c(x, weight = c.weight * 2, bias = c.bias * 2) from c",
    )
    driven = run(Fn(lambda m, x: m.c(x) * 2 + m.c(x + 1), c=nn.Conv2d(8, 8, 1)), X, text).check()
    assert driven.applied == 0
    assert driven.reasons() == ["`c.weight` is also used by c"]


def test_on_shared_clone_gives_the_site_its_own_copy() -> None:
    """H01."""
    text = rule(
        "h = conv2d(x) as c\ny = mul(h, 2)",
        "y = c(x, weight = c.weight * 2, bias = c.bias * 2) from c",
        "on_shared clone",
    )
    driven = run(Fn(lambda m, x: m.c(x) * 2 + m.c(x + 1), c=nn.Conv2d(8, 8, 1)), X, text).check()
    assert driven.applied == 1
    convs = [m for m in driven.module.modules() if isinstance(m, nn.Conv2d)]
    assert len({m.weight.data_ptr() for m in convs}) == 2


def test_a_weight_that_is_passed_on_by_a_clone_is_copied_too() -> None:
    text = rule(
        "h = conv2d(x) as c\ny = relu(h)",
        "g = c(x) from c\ny = clamp(g, min = 0)",
        "on_shared clone",
    )
    driven = run(Fn(lambda m, x: m.c(x).relu() + m.c(x + 1), c=nn.Conv2d(8, 8, 1)), X, text).check()
    convs = [m for m in driven.module.modules() if isinstance(m, nn.Conv2d)]
    assert driven.applied == 1
    assert len({m.weight.data_ptr() for m in convs}) == 2


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
    driven = run(Fn(lambda m, x: m.d(m.c(x)), **pair()), X, MERGE).check()
    assert driven.ops() == ["conv2d"]
    (event,) = driven.journal.of(Applied)
    assert event.after.ops == event.before.ops - 1
    assert event.removed == ("c", "d")
