"""Hard model features, by their rows in docs/hard_cases.md: memory, precisions, sizes, parts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import lissom
from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.capture.capture import capture
from lissom.rewrite.journal import Refused
from lissom.rewrite.ops.spec import spec_of
from lissom.rewrite.pipeline.strategy import Runner

from .support import Driven, Fn, digests, library, random_norms, rules_of, run, state_of

X = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))
EXACT = library("tidy", "fold", "merge")


def compiled(function: Callable[..., Any], x: Any = X, **parts: Any) -> Driven:
    torch.manual_seed(0)
    return run(random_norms(Fn(function, **parts)), x, EXACT).check()


def pair(**more: Any) -> dict[str, nn.Module]:
    return {"c": nn.Conv2d(8, 8, 3, padding=1, **more), "n": nn.BatchNorm2d(8)}


def both(m: Any, x: Tensor) -> Tensor:
    return m.n(m.c(x))


def code(model: nn.Module, x: Any) -> str:
    with pytest.raises(LissomError) as refused:
        run(model, x, EXACT)
    return refused.value.diagnostics[0].code


# -- memory ----------------------------------------------------------------------------------------


class Views(nn.Module):
    """Two layers over one memory: the same part, or parts that overlap, or parts that do not."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        memory = torch.randn(16, 6)
        other = {"turned": memory[:6].t(), "overlap": memory[3:9], "apart": memory[6:12]}
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        self.one.weight, self.two.weight = nn.Parameter(memory[:6]), nn.Parameter(other[kind])

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x) * 2))


@pytest.mark.parametrize(("kind", "tied"), [("turned", True), ("overlap", True), ("apart", False)])
def test_h02_a_tie_by_memory_survives(kind: str, tied: bool) -> None:
    """I38: a view of another parameter is no weight of its own: the captured copy stays tied."""
    torch.manual_seed(0)
    model = Views(kind).eval()
    module = capture(model, (torch.randn(4, 6),)).module
    shared = module.one.weight.untyped_storage().data_ptr()
    assert (module.two.weight.untyped_storage().data_ptr() == shared) == tied
    assert torch.equal(module.two.weight, model.two.weight)
    before = module.two.weight.clone()
    with torch.no_grad():
        module.one.weight.add_(1)
    assert torch.equal(module.two.weight, before) != tied
    driven = run(model, torch.randn(4, 6), EXACT).check()
    assert driven.sites("fold_scale_linear") == ([] if tied else ["one"])
    if tied:
        assert "one runs 2 times; its other calls would change" in driven.reasons()


def test_h02_the_callers_own_memory_is_never_the_copys() -> None:
    torch.manual_seed(0)
    model = Views("overlap").eval()
    before = digests(model)
    module = capture(model, (torch.randn(4, 6),)).module
    with torch.no_grad():
        module.one.weight.zero_()
    assert digests(model) == before


