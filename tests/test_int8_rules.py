"""Trained layers become integer layers: `quant.lissom` and `codes.lissom` on whole models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.journal import Refused
from lissom.rewrite.runtime import Int8Conv2d, Int8Linear, quantize
from lissom.rewrite.runtime.layers import Int8Layer

from .support import Fn, library

SEEN = "once watch; calibrate calib; "
STAGES = """
  stage snap {
    once watch; calibrate calib
    once int8_conv1d; once int8_conv2d; once int8_conv3d; once int8_linear
  }
  stage join {
    fixpoint { int8_relu; int8_relu6; int8_conv2d_to_codes; int8_linear_to_codes }
  }
"""


class Net(nn.Module):
    """Two convolutions and a linear layer, with what stands between them in small networks."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, stride=2, groups=2)
        self.act, self.out = nn.ReLU6(), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.act(self.b(torch.relu(self.a(x)))).mean((2, 3)))


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def given() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, 9, 9)


def seen() -> list[Any]:
    torch.manual_seed(2)
    return [(torch.randn(8, 3, 9, 9), torch.zeros(8)) for _ in range(3)]


def compiled(
    model: nn.Module, x: Any = None, data: Any = None, stages: str = STAGES, rules: str = ""
) -> Any:
    data_line = 'data calib = sample("train", all)'
    text = f"{rules or library('quant', 'codes')}\npipeline p {{ {data_line}\n{stages} }}"
    x = given() if x is None else x
    return lissom.compile(model, text, inputs=(x,), data=seen() if data is None else data)


def integer_layers(model: nn.Module) -> list[Int8Layer]:
    return [module for module in model.modules() if isinstance(module, Int8Layer)]


