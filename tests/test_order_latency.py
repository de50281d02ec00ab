"""`order by latency`: sites are ranked by the time that they save, and left where they save none.

Time is told by a clock that layers move: each layer takes as many ticks as the test says, and each
node one more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from lissom.__main__ import main
from lissom.grammar.library.program import program_of
from lissom.jobs.compiling import numbered
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.apply import site_time
from lissom.rewrite.apply.engine import time_rewrite
from lissom.rewrite.apply.site_time import edges_of
from lissom.rewrite.capture.capture import capture
from lissom.rewrite.journal import Applied, Refused
from lissom.rewrite.measure.latency import Saving, saving_of
from lissom.rewrite.pipeline.compile import Compiled, Options, compile_model
from lissom.rewrite.runtime import Int8Conv2d, Int8Linear, quantize
from lissom.rewrite.targets import ops
from lissom.rewrite.targets.ops import OpTarget

from .support import library, state_of, the_rule

Seconds = Callable[[nn.Module], float]


TICK = 2.0**-10
"""Seconds; differences of ticks are exact."""


class Clock:
    """Reading it takes a tick."""

    def __init__(self) -> None:
        self.now, self.read = 0.0, 0

    def __call__(self) -> float:
        self.now += TICK
        self.read += 1
        return self.now

    @contextmanager
    def moved_by(self, seconds: Seconds) -> Iterator[None]:
        def ran(layer: nn.Module, *_: Any) -> None:
            self.now += seconds(layer)

        handle = register_module_forward_hook(ran)
        try:
            yield
        finally:
            handle.remove()


def ticks(floats: dict[int, float], integers: dict[int, float]) -> Seconds:
    """Of layers, by the number of features that they give."""

    def seconds(layer: nn.Module) -> float:
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            return TICK * floats[len(layer.weight)]
        if isinstance(layer, (Int8Linear, Int8Conv2d)):
            return TICK * integers[len(layer.weight)]
        return 0.0

    return seconds


SNAP = """
pipeline p {{
  data calib = sample("train", 8)
  stage snap {{ once watch; calibrate calib; {steps} }}
}}
"""


def compiled(
    model: nn.Module,
    x: Tensor,
    steps: str,
    seconds: Seconds,
    clock: Clock | None = None,
    **given: Any,
) -> Compiled:
    clock = clock or Clock()
    options = Options(functions=FUNCTIONS, clock=clock, **given)
    program = program_of(SNAP.format(steps=steps), "p.lissom", Path())
    with clock.moved_by(seconds):
        return compile_model(model.eval(), program, (x,), lambda split: [x], {}, options)


def applied(found: Compiled) -> list[str]:
    return [event.site for event in found.journal.of(Applied)]


def left(found: Compiled) -> dict[str, str]:
    """How sites are called that were left for their time, without the numbers."""
    refused = [event for event in found.journal.of(Refused) if event.code == "B004"]
    return {event.site: re.sub(r" [\d.]+( ms)?\b", "", event.reason) for event in refused}


def chain(*widths: int, between: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Convolutions of these many channels, from 3."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in zip((3, *widths), widths, strict=False):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), between()]
    return nn.Sequential(*layers)


IMAGE = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
EACH = "each int8_conv2d order by latency"


# -- which sites -----------------------------------------------------------------------------------


def test_the_site_that_saves_most_is_first_and_slower_ones_are_left() -> None:
    """They are apart: what lies between computes in float."""
    torch.manual_seed(0)
    gelu = [nn.GELU() for _ in range(3)]
    linears = [nn.Linear(8, 12), nn.Linear(12, 16), nn.Linear(16, 20), nn.Linear(20, 4)]
    model = nn.Sequential(
        *(part for pair in zip(linears, [*gelu, nn.GELU()], strict=True) for part in pair)
    )
    times = ticks({12: 9, 16: 20, 20: 5, 4: 1}, {12: 2, 16: 1, 20: 4, 4: 3})
    found = compiled(model, torch.rand(4, 8), "each int8_linear order by latency", times)
    assert applied(found) == ["2", "0"]
    assert left(found) == {
        "6": "slower: takes and to convert in place of",
        "4": "no faster than the measurement varies: takes and to convert in place of",
    }


def test_layers_that_are_slower_in_integers_stay_float() -> None:
    """As measured: a classifier of ten numbers, 0.059 ms in place of 0.017 (AVX-512 with VNNI)."""
    model = nn.Sequential(chain(8, 8, 10), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 4))
    times = ticks({8: 100, 10: 100, 4: 17}, {8: 40, 10: 40, 4: 59})
    steps = f"{EACH}; each int8_linear order by latency"
    found = compiled(model, IMAGE, steps, times)
    assert sorted(applied(found)) == ["0.0", "0.2", "0.4"]
    assert left(found) == {"3": "slower: takes in place of"}
    assert type(found.model.get_submodule("3")) is nn.Linear


def test_a_slow_round_does_not_make_a_site_faster() -> None:
    """Three rounds of five save a millisecond, two take one more."""
    torch.manual_seed(0)
    runs = iter(range(10**6))
    wave = [1.0, 1.0, -1.0, 1.0, -1.0]

    def seconds(layer: nn.Module) -> float:
        if isinstance(layer, Int8Linear):
            return TICK * (50 - wave[next(runs) % 5])
        return 50 * TICK if isinstance(layer, nn.Linear) else 0.0

    found = compiled(
        nn.Sequential(nn.Linear(8, 8)),
        torch.rand(4, 8),
        "each int8_linear order by latency",
        seconds,
    )
    assert applied(found) == []
    assert left(found)["0"].startswith("no faster than the measurement varies: ")


def test_the_goal_ends_it() -> None:
    times = ticks({8: 9, 10: 20, 12: 5}, {8: 1, 10: 1, 12: 1})
    steps = f"{EACH} until bytes(model) < 80%"
    found = compiled(chain(8, 10, 12), IMAGE, steps, times)
    assert applied(found) == ["2"]
    refused = found.journal.of(Refused)
    assert [event.site for event in refused if event.code == "B003"] == ["0", "4"]


# -- what lies around ------------------------------------------------------------------------------


def test_between_integer_layers_nothing_is_converted() -> None:
    """The middle one is slower by half of what its neighbour would have to quantize."""
    times = ticks({8: 9, 10: 1, 12: 9}, {8: 1, 10: 1.5, 12: 1})
    found = compiled(chain(8, 10, 12), IMAGE, EACH, times)
    assert sorted(applied(found)) == ["0", "2", "4"]
    assert left(found) == {}


def test_a_layer_that_is_much_slower_is_left_and_its_neighbour_converts() -> None:
    times = ticks({8: 9, 10: 1, 12: 9}, {8: 1, 10: 4, 12: 1})
    found = compiled(chain(8, 10, 12), IMAGE, EACH, times)
    assert sorted(applied(found)) == ["0", "4"]
    assert left(found) == {"2": "slower: takes in place of, which spares nearby"}


def test_a_neighbour_that_is_left_takes_others_with_it() -> None:
    """Each alone would be as fast as it was; the second only if the first one gives codes."""
    times = ticks({8: 1, 10: 2, 12: 9}, {8: 5, 10: 1.5, 12: 9})
    found = compiled(chain(8, 10, 12), IMAGE, EACH, times)
    assert applied(found) == []
    assert set(left(found)) == {"0", "2", "4"}


@pytest.mark.parametrize("count", [2, 5])
def test_layers_in_a_row_pay_together_for_what_the_first_one_converts(count: int) -> None:
    """Each saves a quarter of it."""
    widths = range(8, 8 + count)
    times = ticks(dict.fromkeys(widths, 2), dict.fromkeys(widths, 1.75))
    found = compiled(chain(*widths), IMAGE, EACH, times)
    assert len(applied(found)) == (count if count > 4 else 0)
    assert len(left(found)) == (0 if count > 4 else count)


def test_what_computes_in_between_keeps_the_conversion() -> None:
    """Behind a GELU the value is computed in float; a ReLU only hands it on."""
    times = ticks({8: 9, 10: 1.5}, {8: 1, 10: 1})
    assert sorted(applied(compiled(chain(8, 10), IMAGE, EACH, times))) == ["0", "2"]
    apart = compiled(chain(8, 10, between=nn.GELU), IMAGE, EACH, times)
    assert applied(apart) == ["0"]
    assert left(apart) == {"2": "slower: takes and to convert in place of"}


def test_what_an_earlier_step_made_computes_in_integers() -> None:
    """The classifier reads what the convolution could store as codes."""
    model = nn.Sequential(chain(8), nn.Flatten(), nn.Linear(288, 4))
    times = ticks({8: 9, 4: 2}, {8: 1, 4: 1.5})
    linear = "each int8_linear order by latency"
    assert applied(compiled(model, IMAGE, f"{EACH}; {linear}", times)) == ["0.0", "2"]
    alone = compiled(model, IMAGE, linear, times)
    assert left(alone) == {"2": "slower: takes and to convert in place of"}


def test_a_matched_op_that_stays_is_no_part_of_the_time() -> None:
    """What is added to it becomes codes: that saves nothing, whatever the layer takes."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x) + x

    steps = "once int8_linear; each int8_summand order by latency"
    found = compiled(Residual(), torch.rand(2, 8), steps, ticks({8: 9}, {8: 5}))
    (event,) = [event for event in found.journal.of(Refused) if event.code == "B004"]
    assert re.findall(r"[\d.]+", event.reason.partition("takes")[2]) == ["1.95", "0.977", "0.977"]


