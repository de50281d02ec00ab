"""Rewriting beside ops that overwrite their inputs."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import fx, nn

from lissom.rewrite.capture.capture import capture
from lissom.rewrite.graph.index import GraphView
from lissom.rewrite.graph.memory import memory_of
from lissom.rewrite.graph.writes import may_share, writes, written

from .support import Fn, library, run

X = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))


# -- what writes --------------------------------------------------------------------------------


def calls_of_operator() -> list[fx.Node]:
    """Every function of `operator` that takes two tensors, as calls that no trace saw."""
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    names = [n for n in dir(operator) if not n.startswith("_") and n not in ("call", "countOf")]
    return [graph.call_function(getattr(operator, name), (x, y)) for name in names]


@pytest.mark.parametrize("node", calls_of_operator(), ids=lambda node: node.target.__name__)
def test_operators_write_where_torch_says_so(node: fx.Node) -> None:
    x, y = torch.tensor([5, 3]), torch.tensor([1, 2])
    before = x._version
    try:
        node.target(x, y)
    except (TypeError, RuntimeError, ValueError, IndexError):
        return  # no operator of two tensors
    assert writes(node) == (x._version != before)
    assert written(node) == (node.args[:1] if writes(node) else ())


@pytest.mark.parametrize("target", [operator.and_, operator.or_, torch.logical_and])
def test_a_mask_between_the_matched_ops_is_no_write(target: Any) -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> Any:
        h = m.c(x)
        mask = target(x > 0, x < 1)
        return m.n(h), mask

    layers = {"c": nn.Conv2d(8, 8, 1), "n": nn.BatchNorm2d(8)}
    assert run(Fn(forward, **layers).eval(), X, library("fold")).check().sites() == ["c"]


def test_what_a_trace_saw_goes_before_what_a_name_says() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    named, plain = graph.call_method("relu_", (x,)), graph.call_method("relu", (x,))
    assert [writes(named), writes(plain)] == [True, False]
    named.meta["mutates"], plain.meta["mutates"] = (), (0,)
    assert [written(named), written(plain)] == [(), (x,)]


# -- what may share memory ------------------------------------------------------------------------


def graph_of(forward: Any, **options: Any) -> tuple[GraphView, dict[str, fx.Node]]:
    module = capture(Fn(forward).eval(), (X,), **options).module
    return GraphView(module), {node.name: node for node in module.graph.nodes}


def test_memory_that_a_trace_saw_to_be_new_is_no_view_though_the_op_is_unknown() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        h = x * 2
        return torch.special.erfcx(h).relu_() + h

    view, nodes = graph_of(forward)
    assert view.call(nodes["special_erfcx"]) is None
    assert memory_of(view, nodes["relu_"]) == {nodes["relu_"], nodes["special_erfcx"]}
    assert view.why_opaque(nodes["relu_"]) == ""


def test_memory_that_a_trace_saw_is_shared_whatever_the_op_declares() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        h = x * 2
        return torch.exp(h).relu_() + 1

    view, nodes = graph_of(forward)
    h, value = nodes["mul"], nodes["exp"]
    assert may_share(value, view.call(value)) == ()
    value.meta["aliases"] = (0,)
    assert may_share(value, view.call(value)) == (h,)
    assert memory_of(view, value) == {value, h}


def test_an_op_that_may_be_a_view_at_other_sizes_shares_memory() -> None:
    view, nodes = graph_of(lambda m, x: x.transpose(1, 2).reshape(2, 6, 48) + 1)
    copied = nodes["reshape"]
    assert copied.meta["aliases"] == ()
    assert may_share(copied, view.call(copied)) == (nodes["transpose"],)


def test_what_torch_exports_is_observed_like_a_trace() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return torch.vmap(torch.special.erfcx)(x).unfold(1, 2, 2) + 1

    captured = capture(Fn(forward).eval(), (X,))
    assert captured.how == "export"
    names = {node.name.partition("_")[0]: node for node in captured.module.graph.nodes}
    assert may_share(names["special"]) == ()
    assert may_share(names["unfold"]) == tuple(names["unfold"].all_input_nodes)


# -- in-place ops ----------------------------------------------------------------------------------


def test_in_place_ops_survive_though_nothing_reads_them() -> None:
    """S08."""

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        a = m.i(x + 1)
        a.mul_(2)
        m.r(a)
        return m.i(a)

    driven = run(Fn(forward, i=nn.Identity(), r=nn.ReLU(inplace=True)), X, library("tidy")).check()
    assert driven.difference() == 0


def test_an_op_that_went_with_its_layer_overwrites_nothing_any_more() -> None:
    model = Fn(lambda m, x: m.r(x.abs()).abs(), r=nn.ReLU(inplace=True))
    assert run(model, X, library("tidy")).check().ops() == ["abs"]


def test_a_value_that_is_kept_is_compared_as_it_was_before_it_was_written_to() -> None:
    """`h += b` writes into `h`; the new sum reads the `h` that stays."""
    swapped = """exact rule swapped {
  match { shared h = linear(x); y = add(h, b) }
  where { rank(b) == 2 }
  rewrite { y = add(b, h) }
}"""

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        h, b = m.a(x), m.b(x)
        h += b
        return torch.relu(h)

    model = Fn(forward, a=nn.Linear(8, 8), b=nn.Linear(8, 8)).eval()
    found = run(model, torch.randn(2, 8), swapped, "once")
    assert found.check().sites() == ["a"]


def test_a_layer_that_wrote_and_went_writes_no_more() -> None:
    """One `ReLU(inplace=True)` is called twice; the second call goes with the layer itself."""
    joined = """exact rule joined {
  match { h = linear(x) as l; y = relu(h) }
  rewrite { y = clamp(l(x), min = 0.0) }
}
exact rule cut { match { h = clamp(x, min = 0.0); y = add(h, 1.0) }
  rewrite { y = add(relu(x), 1.0) } }"""

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return m.r(m.b(m.r(m.a(x)))) + 1.0

    layers = {"a": nn.Linear(8, 8), "b": nn.Linear(8, 8), "r": nn.ReLU(inplace=True)}
    found = run(Fn(forward, **layers).eval(), torch.randn(2, 8), joined, "once")
    assert found.check().applied == 3
    assert found.state.mutations == []


def test_what_is_written_elsewhere_stands_in_nobody_s_way() -> None:
    """An in-place op between the matched ones, on another branch; and on what they read."""

    def apart(m: nn.Module, x: torch.Tensor) -> Any:
        h, other = m.c(x), m.d(x)
        other.relu_()
        return m.n(h) + other

    def read(m: nn.Module, x: torch.Tensor) -> Any:
        x = x + 1
        h = m.c(x)
        x.relu_()
        return m.n(h) + x

    def seen_through_a_view(m: nn.Module, x: torch.Tensor) -> Any:
        h = m.c(x)
        h.view(2, -1).relu_()
        return m.n(h)

    layers = {"c": nn.Conv2d(8, 8, 1), "d": nn.Conv2d(8, 8, 1), "n": nn.BatchNorm2d(8)}
    assert run(Fn(apart, **layers).eval(), X, library("fold")).check().sites() == ["c"]
    for forward in (read, seen_through_a_view):
        assert run(Fn(forward, **layers).eval(), X, library("fold")).check().sites() == []
