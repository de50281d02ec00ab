"""What a plan says of each place: ops, bits, bytes, the kernel that runs, milliseconds."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.__main__ import main
from lissom.rewrite.explain.site_changes import SiteChange, site_changes, timed
from lissom.rewrite.measure import processor as processor_module
from lissom.rewrite.measure.latency import saving_of
from lissom.rewrite.measure.processor import LIMITS, integer_instructions
from lissom.rewrite.pipeline.compile import Compiled

Capture = pytest.CaptureFixture[str]

NET = """\
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.outer = nn.Conv2d(8, 8, 3, padding=1)
        self.drop = nn.Dropout()
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.outer(torch.relu(self.inner(x))))
        return self.head(self.drop(x.mean((2, 3))))

def build():
    torch.manual_seed(0)
    return Net().eval()

def inputs():
    return (torch.rand(2, 3, 6, 6),)

def data(split):
    torch.manual_seed(1)
    return [(torch.rand(8, 3, 6, 6), torch.zeros(8, dtype=torch.long))]
"""

INT8 = """
pipeline p {
  data calib = sample("train", 8)
  stage open { fixpoint { fold_bn; drop_dropout } }
  stage snap { once watch; calibrate calib; once int8_conv2d, int8_linear, int8_summand }
  stage join { fixpoint { merge_quantize; int8_add; int8_relu; int8_conv2d_to_codes } }
}
"""

HALF = """
pipeline p { data calib = sample("train", 8); stage s { once half_layer at "head" } }
"""

CUT = """
pipeline p { data calib = sample("train", 8); budget drift(outputs) <= 100%
  stage s { once prune_l1(ratio = 50%) at "inner" }
}
"""


def compiled(program: str, **options: Any) -> Compiled:
    """The network after a program."""
    names: dict[str, Any] = {}
    exec(NET, names)
    torch.manual_seed(0)
    given = {"inputs": names["inputs"](), "data": names["data"]}
    return lissom.compile(names["build"](), program, **given, **options).compiled


def by_site(changes: list[SiteChange]) -> dict[str, SiteChange]:
    return {change.site: change for change in changes}


@pytest.fixture(scope="module")
def integers() -> Compiled:
    return compiled(INT8)


# -- places ----------------------------------------------------------------------------------------


def test_what_rules_took_belongs_to_the_nearest_place(integers: Compiled) -> None:
    """The sum is among the origins of both layers that it was joined with; it is a step of one."""
    found = by_site(site_changes(integers))
    ops = {site: (change.before.ops, change.after.ops) for site, change in found.items()}
    assert ops == {
        "stem": (("conv2d", "batch_norm", "relu"), ("quantize", "int8_conv2d_codes")),
        "inner": (("conv2d", "relu"), ("int8_conv2d_codes",)),
        "outer": (("conv2d", "add", "relu"), ("int8_conv2d",)),
        "drop": (("dropout",), ()),
        "head": (("linear",), ("quantize", "int8_linear")),
    }


def test_bits_and_bytes_are_those_of_the_weights(integers: Compiled) -> None:
    found = by_site(site_changes(integers))
    inner, drop = found["inner"], found["drop"]
    assert (inner.before.bits, inner.after.bits) == (32, 8)
    assert (inner.before.bytes, inner.after.bytes) == (4 * 8 * 8 * 9 + 4 * 8, 8 * 8 * 9 + 8 * 8)
    assert (drop.before.bytes, drop.after.bytes, drop.after.bits) == (0, 0, None)


def test_a_layer_that_runs_twice_is_counted_at_its_first_place() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.one(torch.relu(self.one(x))))

    rule = """exact rule clamped {
      match { h = linear(x) as c; y = relu(h) }
      rewrite { z = c(x); y = clamp(z, min = 0.0) }
    }
    pipeline p { stage s { once clamped } }"""
    found = lissom.compile(Twice().eval(), rule, inputs=(torch.rand(2, 4),)).compiled
    sizes = [(change.before.bytes, change.after.bytes) for change in site_changes(found)]
    assert sizes == [(80, 80), (0, 0)]


@pytest.mark.parametrize("program", [INT8, HALF, CUT, "pipeline p { stage s { once fold_bn } }"])
def test_changes_add_up_to_those_of_the_model(program: str) -> None:
    found = compiled(program)
    changes = site_changes(found)
    before = [sum(getattr(c.before, what) for c in changes) for what in ("bytes", "macs")]
    after = [sum(getattr(c.after, what) for c in changes) for what in ("bytes", "macs")]
    whole = [(found.before.bytes, found.after.bytes), (found.before.macs, found.after.macs)]
    assert changes
    assert [b - a for b, a in zip(before, after, strict=True)] == [b - a for b, a in whole]


def test_a_model_that_stays_has_no_places() -> None:
    assert site_changes(compiled("pipeline p { stage s { once fold_bn_transposed } }")) == []


def test_what_takes_one_result_out_belongs_to_its_op() -> None:
    """And a layer that is made of integer layers runs what these run."""

    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells = nn.LSTM(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.cells(x)[0]

    x = torch.rand(3, 2, 8)
    program = """pipeline p {
      data calib = sample("train", 3); stage s { once int8_lstm_dynamic }
    }"""
    found = lissom.compile(Sequence().eval(), program, inputs=(x,), data=[x]).compiled
    (change,) = site_changes(found)
    assert change.before.ops == ("lstm", "getitem")
    assert change.after.ops == ("row_scale", "quantize_rows", "int8_lstm")
    assert change.kernel.startswith(("oneDNN, ", "plain torch: "))
    assert change.sums is not None


# -- kernels ---------------------------------------------------------------------------------------


def test_the_kernel_is_what_the_layer_ran(integers: Compiled) -> None:
    changes = site_changes(integers)
    layers = [(c, node.target) for c in changes for node in c.nodes[1] if node.op == "call_module"]
    assert [c.site for c, _ in layers] == ["stem", "inner", "outer", "head"]
    for change, path in layers:
        ran = str(integers.model.get_submodule(str(path)).ran)
        told = f"{ran}, {integer_instructions()}" if ran.startswith("oneDNN") else ran
        assert change.kernel == told
    assert {c.kernel for c in changes if c.site == "drop"} == {""}


def test_sums_of_integer_layers_are_bounded(integers: Compiled) -> None:
    found = by_site(site_changes(integers))
    weight = integers.model.get_submodule(str(found["inner"].nodes[1][0].target)).weight
    assert found["inner"].sums == 255 * int(weight.long().abs().sum((1, 2, 3)).max()) / 2**31
    assert found["drop"].sums is None


def test_half_types_say_whether_the_processor_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    (change,) = site_changes(compiled(HALF))
    assert change.kernel == "no bfloat16 instructions"
    assert (change.before.bits, change.after.bits) == (32, 16)


@pytest.mark.parametrize(
    ("features", "limit", "wanted"),
    [
        ({"amx_int8", "avx512_vnni", "avx_vnni"}, "", "avx512_core_amx"),
        ({"amx_int8", "avx512_vnni"}, "AVX512_CORE_VNNI", "avx512_core_vnni"),
        ({"amx_int8", "avx512_vnni"}, "AVX512_CORE_AMX", "avx512_core_amx"),
        ({"avx512_vnni", "avx_vnni"}, "AVX2_VNNI", "avx2_vnni"),
        ({"avx512_vnni"}, "AVX512_CORE", "without VNNI"),
        ({"avx512_vnni"}, "default", "avx512_core_vnni"),
        ({"avx2"}, "", "without VNNI"),
    ],
)
def test_instructions_for_integers(
    features: set[str], limit: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in LIMITS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    monkeypatch.setattr(processor_module, "_features", lambda: frozenset(features))
    assert integer_instructions().endswith(wanted)


# -- time ------------------------------------------------------------------------------------------


def test_each_place_takes_as_long_as_its_nodes(integers: Compiled) -> None:
    """On a clock that each call of a node moves by a millisecond."""
    ticks = count()
    found = timed(integers, site_changes(integers), lambda: 1e-3 * next(ticks))
    times = {c.site: (round(c.before.ms or 0), round(c.after.ms or 0)) for c in found.changes}
    assert times == {
        "stem": (3, 2),
        "inner": (2, 1),
        "outer": (3, 1),
        "drop": (1, 0),
        "head": (1, 2),
    }
    assert [change.site for change in found.slower] == ["head"]
    assert found.how.endswith("rounds in turns, 1 thread, torch eager, batch 2")


@pytest.mark.parametrize(
    ("saved", "faster"),
    [
        ([1, 1, 1, 1, 1], True),
        ([1, 1, 1, 1, -9], False),
        ([1, 1, 1, 1, 1, 1, 1, -9], True),
        ([0, 0, 0, 0, 0], False),
        ([9, 0, 0, 0, 0], False),
        ([-1, -1, -1, -1, -1], False),
    ],
)
def test_faster_means_in_three_of_four_rounds(saved: list[float], faster: bool) -> None:
    assert (saving_of([(10 + one, 10) for one in saved]).least > 0) == faster


def test_places_in_python(integers: Compiled) -> None:
    result = lissom.Result(integers)
    assert [(p.site, p.kernel) for p in result.places()] == [
        (change.site, change.kernel) for change in site_changes(integers)
    ]
    assert {place.before.ms for place in result.places()} == {None}


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def case(tmp_path: Path) -> list[str]:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "p.lissom").write_text(INT8)
    return [f"{tmp_path}/net.py:build", f"{tmp_path}/p.lissom"]


def test_the_plan_names_the_processor_and_a_row_for_each_place(
    case: list[str], capsys: Capture
) -> None:
    assert main(["plan", *case]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("on ")
    assert first.endswith(f"; products of int8: {integer_instructions()}")
    start = next(number for number, line in enumerate(lines) if line.startswith("place"))
    assert lines[start].split() == ["place", "ops", "bits", "bytes", "runs"]
    rows = [line.split() for line in lines[start + 1 : start + 6]]
    assert [row[0] for row in rows] == ["stem", "inner", "outer", "drop", "head"]
    assert "conv2d, relu -> int8_conv2d_codes" in " ".join(rows[1])
    assert "32 -> 8 2,336 -> 640" in " ".join(rows[1])
    assert lines[start + 6].startswith("sums of integer layers reach at most ")


def test_milliseconds_are_measured_where_they_are_asked_for(
    case: list[str], capsys: Capture
) -> None:
    assert main(["plan", *case, "--latency", "--format", "json"]) == 0
    sites = json.loads(capsys.readouterr().out)["sites"]
    assert all(site["before"]["ms"] > 0 and site["after"]["ms"] >= 0 for site in sites)
    assert {"site", "before", "after", "kernel", "sums"} == set(sites[0])
    assert main(["plan", *case, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {site["before"]["ms"] for site in found["sites"]} == {None}
    assert found["processor"]["integers"] == integer_instructions()


def test_many_reasons_are_listed_on_request(case: list[str], capsys: Capture) -> None:
    """Here each layer has one of its own: how wide it is."""
    layers = ", ".join(f"torch.nn.Linear({n}, {n + 1}), torch.nn.ReLU()" for n in range(4, 14))
    Path(case[0].partition(":")[0]).write_text(
        f"import torch\ndef build():\n    return torch.nn.Sequential({layers}).eval()\n"
        "def inputs(): return (torch.rand(2, 4),)\n"
    )
    Path(case[1]).write_text(
        "exact rule wide {\n  match { h = linear(x) as c; y = relu(h)\n c.weight : [O, I] }\n"
        '  where { O > 99 else "only {O} wide" }\n  rewrite { y = clamp(c(x), min = 0.0) }\n}\n'
    )
    assert main(["plan", *case]) == 0
    assert capsys.readouterr().out.count("x not") == 9
    assert main(["plan", *case, "-v"]) == 0
    assert capsys.readouterr().out.count("x not: only") == 10
