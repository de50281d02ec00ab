"""Layers that compute in bfloat16 or float16: `passes/half.lissom` on whole models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.journal import Applied, Refused, VerdictKind
from lissom.rewrite.measure import processor

from .support import Fn, library

HALF = """
  stage half { once half_layer; once half_pair; once half_attention; once half_product }
  stage sink { fixpoint { widen_later; widen_after_relu6; drop_widening } }
"""


class Net(nn.Module):
    """A residual block, a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.pool, self.norm, self.out = nn.MaxPool2d(2), nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.pool(torch.relu(self.a(x)))
        h = torch.relu(self.b(h) + h).mean((2, 3))
        return self.out(self.norm(h))


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def given() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, 8, 8)


def compiled(model: nn.Module, x: Any = None, stages: str = HALF, rules: str = "") -> Any:
    x = given() if x is None else x
    data = f'data calib = sample("train", all); {stages}'
    text = f"{rules or library('half')}\n{library('widen')}\npipeline p {{ {data} }}"
    return lissom.compile(model, text, inputs=(x,), data=[(x, torch.zeros(len(x)))])


def apart(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def reasons(result: Any, rule: str) -> set[str]:
    events = result.journal.of(Refused)
    return {e.reason for e in events if e.rule.partition("(")[0] == rule}


def computed_by(model: nn.Module, x: Tensor) -> Tensor:
    """The same in plain torch: each layer and the sum on numbers of bfloat16."""
    m: Any = copy.deepcopy(model)
    for layer in (m.a, m.b, m.out):
        layer.bfloat16()
    h = m.pool(torch.relu(m.a(x.bfloat16())))
    h = torch.relu(m.b(h) + h).float().mean((2, 3))
    return m.out(m.norm(h).bfloat16()).float()


def test_layers_compute_in_bfloat16_and_norms_stay() -> None:
    model, x = net(), given()
    before = copy.deepcopy(model.state_dict())
    result = compiled(model)
    assert torch.equal(result.model(x), computed_by(model, x))
    assert 0 < apart(result.model(x), model(x)) < 0.02
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    types = {name: value.dtype for name, value in result.model.state_dict().items()}
    assert {n for n, kind in types.items() if kind == torch.float32} == {"norm.weight", "norm.bias"}
    assert result.after.params == result.before.params
    assert result.after.bytes == result.before.bytes / 2 + 2 * 8 * 2


def test_casts_stand_at_the_edges_alone() -> None:
    """From the input to the mean, and around the head: what lies between meets no other type."""
    result = compiled(net())
    casts = [n for n in result.model.graph.nodes if n.op == "call_method" and n.target == "to"]
    kinds = [str(n.kwargs["dtype"]).removeprefix("torch.") for n in casts]
    assert kinds == ["bfloat16", "float32", "bfloat16", "float32"]


def test_both_halves_are_the_same_function_in_float64() -> None:
    """Where only the types that are named round."""
    result = compiled(net())
    events = [e for e in result.journal.of(Applied) if e.stage == "half"]
    for event in events:
        found = {v.kind: v for v in event.verdicts}
        double, error = found[VerdictKind.DOUBLE], found[VerdictKind.ERROR]
        assert (double.worst or 0.0) <= 1e-13
        assert 1e-4 < (error.worst or 0.0) < 0.01
    assert len(events) == 4


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("g = c(h, weight = w, bias = b)", "g = c(h, weight = w, bias = as_type(2 * b, half))"),
        ("g = c(h, weight = w", "g = c(h, weight = as_type(0.99 * w, half)"),
        ("x := cast(cast(x, dtype = half)", "x := cast(x"),
        ("    c.weight := w\n", ""),
    ],
)
def test_halves_that_differ_are_found_whatever_the_budget(old: str, new: str) -> None:
    rules = library("half").replace("error(y) <= 2%", "error(y) <= 900%")
    assert old in rules
    with pytest.raises(LissomError) as caught:
        compiled(net(), stages="stage s { once half_layer }", rules=rules.replace(old, new, 1))
    assert caught.value.diagnostics[0].code == "V101"


def test_a_budget_leaves_what_loses_more() -> None:
    rules = library("half").replace("error(y) <= 2%", "error(y) <= 0.01%")
    result = compiled(net(), stages="stage s { once half_layer }", rules=rules)
    assert result.applied == []
    assert all("error(y) <= 0.01%" in said for said in reasons(result, "half_layer"))


def test_the_most_sensitive_layers_stay_islands() -> None:
    stages = "stage s { each half_layer order by sensitivity until bytes(model) <= 60% }"
    result = compiled(net(), stages=stages)
    errors = [v.worst for e in result.applied for v in e.verdicts if v.kind is VerdictKind.ERROR]
    assert 1 <= len(errors) < 3
    assert result.after.bytes <= 0.6 * result.before.bytes
    every = compiled(net(), stages="stage s { once half_layer }")
    rest = [v.worst for e in every.applied for v in e.verdicts if v.kind is VerdictKind.ERROR]
    assert max(errors) < max(rest)


