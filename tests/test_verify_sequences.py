"""Long sequences are verified on short ones, and planted bugs are found all the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.apply.inputs import probes
from lissom.rewrite.apply.perturbed import run_perturbed
from lissom.rewrite.capture.capture import capture

from .support import Fn, library, run, state_of

OPEN = library("attention")
GENERATOR = torch.Generator().manual_seed(0)
LONG = torch.randn(3, 64, 12, generator=GENERATOR)


def attention(dtype: torch.dtype = torch.float32, batch_first: bool = True) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(12, 3, batch_first=batch_first)
    nn.init.normal_(layer.in_proj_bias)
    model = Fn(lambda m, x: m.a(x, x, x, need_weights=False)[0], a=layer)
    return model.to(dtype).eval()


def drawn(x: Tensor) -> list[tuple[int, ...]]:
    """The shapes that are drawn for an input, in their order; each twice or as one batch."""
    state = state_of(capture(nn.Sequential(nn.ReLU()).eval(), (x,)).module, (x,))
    (node,) = (n for n in state.module.graph.nodes if n.op == "placeholder")
    return [tuple(tries[0].values[node].shape) for tries in probes(state, [node])]


def test_sequences_come_before_signals_before_whole_ones() -> None:
    assert drawn(LONG) == [
        (2, 5, 12), (2, 9, 12), (2, 64, 5), (2, 64, 9), (2, 64, 12), (3, 64, 12)
    ]  # fmt: skip
    images = [(2, 3, 5, 5), (2, 3, 9, 9), (1, 3, 5, 5), (1, 3, 9, 9), (1, 3, 64, 12)]
    assert drawn(LONG[None]) == images
    assert drawn(LONG[0]) == [(2, 12), (2, 12), (64, 12)]


def test_attention_is_opened_on_short_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def spy(module: Any, site: Any, plan: Any, env: dict[Any, Any], *rest: Any) -> Any:
        seen.extend(v.shape[1] for n, v in env.items() if n.op == "placeholder")
        return run_perturbed(module, site, plan, env, *rest)

    monkeypatch.setattr("lissom.rewrite.apply.verify.run_perturbed", spy)
    driven = run(attention(), LONG, OPEN, how="once").check()
    assert driven.applied == 1
    assert set(seen) == {5}


def test_attention_is_opened_in_the_layout_of_time_first() -> None:
    driven = run(attention(batch_first=False), LONG, OPEN, how="once").check()
    assert driven.applied == 1
    assert "permute" in driven.ops()


MUTANTS = {
    "keys of queries": ("a.in_proj_weight, E, 2 * E", "a.in_proj_weight, 0, E"),
    "no bias of values": ("bias = rows(a.in_proj_bias, 2 * E, 3 * E)", "bias = none"),
    "no bias of queries": ("bias = rows(a.in_proj_bias, 0, E)", "bias = none"),
    "keys and values exchanged": ("attention(ph, rh, sh)", "attention(ph, sh, rh)"),
    "causal": ("attention(ph, rh, sh)", "attention(ph, rh, sh, is_causal = true)"),
    "another scale": ("attention(ph, rh, sh)", "attention(ph, rh, sh, scale = 0.57)"),
    "heads left in front": (
        "flatten(transpose(m, dim0 = 1, dim1 = 2), start_dim = 2)",
        "flatten(unflatten(flatten(m, start_dim = 1), dim = 1, sizes = (64, 3, 4)), start_dim = 2)",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_planted_bugs_are_found(name: str) -> None:
    before, after = MUTANTS[name]
    assert before in OPEN
    text = OPEN.replace(before, after)
    if name == "causal":
        text = OPEN.replace(before, "attention(ph, rh, sh, none, 0.0, true)")
    with pytest.raises(LissomError, match="V101"):
        run(attention(), LONG, text, how="once")


SCALE = """
exact rule absorbed {
  match {
    y = linear(x) as l
    x : f[N, L, E]
  }
  rewrite { y = linear(x, weight = l.weight * FACTOR, bias = l.bias) from l }
}
"""


@pytest.mark.parametrize(("factor", "applied"), [("(L / 64)", 1), ("(L / 65)", None)])
def test_what_a_rule_says_of_a_length_is_judged_at_that_length(
    factor: str, applied: int | None
) -> None:
    torch.manual_seed(0)
    model, text = nn.Sequential(nn.Linear(12, 4)).eval(), SCALE.replace("FACTOR", factor)
    if applied is None:
        with pytest.raises(LissomError, match="V101"):
            run(model, LONG, text, how="once")
    else:
        assert run(model, LONG, text, how="once").applied == applied