def apart(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_all_layers_compute_in_integers() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    result = compiled(model)
    assert [type(layer) for layer in integer_layers(result.model)] == [
        Int8Conv2d, Int8Conv2d, Int8Linear
    ]  # fmt: skip
    assert apart(result.model(given()), model(given())) < 0.02
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    # The first layer gives the codes that the second reads; its relu is a step of it.
    first, second, _ = integer_layers(result.model)
    assert (first.activation, second.activation) == ("relu", "relu6")
    assert first.output_scale is not None
    assert second.output_scale is None
    assert result.after.bytes < result.before.bytes / 2
    assert result.after.params == result.before.params + 8 + 6 + 5  # the scales


def test_each_step_is_what_the_layers_say() -> None:
    """Computed beside them from the tensors that they hold, in plain torch."""
    result = compiled(net())
    x = given()
    scale, zero = _first_grid(result.model)
    a, b, out = integer_layers(result.model)
    b_scale = a.output_scale
    assert b_scale is not None
    codes = quantize(x, scale, zero)
    h = nn.functional.conv2d(codes.double() - zero, a.weight.double(), padding=1).float()
    h = torch.relu(h * a.scale[:, None, None] + a.bias[:, None, None])
    h = (h * (1 / b_scale) + a.output_zero).round().clamp(0, 255) - a.output_zero
    h = nn.functional.conv2d(h.double(), b.weight.double(), stride=2, groups=2).float()
    h = (h * b.scale[:, None, None] + b.bias[:, None, None]).clamp(0, 6).mean((2, 3))
    (node,) = [n for n in result.model.graph.nodes if n.target is quantize][1:]
    h = quantize(h, **node.kwargs).double() - node.kwargs["zero"]
    want = (h @ out.weight.double().t()).float() * out.scale + out.bias
    assert torch.equal(result.model(x), want)


def _first_grid(model: Any) -> tuple[float, int]:
    node = next(n for n in model.graph.nodes if n.target is quantize)
    return node.kwargs["scale"], node.kwargs["zero"]


def test_ranges_are_those_of_the_data() -> None:
    result = compiled(net())
    least, most = (torch.cat([x for x, _ in seen()]).aminmax()[i].item() for i in (0, 1))
    scale, zero = _first_grid(result.model)
    assert scale == pytest.approx((most - least) / 255, rel=1e-6)
    assert zero == round(-least / scale)


def test_a_fresh_process_gives_the_same_bits(tmp_path: Path) -> None:
    result = compiled(net())
    result.save(tmp_path / "small")  # reads it in a process of its own and compares
    loaded = lissom.load(tmp_path / "small")
    assert torch.equal(loaded(given()), result.model(given()))
    first, second = integer_layers(loaded)[0], integer_layers(result.model)[0]
    assert first.extra_repr() == second.extra_repr()
    assert torch.equal(first.weight, second.weight)


def test_an_integer_model_is_compiled_again() -> None:
    first = compiled(net())
    again = compiled(first.model)
    assert again.applied == []
    kept = [[n.target for n in r.model.graph.nodes].count(quantize) for r in (first, again)]
    assert kept == [2, 2]
    assert torch.equal(again.model(given()), first.model(given()))


def reasons(result: Any, rule: str) -> list[str]:
    events = result.journal.of(Refused)
    return [e.reason for e in events if e.rule.partition("(")[0] == rule]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_stay(dtype: torch.dtype) -> None:
    model, x = net().to(dtype), given().to(dtype)
    result = compiled(model, x, [(x.to(dtype), 0)])
    assert integer_layers(result.model) == []
    said = f"integer kernels give float32, the model computes in {str(dtype)[6:]}"
    assert set(reasons(result, "int8_conv2d")) == {said}


def test_a_layer_that_reads_zeros_alone_stays() -> None:
    model = net()
    with torch.no_grad():
        model.a.bias.fill_(-1e4)
    result = compiled(model)
    assert any("all numbers are zero" in text for text in reasons(result, "int8_conv2d"))


def test_nan_in_the_data_is_said() -> None:
    bad = seen()
    bad[1][0][0, 0, 0, 0] = float("nan")
    result = compiled(net(), data=bad)
    assert integer_layers(result.model) == []
    assert any("not finite on the data" in text for text in reasons(result, "int8_conv2d"))


def test_infinite_weights_are_said() -> None:
    model = net()
    with torch.no_grad():
        model.b.weight[0, 0, 0, 0] = float("inf")
    result = compiled(model)
    assert len(integer_layers(result.model)) < 3
    assert any("infinite or nan" in text for text in reasons(result, "int8_conv2d"))


def test_rows_of_zeros_and_of_one_sign() -> None:
    model = net()
    with torch.no_grad():
        model.out.weight[0] = 0
        model.out.weight[1].abs_()
        model.out.weight[2] = 1e-42  # no float32 is 127 times smaller
    result = compiled(model)
    layer = integer_layers(result.model)[-1]
    assert layer.weight[0].eq(0).all()
    assert layer.scale[0] > 0
    assert layer.weight[1].max() == 127
    assert apart(result.model(given()), model(given())) < 0.02


def test_a_weight_of_two_layers_stays_one() -> None:
    shared = nn.Linear(4, 4)
    model = Fn(lambda m, x: m.b(torch.relu(m.b(x))), b=shared)
    x = torch.randn(3, 4)
    result = compiled(model, x, [(torch.randn(8, 4), 0)])
    assert integer_layers(result.model) == []
    assert "its weight is shared with" in reasons(result, "int8_linear")[0]


def test_fewer_bits_lose_more() -> None:
    errors = []
    for bits in (8, 6, 4):
        text = f"stage snap {{ {SEEN}once int8_linear(bits = {bits}) }}"
        result = compiled(net(), stages=text)
        if integer_layers(result.model):
            errors.append(apart(result.model(given()), net()(given())))
            assert integer_layers(result.model)[0].weight.abs().max() <= 2 ** (bits - 1) - 1
    assert errors == sorted(errors)
    assert len(errors) >= 2


def test_a_scale_of_the_neighbour_is_found() -> None:
    """A budget of 900 % lets any error pass; that the halves differ does not."""
    wrong = library("quant").replace("scale = sw * sx", "scale = sw[0] * sx * ones(O)")
    wrong = wrong.replace("error(y) <= 5%", "error(y) <= 900%")
    with pytest.raises(LissomError) as caught:
        compiled(net(), stages=f"stage s {{ {SEEN}once int8_linear }}", rules=wrong)
    assert caught.value.diagnostics[0].code == "V101"


def test_a_value_without_numbers_has_no_range() -> None:
    model, x = Fn(lambda m, x: m.b(x), b=nn.Linear(4, 4)), torch.zeros(0, 4)
    result = compiled(model, x, [(x, 0)], stages=f"stage s {{ {SEEN}once int8_linear }}")
    assert integer_layers(result.model) == []
    assert "no calibration data reached what b reads" in reasons(result, "int8_linear")[0]


SUM = """
approx rule added {
  match {
    h = int8_linear(q, activation = "none") as c
    y = add(h, x)
  }
  let { (sx, zx) = affine(clip_range(x.range)) }
  perturb { x := fake_quantize(x, scale = sx, zero = zx) }
  rewrite { y = c(q, quantize(x, scale = sx, zero = zx), other_scale = sx, other_zero = zx) }
  ensure { error(y) <= 5% on calib }
}
"""


def test_numbers_that_meet_codes_are_drawn_for_as_many_samples() -> None:
    """Codes are recorded from the data, whose batches are larger than the example."""
    model = Fn(lambda m, x: m.b(x) + torch.tanh(x), b=nn.Linear(4, 4))
    stages = "stage s { once watch; calibrate calib; once int8_linear; once added }"
    rules = library("quant", "codes") + SUM
    x, data = torch.randn(2, 4), [(torch.randn(8, 4), 0)]
    result = compiled(model, x, data, stages=stages, rules=rules)
    assert reasons(result, "added") == []
    assert "added" in str(result.applied)


def test_layers_become_integer_while_a_budget_holds() -> None:
    """Mixed precision: one after another, the least sensitive first; the others stay in float."""
    stage = f"stage s {{ {SEEN}each int8_conv2d order by sensitivity }}"
    both = compiled(net(), stages=stage)
    errors = [max(v.worst for v in e.verdicts if v.claim.startswith("error")) for e in both.applied]
    assert len(errors) == 2
    assert errors == sorted(errors)
    share = 60 * apart(both.model(given()), net()(given()))
    one = compiled(net(), stages=f"budget drift(outputs) <= {share:.4f}%\n{stage}")
    assert len(integer_layers(one.model)) == 1
    assert 100 * apart(one.model(given()), net()(given())) <= 1.5 * share
    assert {event.code for event in one.journal.of(Refused)} == {"B002"}
