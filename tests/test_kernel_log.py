"""Which kernels integer layers run: what layers say, what oneDNN logs, and what is told of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import lissom
from lissom.cli import cli
from lissom.rewrite.evidence.certificate import certificate, recheck, sums_again
from lissom.rewrite.evidence.kernel_log import integer_kernels, judged
from lissom.rewrite.measure.integer_layers import largest_sums, runs_of
from lissom.rewrite.runtime import Int8Linear, kernels

from .support import Fn

PROGRAM = """
pipeline p {
  data calib = sample("train", all)
  stage s { once watch; calibrate calib; once int8_linear }
}
"""

MODEL = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4)).eval()

def inputs():
    return (torch.linspace(-1, 1, 32).reshape(2, 16),)

def data(split):
    return [(torch.linspace(-1, 1, 64).reshape(4, 16), torch.zeros(4))]
"""

LOG = """
onednn_verbose,v1,primitive,exec,cpu,convolution,brg_conv_fwd:avx512_core_vnni,forward_inference,\
src:u8::blocked:acdb::f0 wei:s8:a:blocked:AcdB64a4b::f0 dst:u8::blocked:acdb::f0,,,mb1,0.5
onednn_verbose,v1,primitive,exec,cpu,matmul,brg_matmul:avx512_core_vnni,undef,\
src:u8:a:blocked:ab::f0 wei:s8:p:blocked:BA16a64b4a::f8:zpm2 dst:f32,,,1x512:512x1000,0.06
onednn_verbose,v1,primitive,exec,cpu,convolution,brg_conv_fwd:avx512_core,forward_inference,\
src:f32::blocked:acdb::f0 wei:f32:a:blocked:Acdb64a::f0 dst:f32::blocked:acdb::f0,,,mb1,2.5
onednn_verbose,v1,primitive,create,cpu,convolution,brg_conv_fwd:avx512_core_vnni,forward,\
src:u8::blocked:acdb::f0 wei:s8:a:blocked:AcdB64a4b::f0 dst:u8::blocked:acdb::f0,,,mb1,0.5
"""


def test_only_integer_kernels_that_were_run_count() -> None:
    found = {"brg_conv_fwd:avx512_core_vnni": 1, "brg_matmul:avx512_core_vnni": 1}
    assert integer_kernels(LOG) == found


def test_a_layer_that_says_so_and_is_not_in_the_log_is_found() -> None:
    """int8 was stored, and float32 computed."""
    layers = [(1, "oneDNN"), (1, "oneDNN, the rest plain torch"), (1, "plain torch: no kernel")]
    right, wrong = judged(layers, integer_kernels(LOG)), judged(layers, Counter({"brg": 1}))
    assert right is not None
    assert right.holds
    assert "1 in plain torch: no kernel" in right.detail
    assert wrong is not None
    assert not wrong.holds
    assert wrong.detail.startswith("1 of 2")
    assert judged([], Counter()) is None


def test_layers_are_counted_as_often_as_they_run() -> None:
    layer = Int8Linear(4, 4)
    model = Fn(lambda m, x: m.a(x) + m.a(x), a=layer)
    ((path, (_, times)),) = runs_of(model, (torch.zeros(2, 4, dtype=torch.uint8),)).items()
    assert (path, times) == ("a", 2)


def apply(folder: Path) -> tuple[int, str]:
    (folder / "net.py").write_text(MODEL)
    (folder / "int8.lissom").write_text(PROGRAM)
    given = [str(folder / "net.py"), str(folder / "int8.lissom"), "-o", str(folder / "out")]
    done = CliRunner().invoke(cli, ["apply", *given])
    return done.exit_code, done.output


def test_a_written_model_is_verified_by_the_log(tmp_path: Path) -> None:
    code, said = apply(tmp_path)
    assert code == 0, said
    checked = CliRunner().invoke(cli, ["verify", str(tmp_path / "out")])
    assert checked.exit_code == 0, checked.output
    assert "integer layers run integer kernels" in checked.output
    assert "sums of integer layers stay below 2^31" in checked.output
    assert "proved: from the weights of 2, at most " in checked.output


def test_the_certificate_holds_how_far_sums_may_go() -> None:
    """255 times the magnitudes of a row; where it says otherwise, that is told."""
    found = compiled(nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4)).eval()).compiled
    written = certificate(found)
    wide = {
        name: 255 * int(tensor.long().abs().sum(1).max())
        for name, tensor in found.model.state_dict().items()
        if name.endswith("weight")
    }
    assert written["accumulators"] == {k.removesuffix(".weight"): v for k, v in wide.items()}
    text, examples = found.program.text, found.samples.examples
    probe = [(list(one.args), [found.model(*one.args)]) for one in examples]
    claim = "sums of integer layers stay below 2^31"
    for other, holds in ((written, True), (written | {"accumulators": {}}, False)):
        verdicts = recheck(found.model, other, text, probe)
        assert [verdict.holds for verdict in verdicts if verdict.claim == claim] == [holds]


def test_sums_that_may_wrap_run_in_plain_torch_and_are_told() -> None:
    layer = Int8Linear(70_000, 1)
    layer.weight.fill_(127)
    assert largest_sums(layer) == {"": 255 * 127 * 70_000}
    layer(torch.zeros(1, 70_000, dtype=torch.uint8))
    assert layer.ran == "plain torch: its sums may leave int32"
    (verdict,) = sums_again(layer, None)
    assert verdict.detail.endswith("; 1 that may go beyond run in plain torch")


def compiled(model: nn.Module) -> Any:
    x = torch.linspace(-1, 1, 64).reshape(4, 16)
    return lissom.compile(model, PROGRAM, inputs=(x,), data=[(x, torch.zeros(4))])


def test_a_layer_without_a_kernel_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "why_none", lambda *_: "this processor is too old")
    result = compiled(nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4)).eval())
    (told,) = (note for note in result.notes if note.code == "W706")
    assert told.message.startswith("2 integer layers run in plain torch, ")
    assert told.message.endswith("this processor is too old")
    assert told.severity == "warning"
    (error,) = (note for note in result.journal.remarks("error") if note.code == "W706")
    assert error.severity == "error"


def test_models_without_integer_layers_say_nothing() -> None:
    result = compiled(nn.Sequential(nn.Tanh()).eval())
    assert [note.code for note in result.notes if note.code == "W706"] == []
