"""Observers: `attach ... on x as x.range`, `calibrate`, and what rules read of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.grammar.diagnostics import LissomError
from lissom.passes.observers import Seen, clip_range, histogram, min_max, moving_average
from lissom.rewrite.journal import Attached, Calibrated, Refused
from lissom.rewrite.measure import observing
from lissom.rewrite.runtime import quantize

from .support import Fn, library

WATCH = """
observe rule watch_layers {
  match { y = linear(x) as l }
  rewrite {
    attach min_max() on x as l.entered
    attach histogram(bins = 64) on y as y.gave
  }
}
observe rule watch_values {
  match value v : f[...] at "*"
  rewrite { attach min_max() on v as v.entered }
}
"""
SNAP = """
approx rule bounded {
  match { y = linear(x) as l }
  where { known(l.entered)  else "nothing reached {l}" }
  let {
    (s, z) = affine(l.entered)
    (codes, w) = symmetric(l.weight)
  }
  perturb { l.weight := dequantized(codes, w); x := fake_quantize(x, scale = s, zero = z) }
  rewrite {
    q = quantize(x, scale = s, zero = z)
    y = int8_linear(q, weight = codes, scale = s * w, bias = l.bias, zero = z) from l
  }
  ensure { error(y) <= 5% on calib }
}
"""
FOLD = """
exact rule twice {
  match { h = linear(x) as l; y = mul(h, 2.0) }
  let { w = 2 * l.weight }
  rewrite { y = linear(x, weight = w, bias = 2 * l.bias) from l }
}
"""


def program(steps: str, rules: str = WATCH + SNAP) -> str:
    data = 'data calib = sample("train", all)'
    return f"{rules}\npipeline p {{ {data}\n stage s {{ {steps} }} }}"


def net() -> nn.Module:
    torch.manual_seed(0)
    return Fn(lambda m, x: m.b(torch.relu(m.a(x))), a=nn.Linear(4, 6), b=nn.Linear(6, 3)).eval()


def batches(count: int = 3) -> list[Any]:
    torch.manual_seed(1)
    return [(torch.randn(8, 4), torch.zeros(8)) for _ in range(count)]


def compiled(steps: str, rules: str = WATCH + SNAP, model: Any = None, data: Any = None) -> Any:
    model, data = model or net(), batches() if data is None else data
    return lissom.compile(model, program(steps, rules), inputs=(torch.ones(2, 4),), data=data)


def scales(result: Any) -> list[float]:
    nodes = result.model.graph.nodes
    return [n.kwargs["scale"] for n in nodes if n.target is quantize]


# -- through a pipeline ----------------------------------------------------------------------------


def test_rules_read_what_observers_saw() -> None:
    result = compiled("once watch_layers; calibrate calib; once bounded")
    x = torch.cat([x for x, _ in batches()])
    h = torch.relu(net().a(x))
    want = [(v.max() - v.clamp(max=0).min()).item() / 255 for v in (x, h)]
    assert scales(result) == pytest.approx(want, rel=1e-6)
    assert [event.site for event in result.journal.of(Attached)] == ["a", "b"]
    (told,) = result.journal.of(Calibrated)
    assert (told.data, told.samples, told.observers) == ("calib", 24, 4)
    (written,) = result.certificate["calibrations"]
    assert written["samples"] == 24


def test_inputs_and_results_of_all_ops_are_values() -> None:
    rules = WATCH + SNAP.replace("l.entered", "x.entered")
    result = compiled("once watch_values; calibrate calib; once bounded", rules)
    assert scales(result) == scales(compiled("once watch_layers; calibrate calib; once bounded"))
    assert [event.site for event in result.journal.of(Attached)] == ["x", "a", "relu", "b"]


def test_parts_and_what_unknown_ops_give_are_values() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        _, part = m.a(x).chunk(2, -1)
        return m.b(torch.special.bessel_j0(m.c(part)))

    model = Fn(run, a=nn.Linear(4, 12), c=nn.Linear(6, 6), b=nn.Linear(6, 3)).eval()
    steps = "once watch; calibrate calib; once int8_linear"
    assert len(scales(compiled(steps, library("quant"), model))) == 3


def test_an_op_and_its_value_have_names_of_their_own() -> None:
    """`l.entered` is of what the layer reads, `v.entered` of a value, which a layer gives."""
    want = scales(compiled("once watch_layers; calibrate calib; once bounded"))
    both = "once watch_layers; once watch_values; calibrate calib; once bounded"
    assert scales(compiled(both)) == want


def test_data_runs_once_for_all_observers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three values with one observer, and a second one of another kind: one run of each batch."""
    seen: list[int] = []
    run = observing.interpret
    monkeypatch.setattr(observing, "interpret", lambda *a: (seen.append(1), run(*a))[1])
    result = compiled("once watch_values; once watch_layers; calibrate calib")
    assert len(seen) == len(batches())
    assert result.journal.of(Calibrated)[0].observers == 6  # 4 values, two of them twice
    assert result.applied == []


