"""`perturb { x := ... }` of a rule over ops: the matched ops read another value, and nothing else
does.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from lissom.grammar.checks.check import check
from lissom.grammar.diagnostics import LissomError
from lissom.grammar.fmt.format import format_text
from lissom.grammar.library.vocabulary import library as declarations
from lissom.grammar.text.parse import parse
from lissom.rewrite.apply.engine import candidates, find, prepare
from lissom.rewrite.apply.perturbed import perturbed_model
from lissom.rewrite.capture.capture import capture
from lissom.rewrite.graph.runs import record
from lissom.rewrite.match.site import Site

from .support import Driven, Fn, run, state_of, the_rule


def clamped(moved: str = "0.5", built: str = "0.5", budget: str = "900%", where: str = "") -> str:
    return f"""
approx rule clamped {{
  match {{ y = linear(x) as l }}
  {where}
  perturb {{ x := clamp(x, min = -0.5, max = {moved}) }}
  rewrite {{
    h = clamp(x, min = -0.5, max = {built})
    y = linear(h, weight = l.weight, bias = l.bias) from l
  }}
  ensure {{ error(y) <= {budget} }}
}}
"""


def given(after: Driven) -> Tensor:
    after.module.recompile()
    return after.module(X)


def twice() -> Fn:
    """A value that a layer and something else read."""
    torch.manual_seed(0)
    return Fn(lambda m, x: m.b(torch.relu(x)) + torch.relu(x), b=nn.Linear(4, 4))


def shared() -> Fn:
    torch.manual_seed(0)

    def forward(m: Any, x: Tensor) -> Tensor:
        y = torch.relu(x)
        return m.b(y) + y

    return Fn(forward, b=nn.Linear(4, 4))


X = torch.linspace(-2, 2, 12).reshape(3, 4)


def test_other_readers_keep_the_value() -> None:
    model = shared()
    after = run(model, X, clamped(), how="once")
    assert after.applied == 1
    y = torch.relu(X)
    assert torch.equal(given(after), model.b(y.clamp(max=0.5)) + y)


def test_the_error_is_that_of_the_other_value() -> None:
    model = twice()
    after = run(model, X, clamped(), how="once")
    (event,) = after.journal.events
    (verdict,) = [v for v in event.verdicts if v.claim.startswith("error(y)")]
    y = torch.relu(X)
    was, now = model.b(y), model.b(y.clamp(max=0.5))
    assert verdict.worst == pytest.approx(((now - was).norm() / was.norm()).item(), rel=1e-5)
    assert not any("no input moves" in v.claim for v in event.verdicts)


def test_a_broken_budget_leaves_the_site() -> None:
    after = run(twice(), X, clamped(budget="0.1%"), how="once")
    assert after.applied == 0
    assert "error(y) <= 0.1%" in after.reasons()[0]


@pytest.mark.parametrize("built", ["0.6", "0.4999"])
def test_a_rewrite_of_another_value_is_unsound(built: str) -> None:
    """The budget allows it; that the two halves differ is what is wrong."""
    with pytest.raises(LissomError) as caught:
        run(twice(), X, clamped(built=built), how="once")
    assert caught.value.diagnostics[0].code == "V101"


def test_a_weight_and_a_value_move_together() -> None:
    rule = clamped().replace("perturb {", "let { w = 2 * l.weight }\n perturb { l.weight := w; ")
    rule = rule.replace("weight = l.weight", "weight = w")
    model = twice()
    after = run(model, X, rule, how="once")
    assert after.applied == 1
    y = torch.relu(X)
    wanted = nn.functional.linear(y.clamp(max=0.5), 2 * model.b.weight, model.b.bias) + y
    torch.testing.assert_close(given(after), wanted)


def test_the_whole_perturbed_model_is_a_copy() -> None:
    model = shared()
    state = state_of(capture(model, (X,)).module, (X,))
    rule = the_rule(clamped())
    (node,) = candidates(state, rule)
    site = find(state, rule, node)
    assert isinstance(site, Site)
    before = state.module.code
    plan = prepare(state, site).plan  # type: ignore[union-attr]
    y = torch.relu(X)
    found = perturbed_model(state.module, site, plan)(X)
    assert torch.equal(found, model.b(y.clamp(max=0.5)) + y)
    assert state.module.code == before


def test_a_constant_is_no_value_that_the_model_computes() -> None:
    model = Fn(lambda m, x: m.b(m.k) + x, b=nn.Linear(4, 4), k=torch.ones(3, 4))
    after = run(model, X, clamped(), how="once")
    assert after.applied == 0
    if after.refusals():  # capture may have computed the whole product
        assert after.reasons() == ["`x` is a constant of the model, no value that it computes"]


def test_shape_and_type_stay() -> None:
    with pytest.raises(LissomError) as caught:
        run(
            twice(), X, clamped().replace("x := clamp(x, min = -0.5, max = 0.5)", "x := flatten(x)")
        )
    assert caught.value.diagnostics[0].code == "R003"


def test_numbers_are_no_value() -> None:
    rule = clamped().replace("x := clamp(x, min = -0.5, max = 0.5)", "x := l.weight")
    with pytest.raises(LissomError) as caught:
        run(twice(), X, rule, how="once")
    assert caught.value.diagnostics[0].code == "R002"


def test_what_a_matched_op_reads_of_another_cannot_move() -> None:
    """It is none of the values that the site has in common with the model."""
    rule = clamped().replace("y = linear(x) as l", "h = relu(x); y = linear(h) as l")
    rule = rule.replace("x := clamp(x", "h := clamp(h")
    (warning,) = [d for d in check(parse(rule, "f.lissom"), declarations()) if d.code == "R002"]
    assert warning.message == "only weights of matched ops, and what these read or give, can move"


# -- what the matched ops give

GIVEN = clamped().replace("x := clamp(x, min", "y := clamp(y, min")
GIVEN = GIVEN.replace(
    "h = clamp(x, min = -0.5, max = 0.5)", "h = linear(x, weight = l.weight, bias = l.bias)"
)
GIVEN = GIVEN.replace(
    "y = linear(h, weight = l.weight, bias = l.bias) from l", "y = clamp(h, min = -0.5, max = 0.5)"
)


def read_twice() -> Fn:
    torch.manual_seed(0)

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.b(x)
        return y.exp() + y

    return Fn(forward, b=nn.Linear(4, 4))


def test_all_readers_of_a_result_see_what_it_moves_to() -> None:
    model = read_twice()
    after = run(model, X, GIVEN, how="once")
    y = model.b(X)
    moved = y.clamp(-0.5, 0.5)
    assert torch.equal(given(after), moved.exp() + moved)
    (event,) = after.journal.events
    (verdict,) = [v for v in event.verdicts if v.claim.startswith("error(y)")]
    assert verdict.worst == pytest.approx(((moved - y).norm() / y.norm()).item(), rel=1e-5)


def test_the_whole_model_with_another_result() -> None:
    model = read_twice()
    state = state_of(capture(model, (X,)).module, (X,))
    rule = the_rule(GIVEN)
    (node,) = candidates(state, rule)
    site = find(state, rule, node)
    assert isinstance(site, Site)
    plan = prepare(state, site).plan  # type: ignore[union-attr]
    moved = model.b(X).clamp(-0.5, 0.5)
    found = perturbed_model(state.module, site, plan)
    assert torch.equal(found(X), moved.exp() + moved)
    # Who looks for it by its name, as the tester does, sees what its readers see.
    (named,) = (node for node in found.graph.nodes if node.name == node_of(site).name)
    assert torch.equal(record(found, [named], (X,))[named], moved)


def node_of(site: Site) -> fx.Node:
    return site.outputs["y"]


HALVES = """
approx rule halves {
  match { y = linear(x) as l }
  let {
    a = rows(l.weight, 0, 2)
    b = rows(l.weight, 2, 4)
  }
  perturb {
    y := cat(linear(x, weight = a, bias = none), linear(x, weight = b, bias = none), dim = -1)
  }
  rewrite {
    g = linear(x, weight = a, bias = none) from l
    h = linear(x, weight = b, bias = none) from l
    y = cat(g, h, dim = -1)
  }
  ensure { error(y) <= 900% }
}
"""


def test_the_whole_model_with_ops_that_have_weights_and_several_operands() -> None:
    model = read_twice()
    state = state_of(capture(model, (X,)).module, (X,))
    rule = the_rule(HALVES)
    (node,) = candidates(state, rule)
    site = find(state, rule, node)
    assert isinstance(site, Site)
    plan = prepare(state, site).plan  # type: ignore[union-attr]
    moved = nn.functional.linear(X, model.b.weight)
    found = perturbed_model(state.module, site, plan)(X)
    torch.testing.assert_close(found, moved.exp() + moved)


def test_a_result_of_another_size_is_unsound() -> None:
    with pytest.raises(LissomError) as caught:
        run(read_twice(), X, GIVEN.replace("y = clamp(h, min = -0.5", "y = clamp(h, min = -0.6"))
    assert caught.value.diagnostics[0].code == "V101"


def test_what_is_read_cannot_move_to_what_comes_of_it() -> None:
    rule = clamped().replace("x := clamp(x, min = -0.5, max = 0.5)", "x := mul(x, y)")
    with pytest.raises(LissomError) as caught:
        run(twice(), X, rule, how="once")
    assert caught.value.diagnostics[0].code == "R002"
    assert "before the matched ops give anything" in caught.value.diagnostics[0].message


def test_a_weight_that_a_layer_lacks_stays_absent() -> None:
    rule = clamped().replace("perturb {", "perturb { l.bias := 2 * l.bias; ")
    rule = rule.replace("bias = l.bias", "bias = none")
    model = Fn(lambda m, x: m.b(x), b=nn.Linear(4, 4, bias=False))
    after = run(model, X, rule, how="once")
    assert after.applied == 1
    assert torch.equal(given(after), model.b(X.clamp(-0.5, 0.5)))


def test_ops_are_called_in_perturb_only_where_a_value_moves() -> None:
    rule = clamped().replace("x := clamp(x, min = -0.5, max = 0.5)", "l.weight := clamp(l.weight)")
    (error,) = [d for d in check(parse(rule, "f.lissom"), declarations()) if d.severity == "error"]
    assert error.message == "the op `clamp` cannot be called in `perturb`"


def test_it_is_printed_as_it_was_written() -> None:
    text = format_text(clamped())
    assert "x := clamp(x, min = -0.5, max = 0.5)" in text
    assert format_text(text) == text