def test_a_constant_that_the_new_ops_read_is_there() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Buffer(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.shift + x)

    rule = """exact rule swapped {
      match { z = add(a, b, alpha = 1); y = relu(z) }
      rewrite { y = clamp(add(b, a), min = 0.0) }
    }
    pipeline p { stage s { each swapped order by latency } }"""
    clock = Clock()
    options = Options(functions=FUNCTIONS, clock=clock)
    program, x = program_of(rule, "p.lissom", Path()), torch.rand(2, 8)
    found = compile_model(Shifted().eval(), program, (x,), None, {}, options)
    (event,) = [event for event in found.journal.of(Refused) if event.code == "B004"]
    assert event.reason.endswith("takes 1.95 ms in place of 1.95")


def test_conversions_on_both_edges_are_told_apart() -> None:
    """A half layer has a cast in front and one behind."""
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    x = torch.rand(2, 4)
    state = state_of(capture(model, (x,)).module, (x,))
    target = OpTarget(state, the_rule(library("half"), "half_layer"))
    ready: Any = target.weigh(target.candidates()[0])
    edges = edges_of(ready.site, ready.plan)
    assert [(edge.incoming, edge.inner) for edge in edges] == [
        (True, torch.bfloat16),
        (False, torch.bfloat16),
    ]
    assert [edge.value.name for edge in edges] == ["input_1", "_0"]