def test_float16_holds_more_digits() -> None:
    stages = 'stage s { once half_layer(half = "float16") }'
    result = compiled(net(), stages=stages)
    assert len(result.applied) == 3
    rough = compiled(net(), stages="stage s { once half_layer }")
    x = given()
    assert apart(result.model(x), net()(x)) < apart(rough.model(x), net()(x)) / 4


def test_weights_beyond_float16_stay() -> None:
    model: Any = net()
    with torch.no_grad():
        model.b.weight[0, 0, 0, 0] = 1e5
    stages = 'stage s { once half_layer(half = "float16") }'
    result = compiled(model, stages=stages)
    assert len(result.applied) == 2
    assert any("numbers beyond float16" in said for said in reasons(result, "half_layer"))
    assert len(compiled(model, stages="stage s { once half_layer }").applied) == 3


def test_values_beyond_float16_stay() -> None:
    """They would be infinite: no budget allows that."""
    stages = 'stage s { once half_layer(half = "float16") }'
    result = compiled(net(), 1e5 * given(), stages)
    assert "a" not in {event.site for event in result.applied}


def test_nan_and_infinite_weights_are_no_half_layer() -> None:
    model: Any = net()
    with torch.no_grad():
        model.out.weight[0, 0] = float("nan")
        model.b.weight[0, 0, 0, 0] = float("inf")
    result = compiled(model, stages="stage s { once half_layer }")
    assert {event.site for event in result.applied} <= {"a"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_stay(dtype: torch.dtype) -> None:
    result = compiled(net().to(dtype), given().to(dtype), "stage s { once half_layer }")
    assert result.applied == []
    said = f"only float32 gets shorter here, the model computes in {str(dtype)[6:]}"
    assert reasons(result, "half_layer") == {said}


def test_a_half_model_is_compiled_again() -> None:
    first = compiled(net())
    again = compiled(first.model)
    assert again.applied == []


def test_a_word_that_is_no_half_type_is_said() -> None:
    result = compiled(net(), stages='stage s { once half_layer(half = "float64") }')
    assert reasons(result, "half_layer") == {"float64 is no half type"}


def test_a_weight_of_two_layers_stays_one() -> None:
    model = Fn(lambda m, x: m.b(torch.relu(m.b(x))), b=nn.Linear(4, 4))
    result = compiled(model, torch.randn(3, 4))
    assert result.applied == []
    assert any("its weight is shared with" in said for said in reasons(result, "half_layer"))


def test_a_table_is_half_as_large_and_a_tied_one_stays() -> None:
    torch.manual_seed(0)
    table, ids = nn.Embedding(9, 6), torch.tensor([[1, 8, 0], [3, 3, 2]])
    model = Fn(lambda m, i: torch.tanh(m.t(i)), t=table)
    stages = "stage s { once half_embedding }"
    result = compiled(model, ids, stages)
    assert torch.equal(result.model(ids), torch.tanh(table.weight.bfloat16().float()[ids]))
    assert result.after.bytes == result.before.bytes / 2
    tied = Fn(lambda m, i: m.t(i) @ m.t.weight.t(), t=table)
    assert compiled(tied, ids, stages).applied == []


def test_attention_and_products() -> None:
    torch.manual_seed(0)

    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.p(x).chunk(3, -1)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return torch.softmax(y @ x.transpose(1, 2), -1)

    model = Fn(forward, p=nn.Linear(8, 24))
    x = torch.randn(2, 5, 8)
    result = compiled(model, x)
    names = {event.rule for event in result.applied}
    assert {"half_layer", "half_attention", "half_product"} <= names
    assert result.model(x).dtype == torch.float32
    assert 0 < apart(result.model(x), model(x)) < 0.05


def test_a_fresh_process_gives_the_same_bits_from_half_the_bytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64)).eval(),
        torch.randn(2, 64),
    )
    result = compiled(model, x)
    result.save(tmp_path / "half")  # reads it in a process of its own and compares
    assert torch.equal(lissom.load(tmp_path / "half")(x), result.model(x))
    compiled(model, x, "stage s { once drop_widening }").save(tmp_path / "whole")
    sizes = [size_of(tmp_path / name) for name in ("half", "whole")]
    assert sizes[0] < 0.51 * sizes[1]


def size_of(folder: Path) -> int:
    """The bytes of the file that holds the weights."""
    (file,) = folder.rglob("weights.safetensors")
    return file.stat().st_size


def test_a_cpu_without_instructions_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def codes() -> list[str]:
        return [note.code for note in compiled(net(), stages="stage s { once half_layer }").notes]

    monkeypatch.setattr(processor, "_features", lambda: frozenset({"avx2", "avx512_bf16"}))
    for limit in processor.LIMITS:
        monkeypatch.delenv(limit, raising=False)
    assert "W706" not in codes()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
    assert "W706" in codes()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX")
    assert processor.computes_in("bfloat16")
    assert not processor.computes_in("float16")
