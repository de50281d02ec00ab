"""A kernel that is wrong is a verdict of its own, and no rule is blamed for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.grammar.text.parse import parse
from lissom.grammar.tree import tree as t
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.evidence.artifact import read_probe, save_compiled, verify_artifact
from lissom.rewrite.evidence.certificate import recheck
from lissom.rewrite.journal import Refused, StageEnd
from lissom.rewrite.measure.compare import EQUALITY, model_equality
from lissom.rewrite.measure.processor import processor_name
from lissom.rewrite.measure.twins import Twins, kernel_faults
from lissom.rewrite.ops.vocabulary import Vocabulary
from lissom.rewrite.proving.prove import Explored, explore
from lissom.rewrite.proving.subject import Subject

from .lying import Lying, Where
from .support import library

FOLD = "pipeline p { stage fold { fixpoint { fold_bn } } }"


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    """Two convolutions with norms that cannot be left out."""
    torch.manual_seed(3)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)]
    model = nn.Sequential(*layers, nn.BatchNorm2d(4)).eval()
    for norm in (model[1], model[4]):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return model.to(dtype)


def images(size: int = 12) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def compiled(size: int = 12, dtype: torch.dtype = torch.float32) -> lissom.Result:
    return lissom.compile(network(dtype), FOLD, inputs=(images(size).to(dtype),))


def left(result: lissom.Result) -> dict[str, str]:
    """Sites that were left for a kernel, with what is said of it."""
    return {e.site: e.reason for e in result.journal.of(Refused) if e.code == "V109"}


# -- one op ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_is_no_fault(dtype: torch.dtype) -> None:
    """Nor is what overflows, or what a narrow type cannot tell apart."""
    torch.manual_seed(0)
    model, x = network(dtype), images(20).to(dtype)
    wide = nn.Linear(512, 16).to(dtype)
    with Twins() as twins, torch.no_grad():
        y = model(x)
        torch.softmax(y, 1), torch.layer_norm(y, y.shape[1:]), y.exp().log1p(), y.mean((2, 3))
        wide(torch.randn(4, 512).to(dtype)), (3e4 * y) * 3e4, y - y * 1.01, y.clone().add_(y)
        torch.empty(3, 3, dtype=dtype), torch.rand(3, dtype=dtype), y.argmax(1)
    assert twins.faults == {}


def test_a_fault_names_op_settings_precision_and_processor() -> None:
    conv = nn.Conv2d(3, 8, (3, 1), stride=(2, 1)).bfloat16()
    with torch.no_grad(), Lying("convolution", torch.bfloat16), Twins() as twins:
        sound = conv(images().bfloat16())
    (fault,) = twins.faults.values()
    assert (fault.op, fault.dtype, fault.changes) == ("conv2d", "bfloat16", False)
    assert "[2, 3, 12, 12], [8, 3, 3, 1], [8], stride=[2, 1]" in fault.text
    assert f"on this CPU ({processor_name()})" in fault.text
    assert 0.5 < fault.off < 2
    exact = conv.double()(images().bfloat16().double())
    assert torch.allclose(sound.double(), exact, atol=0.05)


def test_a_kernel_that_changes_from_run_to_run_is_found_though_it_is_right_at_first() -> None:
    conv = nn.Conv2d(3, 8, 3)
    with torch.no_grad(), Lying("convolution", torch.float32, changing=True), Twins() as twins:
        conv(images())
    (fault,) = twins.faults.values()
    assert fault.changes
    assert "and changes from run to run" in fault.short


def test_what_differs_for_other_reasons_is_not_owed_to_a_kernel() -> None:
    x = images()
    same = kernel_faults(lambda: torch.equal(torch.relu(x), torch.relu(2 * x)))
    assert same == ()
    conv = nn.Conv2d(3, 8, 3)
    with torch.no_grad(), Lying("convolution", torch.float32):
        assert kernel_faults(lambda: torch.equal(conv(x), conv(2 * x))) == ()


# -- compile ---------------------------------------------------------------------------------------


def test_without_a_fault_everything_is_folded() -> None:
    result = compiled()
    assert (len(result.applied), left(result)) == (2, {})
    assert result.certificate["kernels"] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_site_with_a_wrong_kernel_is_left(dtype: torch.dtype) -> None:
    with Lying("convolution", dtype, lambda args, y: args[1].shape[1] == 3):
        result = compiled(dtype=dtype)
    assert [event.site for event in result.applied] == ["3"]
    said = left(result)
    assert list(said) == ["0"]
    name = str(dtype).removeprefix("torch.")
    assert f"kernel of conv2d in {name} differs from its float64 by " in said["0"]
    (written,) = result.certificate["kernels"]
    assert (written["site"], written["code"], written["reason"]) == ("0", "V109", said["0"])


def test_a_kernel_that_is_wrong_at_the_size_of_the_example_only() -> None:
    """Small probes do not show it: the stage is run again without the sites that it computes."""
    with Lying("convolution", torch.float32, lambda args, y: y.shape[2:] == (22, 22)):
        result = compiled(24)
    assert [event.site for event in result.applied] == ["3"]
    assert list(left(result)) == ["0"]


def test_a_wrong_kernel_elsewhere_says_nothing_of_rules() -> None:
    seen: list[Tensor] = []

    def first(args: tuple[Any, ...], y: Tensor) -> bool:
        """For the numbers of the model as it was, to the bit."""
        seen.append(args[0].clone())
        return torch.equal(args[0], seen[0])

    with Lying("_softmax", torch.float32, first):
        model = nn.Sequential(network(), nn.Softmax(1)).eval()
        result = lissom.compile(model, FOLD, inputs=(images(),))
    assert len(result.applied) == 2
    assert left(result) == {}
    (end,) = result.journal.of(StageEnd)
    (said,) = [verdict.detail for verdict in end.verdicts if verdict.claim == EQUALITY]
    assert said.startswith("with float64 in its place they agree: kernel of softmax in float32")


def test_a_wrong_kernel_does_not_pass_for_rounding() -> None:
    """A fault as large as the result would allow any difference."""
    before, after = network(), network()
    with torch.no_grad():
        after[4].weight.mul_(1.4)
    with Lying("convolution", torch.float32):
        assert not model_equality(before, after, (images(),), 5).holds


def test_a_wrong_kernel_is_no_damage_of_an_artifact(tmp_path: Path) -> None:
    """Its outputs are those of a fresh process in which the kernel is right."""
    result, out = compiled(), tmp_path / "out"
    with Lying("convolution", torch.float32, changing=True):
        _, (reloaded,) = save_compiled(result.compiled, out)
    assert reloaded.holds
    assert "kernel of conv2d in float32 differs from its float64" in reloaded.detail
    assert all(verdict.holds for verdict in verify_artifact(out)[1])
    with Lying("convolution", torch.float32):
        *_, again = verify_artifact(out)[1]
    assert again.holds
    assert "with float64 in its place they agree: kernel of conv2d" in again.detail


def test_a_wrong_kernel_excuses_no_other_difference(tmp_path: Path) -> None:
    out = compiled().save(tmp_path / "out", check_reload=False)
    found = verify_artifact(out)[0]
    written = json.loads(found.documents["certificate.json"])
    probes = read_probe(found.documents["probe.safetensors"], len(written["examples"]))
    moved = [(inputs, [1.01 * value for value in outputs]) for inputs, outputs in probes]
    with Lying("convolution", torch.float32):
        *_, verdict = recheck(found.module, written, "", moved)
    assert not verdict.holds


# -- lissom test -----------------------------------------------------------------------------------


def explored(where: Where | None, text: str | None = None) -> Explored:
    source = parse(text or library("fold")).all(t.Rule)
    (rule,) = [r for r in source if r.name.text == "fold_bn"]
    with Lying("convolution", torch.bfloat16, where):
        return explore(Subject(rule, Vocabulary.library(), FUNCTIONS), 60)


def odd(args: tuple[Any, ...], y: Tensor) -> bool:
    return y.dim() == 4 and y.shape[1] > 1


def test_a_wrong_kernel_is_counted_and_no_failure_of_the_rule() -> None:
    found = explored(odd)
    assert found.failure is None
    assert len(found.faults) >= 1
    assert {fault.kernel for fault in found.faults} == {"conv2d in bfloat16"}
    assert explored(lambda args, y: False).faults == []


def test_a_wrong_rule_fails_beside_a_wrong_kernel() -> None:
    text = library("fold").replace("(c.bias or 0) * g + b", "b")
    found = explored(odd, text)
    assert found.failure is not None