def test_a_conversion_that_a_rule_takes_away_is_saved() -> None:
    """`quantize` behind a layer goes into it: nothing new lies at the edges."""
    torch.manual_seed(0)
    rule = """pipeline p { stage join { each int8_linear_to_codes order by latency } }"""

    class Coded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = Int8Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return quantize(self.one(x), 0.1, 3)

    clock = Clock()
    options = Options(functions=FUNCTIONS, clock=clock)
    codes = torch.randint(0, 256, (2, 8), dtype=torch.uint8)
    program = program_of(rule, "p.lissom", Path())
    with clock.moved_by(ticks({}, {8: 3})):
        found = compile_model(Coded().eval(), program, (codes,), None, {}, options)
    assert applied(found) == ["one"]


# -- whole models ----------------------------------------------------------------------------------

CUT = """
pipeline p {
  budget drift(outputs) <= 1000%
  stage s { each prune_l1(ratio = 25%) order by latency }
}
"""


def test_a_cut_is_timed_in_the_whole_model() -> None:
    """One that makes the model slower is left, whatever it saves of parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 3))
    clock = Clock()
    options = Options(functions=FUNCTIONS, clock=clock)
    times = ticks({20: 9, 15: 12, 8: 5, 6: 1, 3: 1}, {})
    with clock.moved_by(times):
        program = program_of(CUT, "p.lissom", Path())
        found = compile_model(model.eval(), program, (torch.rand(4, 6),), None, {}, options)
    assert len(applied(found)) == 1
    assert list(left(found).values()) == ["slower: takes in place of"]
    widths = [part.out_features for part in found.model.modules() if isinstance(part, nn.Linear)]
    assert widths == [20, 6, 3]


# -- again -----------------------------------------------------------------------------------------


def test_what_was_measured_once_is_not_measured_again() -> None:
    """As `apply --plan` and `bisect` run it: the clock is not read, and would say otherwise."""
    model = chain(8, 10, 12)
    times = ticks({8: 9, 10: 1, 12: 7}, {8: 1, 10: 4, 12: 1})
    first = compiled(model, IMAGE, EACH, times)
    decided = numbered((event.rule, event.site) for event in first.journal.of(Applied))
    clock = Clock()
    otherwise = ticks({8: 1, 10: 9, 12: 9}, {8: 9, 10: 1, 12: 8})
    again = compiled(model, IMAGE, EACH, otherwise, clock, decided=decided)
    assert (applied(again), clock.read) == (applied(first), 0)
    assert left(again) == {"2": "not faster: was left when the plan was made"}
    assert again.digests["result"] == first.digests["result"]


def test_apply_does_what_the_plan_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[str] = []

    def counted(state: Any, ready: Any) -> Any:
        measured.append(ready.site.name)
        return time_rewrite(state, ready)

    monkeypatch.setattr(ops, "time_rewrite", counted)
    monkeypatch.setattr(site_time, "SECONDS", 0.0)
    steps = "each int8_linear order by latency"
    (tmp_path / "p.lissom").write_text(SNAP.format(steps=steps))
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    layers = torch.nn.Linear(600, 600), torch.nn.Linear(600, 2)\n"
        "    return torch.nn.Sequential(*layers).eval()\n"
        "def inputs(): return (torch.rand(2, 600),)\n"
        "def data(split): return [torch.rand(8, 600)]\n"
    )
    case, plan = f"{tmp_path}/net.py:build", f"{tmp_path}/plan.json"
    assert main(["plan", case, f"{tmp_path}/p.lissom", "-o", plan, "-q"]) == 0
    assert set(measured) == {"0", "1"}
    measured.clear()
    assert main(["apply", case, "--plan", plan, "-o", f"{tmp_path}/out", "-q"]) == 0
    assert not measured, capsys.readouterr().err


# -- numbers ---------------------------------------------------------------------------------------


def test_a_saving_in_words() -> None:
    one = saving_of([(0.5, 0.25)] * 5)
    assert (one.saved, one.least, str(one)) == (0.25, 0.25, "250 ms in place of 500")
    two = Saving(2e-3, 1e-3, (1e-3,) * 5, (3e-3,), paid=3e-3)
    assert str(two) == "1 ms and 3 to convert in place of 2"
    assert (round(two.saved, 6), round(two.least, 6)) == (-2e-3, -2e-3)