def test_before_calibration_nothing_is_known() -> None:
    """The checker says so; where it cannot see, the site is left."""
    with pytest.raises(LissomError) as caught:
        compiled("once watch_layers; once bounded")
    assert caught.value.diagnostics[0].code == "F001"
    rules = WATCH + SNAP.replace("l.entered", "x.entered")
    result = compiled('once watch_values at "relu"; calibrate calib; once bounded', rules)
    assert [event.reason for event in result.journal.of(Refused)] == ["nothing reached a"]


def test_weights_that_move_outdate_what_was_seen() -> None:
    thin = """
approx rule thin {
  match { h = linear(x) as l; y = relu(h) }
  perturb { l.bias := 0.99 * l.bias }
  rewrite { y = hardtanh(l(x, bias = 0.99 * l.bias), min_val = 0.0, max_val = 1000.0) }
  ensure { error(y) <= 500% on calib }
}
"""
    steps = "once watch_layers; calibrate calib; once thin; once bounded"
    with pytest.raises(LissomError) as caught:
        compiled(steps, WATCH + SNAP + thin)
    found = caught.value.diagnostics[0]
    assert found.code == "F001"
    assert any("undone here" in label.text for label in found.labels)


def test_the_graph_forgets_by_itself() -> None:
    """As the checker says: a rule moved weights after calibration, and reads no observer."""
    graph = torch.fx.symbolic_trace(net())
    node = next(n for n in graph.graph.nodes if n.op == "call_module")
    watched = observing.Watched(min_max(), observing.number_of(node), seen=Seen(0.0, 1.0))
    observing.hang(node, {"entered": watched})
    kept = observing.watched_at(node)
    observing.forget_seen(graph.graph)
    assert observing.watched_at(node)["entered"].seen is None
    assert kept["entered"].seen == Seen(0.0, 1.0)  # a snapshot shares it


def test_values_keep_what_was_seen_through_exact_rules() -> None:
    model = Fn(lambda m, x: m.b(m.a(x) * 2.0), a=nn.Linear(4, 6), b=nn.Linear(6, 3)).eval()
    rules = WATCH + FOLD + SNAP.replace("l.entered", "x.entered")
    steps = "once watch_values; calibrate calib; fixpoint { twice }; once bounded"
    result = compiled(steps, rules, model)
    assert len(scales(result)) == 2
    x = torch.cat([x for x, _ in batches()])
    least, most = (2 * model.a(x)).aminmax()
    assert scales(result)[1] == pytest.approx((most - least).item() / 255, rel=1e-5)


def test_observers_are_attached_once() -> None:
    result = compiled("fixpoint { watch_values }; calibrate calib")
    assert len(result.journal.of(Attached)) == 4
    assert torch.equal(result.model(torch.ones(2, 4)), net()(torch.ones(2, 4)))


def test_a_stage_that_is_undone_takes_its_observers_along() -> None:
    budget = "budget drift(outputs) <= 0.0001%\n stage s"
    text = program("once watch_layers; calibrate calib; once bounded").replace("stage s", budget)
    result = lissom.compile(net(), text, inputs=(torch.ones(2, 4),), data=batches())
    assert result.applied == []
    assert scales(result) == []


def test_no_data_is_an_error() -> None:
    text = program("once watch_layers; calibrate calib; once bounded")
    with pytest.raises(LissomError) as caught:
        lissom.compile(net(), text, inputs=(torch.ones(2, 4),))
    assert caught.value.diagnostics[0].code == "D002"
    wrong = text.replace("calibrate calib;", "calibrate other;")
    with pytest.raises(LissomError) as caught:
        lissom.compile(net(), wrong, inputs=(torch.ones(2, 4),), data=batches())
    assert {d.code for d in caught.value.diagnostics} <= {"D003", "N001"}


def test_only_observers_are_attached() -> None:
    rules = WATCH.replace("min_max() on x", "max(l.weight) on x") + SNAP
    with pytest.raises(LissomError) as caught:
        compiled("once watch_layers; calibrate calib", rules)
    assert caught.value.diagnostics[0].code == "R016"