def test_h03_shared_norms_and_activations_are_never_written_to() -> None:
    """One activation between two pairs: both fold. One norm behind two layers: neither does."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.r(m.n(m.c(m.r(m.o(m.d(x))))))

    more = {"d": nn.Conv2d(8, 8, 3), "o": nn.BatchNorm2d(8), "r": nn.ReLU()}
    assert compiled(forward, **pair(), **more).sites("fold_bn") == ["d", "c"]
    model = random_norms(
        Fn(lambda m, x: m.n(m.c(x)) + m.n(m.d(x)), **pair(), d=nn.Conv2d(8, 8, 3, padding=1))
    )
    before = digests(model)
    driven = run(model, X, EXACT).check()
    assert driven.sites("fold_bn") == []
    assert digests(model) == before


def test_h20_weights_and_inputs_that_are_not_contiguous() -> None:
    torch.manual_seed(0)
    model = random_norms(Fn(both, **pair()))
    model.c.weight = nn.Parameter(torch.randn(8, 3, 3, 8).permute(0, 3, 1, 2))
    assert not model.c.weight.is_contiguous()
    driven = run(model, X.transpose(2, 3), EXACT).check()
    assert driven.sites("fold_bn") == ["c"]
    assert driven.difference(torch.randn(3, 6, 6, 8).permute(0, 3, 1, 2)) < 1e-5


def test_h20_inputs_on_another_device() -> None:
    assert code(Fn(both, **pair()), X.to("meta")) == "M004"
    assert code(Fn(both, **pair()).to("meta"), X) == "M008"


# -- precisions and numbers ------------------------------------------------------------------------


def test_h10_whole_numbers_as_parameters() -> None:
    """I46: A factor of int64 makes the product a float32 and stays what it is."""
    steps = nn.Parameter(torch.arange(8).reshape(1, 8, 1, 1), requires_grad=False)
    driven = compiled(lambda m, x: m.n(m.c(x)) * m.k, **pair(), k=steps)
    assert driven.sites("fold_bn") == ["c"]
    kept = [p for p in driven.module.parameters() if not p.is_floating_point()]
    assert all(torch.equal(p, steps) for p in kept)


def test_h10_complex_values_are_left_as_they_are() -> None:
    driven = compiled(lambda m, x: torch.fft.ifft2(torch.fft.fft2(m.n(m.c(x)))).real, **pair())
    assert driven.sites() == ["c"]
    assert driven.ops() == ["conv2d", "?", "?", "?"]


def test_h10_compiling_inside_autocast_is_compiling_outside_of_it() -> None:
    """The model is taken in the precision of its weights; autocast is on again afterwards."""
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval(), torch.randn(2, 3, 5, 5)
    program = "pipeline p { stage a { fixpoint { fold_bn } } }"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = lissom.compile(model, program, inputs=(x,))
        assert torch.is_autocast_enabled("cpu")
    outside = lissom.compile(model, program, inputs=(x,))
    assert [event.rule for event in inside.applied] == ["fold_bn"]
    assert torch.equal(inside.model(x), outside.model(x))
    assert inside.compiled.digests == outside.compiled.digests


def test_h10_autocast_inside_the_model_is_refused() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return m.n(m.c(x))

    assert code(random_norms(Fn(forward, **pair())), X) == "M005"


@pytest.mark.parametrize("value", [1e-42, -0.0, 0.0])
def test_h11_denormals_and_rows_of_zeros(value: float) -> None:
    """I44."""
    model = random_norms(Fn(both, **pair()))
    with torch.no_grad():
        model.c.weight[3] = value
    driven = run(model, X, EXACT).check()
    assert driven.sites("fold_bn") == ["c"]
    assert driven.difference() < 1e-5


# -- sizes -----------------------------------------------------------------------------------------


def test_h08_an_input_without_a_batch_is_no_match() -> None:
    """[8, 8, 8] without a batch: what is axis 1 of the result is no channel axis."""
    parts = {"c": nn.Conv2d(8, 8, 3, padding=1), "k": torch.rand(8, 1) + 0.5}
    driven = compiled(lambda m, x: m.c(x) * m.k, torch.randn(8, 8, 8), **parts)
    assert driven.applied == 0
    assert "not `conv2d`: its input `x` has 3 axes, the op declares 4" in driven.reasons()
    assert compiled(lambda m, x: m.c(x) * 2, X, c=parts["c"]).sites("fold_scale") == ["c"]


@pytest.mark.parametrize(
    ("layers", "x", "sites"),
    [
        ([nn.Linear(0, 4), nn.Identity(), nn.Linear(4, 3)], torch.randn(2, 0), ["1", "0"]),
        ([nn.Linear(4, 0), nn.Identity(), nn.Linear(0, 3)], torch.randn(2, 4), []),
        ([nn.Identity(), nn.Linear(4, 3)], torch.randn(0, 4), ["0"]),
        ([nn.Identity(), nn.ReLU()], torch.tensor(-1.5), ["0"]),
        ([nn.Identity(), nn.Linear(4, 3)], torch.randn(4), ["0"]),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_h13_sizes_of_zero_and_no_axes(
    layers: list[nn.Module], x: Tensor, sites: list[str]
) -> None:
    """I45."""
    driven = run(nn.Sequential(*layers).eval(), x, EXACT).check()
    assert driven.sites() == sites
    result = driven.module(x)
    assert (result.shape, result.dtype) == (driven.model(x).shape, driven.model(x).dtype)


def long_graph(length: int) -> fx.GraphModule:
    """x + 1, again and again, with one identity at the end."""
    graph = fx.Graph()
    value = graph.placeholder("x")
    for _ in range(length):
        value = graph.call_function(torch.add, (value, 1))
    graph.output(graph.call_module("last", (value,)))
    spec = spec_of(torch.ones(2))
    for node in graph.nodes:
        node.meta["val"] = spec
    return fx.GraphModule({"last": nn.Identity()}, graph)


def seconds(length: int) -> float:
    module = long_graph(length)
    begun = time.process_time()
    runner = Runner(state_of(module, (torch.ones(2),)), "test")
    assert runner.fixpoint(rules_of(library("tidy"))) == 1
    assert len(module.graph.nodes) == length + 2
    return time.process_time() - begun


@pytest.mark.slow
def test_h25_a_hundred_thousand_nodes() -> None:
    """I36: No recursion, and time that grows with the number of nodes."""
    assert seconds(100_000) < 30 * seconds(10_000) + 0.5


# -- parts that nobody looks into ------------------------------------------------------------------


@torch.library.custom_op("lissom_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    return x * 2


def test_h18_custom_ops_stay_and_rules_work_around_them() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.n(m.c(torch.ops.lissom_tests.doubled(m.i(x))))

    driven = compiled(forward, **pair(), i=nn.Identity())
    assert driven.sites() == ["i", "c"]
    assert driven.ops() == ["?", "conv2d"]


def test_h18_recurrent_and_attention_layers_are_left_as_they_are() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.r(m.i(x))[0]
        return m.l(m.a(h, h, h)[0]) * 2

    torch.manual_seed(0)
    parts = {
        "r": nn.LSTM(4, 8, batch_first=True),
        "a": nn.MultiheadAttention(8, 2, batch_first=True),
        "l": nn.Linear(8, 3),
        "i": nn.Identity(),
    }
    model = Fn(forward, **parts)
    driven = run(model, torch.randn(2, 3, 4), EXACT).check()
    assert driven.sites() == ["i", "l"]
    before, after = digests(model), digests(driven.module)
    kept = [name for name in before if name.startswith(("r.", "a."))]
    assert len(kept) == 8
    assert all(before[name] == after[name] for name in kept)


def test_h18_a_graph_inside_a_model_is_opened() -> None:
    inner = fx.symbolic_trace(random_norms(nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))))
    driven = run(nn.Sequential(inner, nn.ReLU()).eval(), X, EXACT).check()
    assert driven.sites("fold_bn") == ["0.0"]


# -- shares and ranks that keep nothing or everything ----------------------------------------------

LOW_RANK = """
pipeline p {
  data calib = sample("train", 4)
  stage s { once low_rank_linear(ARGUMENT, least = 4, budget = 100%) }
}
"""


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("rank = 0", "T002"),
        ("rank = 1", "applied"),
        ("rank = 8", "rank 8 is past break-even 4"),
        ("keep_params = 150%", "T002"),
        ("keep_params = 0%", "`rank_for_share`: share 0% is outside 0..1"),
        ("energy = 0%", "applied"),
        ("energy = 100%", "rank 8 is past break-even 4"),
    ],
)
def test_h23_nothing_or_everything_is_kept(argument: str, expected: str) -> None:
    """One column at least stays, and what saves nothing is not done."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 12)).eval(), torch.randn(4, 8)
    text = LOW_RANK.replace("ARGUMENT", argument)
    if expected == "T002":
        with pytest.raises(LissomError, match="T002"):
            lissom.compile(model, text, inputs=(x,), data=lambda split: [(x, None)])
        return
    result = lissom.compile(model, text, inputs=(x,), data=lambda split: [(x, None)])
    reasons = [event.reason for event in result.journal.of(Refused)]
    assert (reasons or ["applied"]) == [expected]
    assert result.after.params == (32 if expected == "applied" else 108)
    assert torch.equal(result.model(x), model(x)) or expected == "applied"