def test_an_observer_of_the_host_program() -> None:
    class Count:
        def begin(self) -> Any:
            return Counter()

    class Counter:
        seen = 0

        def update(self, value: Tensor) -> None:
            self.seen += value.numel()

        def result(self) -> int:
            return self.seen

    rules = """
extern fn counting() -> any pure
observe rule count { match { y = linear(x) }; rewrite { attach counting() on x as x.count } }
approx rule never {
  match { h = linear(x) as l; y = relu(h) }
  where { x.count == 0  else "{x.count} numbers" }
  perturb { l.bias := 0 * l.bias }
  rewrite { y = hardtanh(linear(x, weight = l.weight), min_val = 0.0, max_val = 9.0) }
  ensure { error(y) <= 5% on calib }
}
"""
    text = program("once count; calibrate calib; once never", rules)
    given = {"counting": Count}
    x = torch.ones(2, 4)
    result = lissom.compile(net(), text, inputs=(x,), data=batches(), functions=given)
    assert [e.reason for e in result.journal.of(Refused)] == ["96 numbers"]


# -- what they keep --------------------------------------------------------------------------------


def seen_by(observer: Any, *values: Tensor) -> Any:
    summary = observer.begin()
    for value in values:
        summary.update(value)
    return summary.result()


def test_counts_do_not_depend_on_the_order_of_batches() -> None:
    torch.manual_seed(3)
    parts = [torch.randn(50) * scale for scale in (1e-3, 1.0, 300.0)]
    found = [seen_by(histogram(32), *order) for order in (parts, parts[::-1], [torch.cat(parts)])]
    assert all(one == found[0] for one in found)
    assert all(torch.equal(one.counts, found[0].counts) for one in found)
    assert found[0].counts.sum() == 150
    assert len(found[0].counts) <= 32
    first = found[0].start * found[0].width
    assert first <= found[0].least < first + found[0].width


def test_the_ends_are_exact_where_numbers_are_sampled() -> None:
    value = torch.zeros(1, 64, 64, 64)
    value[0, 3, 5, 7], value[0, 60, 1, 2] = -9.0, 11.0
    found = seen_by(histogram(), value.to(memory_format=torch.channels_last))
    assert (found.least, found.most) == (-9.0, 11.0)
    assert found.counts.sum() <= 1 << 16


def test_sampling_meets_all_channels() -> None:
    value = torch.arange(64.0)[None, :, None, None].expand(4, 64, 64, 64)
    found = seen_by(histogram(64), value.contiguous())
    assert (found.counts > 0).sum() == 64


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("observer", [min_max(), histogram()])
def test_numbers_that_are_none_are_seen(observer: Any, bad: float) -> None:
    values = torch.ones(4), torch.tensor([0.0, bad]), torch.ones(4)
    found = seen_by(observer, *values)
    assert not (math.isfinite(found.least) and math.isfinite(found.most))
    assert clip_range(found, "mse" if found.counts is not None else "min_max") is found


def test_a_moving_average_of_the_ends() -> None:
    found = seen_by(moving_average(0.5), torch.tensor([0.0, 4.0]), torch.tensor([-2.0, 8.0]))
    assert (found.least, found.most) == (-1.0, 6.0)


def coded(x: Tensor, seen: Seen, bits: int = 8) -> float:
    """The squared error of codes on a range."""
    least, most = min(seen.least, 0.0), max(seen.most, 0.0)
    step = (most - least) / (2**bits - 1)
    return (((x.clamp(least, most) / step).round() * step - x) ** 2).mean().item()


def test_ranges_that_leave_outliers_out() -> None:
    torch.manual_seed(4)
    x = torch.cat([torch.randn(50_000), torch.tensor([60.0])])
    seen = seen_by(histogram(), x)
    whole = coded(x[:-1], clip_range(seen, "min_max"), 4)
    for method in ("mse", "percentile", "entropy"):
        narrow = clip_range(seen, method, bits=4)
        assert narrow.most < 40, method
        assert coded(x[:-1], narrow, 4) < whole / 3, method
    part = clip_range(seen, "percentile", share=0.01)
    assert part.most == pytest.approx(x.quantile(0.99).item(), abs=2 * seen.width)
    assert part.least == pytest.approx(x.quantile(0.01).item(), abs=2 * seen.width)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_least_error_is_less_than_that_of_other_ranges(bits: int) -> None:
    torch.manual_seed(5)
    x = torch.randn(60_000).relu()
    seen = seen_by(histogram(), x)
    best = coded(x, clip_range(seen, "mse", bits=bits), bits)
    others = [Seen(0.0, seen.most * part) for part in (1.0, 0.8, 0.6, 0.4, 0.2)]
    assert best <= 1.02 * min(coded(x, other, bits) for other in others)
    assert clip_range(seen, "mse", bits=bits).least == 0.0


def test_a_method_that_is_none() -> None:
    with pytest.raises(LissomError, match="`median` is none of min_max"):
        clip_range(Seen(0.0, 1.0), "median")
    with pytest.raises(LissomError, match="`mse` needs a histogram"):
        clip_range(Seen(0.0, 1.0), "mse")
