"""Known silent miscompiles: each case ends equal, within budget, or refused with a reason.

Each case is called by its row in the catalogue, with the public report it comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lissom.grammar.diagnostics import LissomError

from .hard_models import EXACT, X, compiled, conv, norm
from .support import Fn, digests, library, random_norms, run


def test_s01_convolution_with_a_second_call_without_norm() -> None:
    """pytorch/pytorch#104593, #197539."""
    driven = compiled(lambda m, x: m.n(m.c(x)) + m.c(x * 2), c=conv(), n=norm())
    assert driven.applied == 0
    assert any("other calls" in reason for reason in driven.reasons("fold_bn"))


def test_s02_the_same_pair_twice() -> None:
    """H01: pytorch/pytorch#124286: each call folds, and the layer stays one."""
    driven = compiled(lambda m, x: m.n(m.c(m.n(m.c(x)))), c=conv(), n=norm())
    assert driven.applied == 2
    assert driven.ops() == ["conv2d", "conv2d"]
    assert len({node.target for node in driven.module.graph.nodes if node.op == "call_module"}) == 1


def test_s03_one_norm_behind_two_convolutions() -> None:
    """openvinotoolkit/nncf#1284."""
    driven = compiled(lambda m, x: m.n(m.a(x)) + m.n(m.b(x)), a=conv(), b=conv(), n=norm())
    assert driven.sites("fold_bn") == []
    assert "`n.running_var` is also used by n" in driven.reasons("fold_bn")


def test_s04_linear_then_norm_over_another_axis() -> None:
    """H09: pytorch/ao#4116: features last, batch norm reads axis 1, and both have 5 entries."""
    parts = {"c": nn.Linear(7, 5), "n": nn.BatchNorm1d(5)}
    driven = compiled(lambda m, x: m.n(m.c(x)), torch.randn(3, 5, 7), **parts)
    assert driven.applied == 0
    assert any("axes" in reason for reason in driven.reasons("fold_bn_linear"))
    assert compiled(lambda m, x: m.n(m.c(x)), torch.randn(3, 7), **parts).sites(
        "fold_bn_linear"
    ) == ["c"]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_s05_transposed_convolution(groups: int) -> None:
    """H08: ultralytics#25364, pytorch/pytorch#180995: square weights hide a wrong axis."""
    layer = nn.ConvTranspose2d(8, 8, 3, stride=2, groups=groups)
    assert compiled(lambda m, x: m.n(m.c(x)), c=layer, n=norm()).sites("fold_bn_transposed") == [
        "c"
    ]


@pytest.mark.parametrize("bias", [True, False])
def test_s06_bias_before_the_norm(bias: bool) -> None:
    """ultralytics/yolov3#807."""
    assert compiled(lambda m, x: m.n(m.c(x)), c=conv(bias=bias), n=norm()).sites() == ["c"]


def test_s07_settings_are_kept() -> None:
    """pytorch/ao#4107: eps, bounds and momentum must not fall back to defaults."""
    strange = nn.BatchNorm2d(8, eps=0.7, momentum=None)
    assert compiled(lambda m, x: m.n(m.c(x)), c=conv(), n=strange).sites() == ["c"]
    bounds = compiled(lambda m, x: F.hardtanh(F.hardtanh(x * 9, -3.0, 6.0), -1.0, 4.0))
    assert bounds.sites("merge_clamps")


def test_s07_what_is_moved_keeps_its_settings() -> None:
    """pytorch/ao#2980: a norm behind a pool, a pool that rounds up."""
    strange = nn.BatchNorm2d(8, eps=0.7, momentum=0.3)
    pool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
    model = random_norms(Fn(lambda m, x: m.d(m.p(m.n(x))), p=pool, n=strange, d=nn.Dropout(0.2)))
    model.n.weight.data.abs_()
    driven = run(model, X, library("fold")).check()
    assert driven.sites("sink_bn") == ["n"]
    (moved,) = (m for m in driven.module.modules() if isinstance(m, nn.BatchNorm2d))
    (drop,) = (m for m in driven.module.modules() if isinstance(m, nn.Dropout))
    assert (moved.eps, moved.momentum, drop.p) == (0.7, 0.3, 0.2)


def test_s08_in_place_ops_whose_result_nobody_reads() -> None:
    """pytorch/pytorch#68301."""

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        a = m.i(x + 1)
        a.mul_(2)
        F.relu_(a)
        m.r(a)
        return m.n(m.c(a))

    parts = {"i": nn.Identity(), "r": nn.ReLU(inplace=True), "c": conv(), "n": norm()}
    assert compiled(forward, **parts).sites("fold_bn") == ["c"]


def test_s09_a_value_that_is_overwritten_between_matched_ops() -> None:
    """pytorch/pytorch#174187."""

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        a = x + 1
        b = a.neg()
        a.add_(5)
        return b.neg() + a

    assert compiled(forward).sites("drop_double_neg") == []
    assert compiled(lambda m, x: (x + 1).neg().neg()).sites("drop_double_neg")


def test_s10_adjacent_matches() -> None:
    """pytorch/pytorch#159613."""
    driven = compiled(
        lambda m, x: m.d(m.b(m.a(x))),
        a=conv(8, 8, 1, padding=0),
        b=conv(8, 8, 1, padding=0),
        d=conv(8, 8, 1, padding=0),
    )
    assert driven.ops() == ["conv2d"]


def test_s10_a_concatenation_of_concatenations() -> None:
    """pytorch/pytorch#98974: the second rewrite must see what the first one left."""
    flat = """exact rule flatten_cat {
      match {
        h = cat(xs..., dim = 1)
        y = cat(h, z, dim = 1)
      }
      rewrite { y = cat(xs, z, dim = 1) }
      ensure { ops(after) < ops(before) }
    }"""

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        inner = torch.cat([torch.cat([x, x + 1], 1), x * 2], 1)
        return torch.cat([inner, x - 3], 1)

    driven = compiled(forward, rules=flat)
    assert driven.applied == 2
    assert driven.ops().count("cat") == 1
    assert driven.difference() == 0


def test_s11_dropout_in_training_mode_stays() -> None:
    """pytorch/pytorch#68190, #103681."""
    driven = compiled(lambda m, x: F.dropout(x, 0.5, training=False) + m.d(x), d=nn.Dropout())
    assert len(driven.sites("drop_dropout")) == 2


def test_s11_a_branch_on_training_is_that_of_eval() -> None:
    """H06: traced in eval only: what is baked in is what inference does."""
    model = Fn(lambda m, x: m.n(m.c(x)) * (3 if m.training else 2), c=conv(), n=norm())
    driven = run(random_norms(model), X, EXACT).check()
    assert driven.sites("fold_bn") == ["c"]
    assert driven.difference() < 1e-5
    with pytest.raises(LissomError, match="M001"):
        run(model.train(), X, EXACT)


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_s14_padding_mode(mode: str) -> None:
    """H08."""
    driven = compiled(lambda m, x: m.n(m.c(x)), c=conv(padding_mode=mode), n=norm())
    assert driven.difference() < 1e-5
    assert driven.applied == 0


def test_s13_shift_before_zero_padding() -> None:
    """H22: a norm before a padded convolution cannot go into it: the border lacks the shift."""
    driven = compiled(lambda m, x: m.c(m.n(x)), c=conv(), n=norm())
    assert driven.applied == 0
    assert any("zero padding" in reason for reason in driven.reasons("absorb_bn"))
    assert compiled(lambda m, x: m.c(m.n(x)), c=conv(padding=0), n=norm()).sites() == ["n"]


def test_s13_inner_bias_meets_padding() -> None:
    """Merging 1x1 into a padded convolution is right only without an inner bias."""
    parts = {"a": conv(8, 32, 1, padding=0), "b": conv(32, 8, 3)}
    driven = compiled(lambda m, x: m.b(m.a(x)), **parts)
    assert driven.sites("merge_pointwise_conv") == []
    parts["a"] = conv(8, 32, 1, padding=0, bias=False)
    assert compiled(lambda m, x: m.b(m.a(x)), **parts).sites("merge_pointwise_conv") == ["a"]


def test_s16_a_written_out_layer_norm_whose_gain_only_broadcasts() -> None:
    """microsoft/onnxruntime#25855, #31980."""

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        apart = x - x.mean((1, 2, 3), keepdim=True)
        return apart / (apart.pow(2).mean((1, 2, 3), keepdim=True) + 1e-5).sqrt() * m.g

    driven = compiled(forward, g=nn.Parameter(torch.rand(8, 1, 1) + 0.5))
    assert driven.applied == 0


def test_s17_casts_there_and_back() -> None:
    """microsoft/onnxruntime#4039."""
    assert compiled(lambda m, x: (x * 3).int().float()).difference() == 0


def test_s18_all_rules_together() -> None:
    """microsoft/onnxruntime#32416: rules that are right alone must be right in any order."""
    parts = {
        "a": conv(8, 16, 3),
        "m": norm(16),
        "b": conv(16, 16, 1, padding=0),
        "n": norm(16),
        "d": conv(16, 8, 1, padding=0),
    }

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(m.d(m.n(m.b(m.m(m.a(x))))), training=False) * 1

    for order in (("tidy", "fold", "merge"), ("merge", "tidy", "fold"), ("fold", "merge", "tidy")):
        driven = compiled(forward, rules=library(*order), **parts)
        assert driven.ops() == ["conv2d"], order


def test_s19_twice_the_same_bytes() -> None:
    """microsoft/onnxruntime#29788."""
    runs = [compiled(lambda m, x: m.n(m.c(x)), c=conv(), n=norm()) for _ in range(2)]
    assert digests(runs[0].module) == digests(runs[1].module)


def test_s21_rounding_is_no_alarm() -> None:
    """onnx/optimizer#255: a fold over 4,608 terms moves outputs by some 1e-6, and is right."""
    torch.manual_seed(1)
    wide = torch.randn(1, 512, 7, 7)
    driven = compiled(lambda m, x: m.n(m.c(x)), wide, c=conv(512, 64, 3), n=norm(64))
    assert driven.sites("fold_bn") == ["c"]
    assert 0 < driven.difference() < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_s22_folding_in_a_short_format_rounds_once(dtype: torch.dtype) -> None:
    """pytorch/pytorch#144888: folding in bfloat16 moved outputs by 0.12 instead of 0.016."""
    torch.manual_seed(0)
    model = random_norms(nn.Sequential(conv(), norm())).to(dtype)
    driven = run(model, X.to(dtype), EXACT)
    assert driven.applied == 1
    driven.module.recompile()
    with torch.no_grad():
        exact = model.double()(X.to(dtype).double())
        folded = driven.module(X.to(dtype)).double()
    assert float((folded - exact).abs().max() / exact.abs().max()) < 2 * torch.finfo(dtype).eps


def test_s23_constants_near_a_billion() -> None:
    """NVIDIA/TensorRT#1609."""
    parts = {"c": conv()}
    driven = compiled(lambda m, x: m.c(x) * 3.0 + 1e9, **parts)
    assert driven.sites("fold_scale") == ["c"]
    assert driven.sites("fold_shift")


def test_s26_hooks() -> None:
    """A hook on a folded layer would vanish with it."""
    hooked = conv()
    hooked.register_forward_hook(lambda module, args, out: out + 1)
    torch.manual_seed(0)
    model = random_norms(Fn(lambda m, x: m.n(m.c(x)), c=hooked, n=norm()))
    driven = run(model, X, EXACT).check()
    assert driven.applied == 0
    assert any("the module c has hooks" in reason for reason in driven.reasons("fold_bn"))


def test_s27_state_that_changes_in_forward() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        m.count += 1
        return m.n(m.c(x)) + m.count

    with pytest.raises(LissomError) as refused:
        compiled(forward, c=conv(), n=norm(), count=torch.zeros(()))
    assert refused.value.diagnostics[0].code == "M003"
    assert "count" in refused.value.diagnostics[0].message


def test_s30_convolution_max_and_clip() -> None:
    """pytorch/pytorch#86556, found by NNSmith."""

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return torch.clamp(torch.maximum(m.n(m.c(x)), x.new_zeros(())), 0, 1.5).clamp(0.5, 6)

    assert compiled(forward, c=conv(), n=norm()).sites("fold_bn") == ["c"]


@pytest.mark.parametrize("function", [lambda m, x: x * 0, lambda m, x: x - x, lambda m, x: x / x])
def test_s31_identities_that_infinities_break(function: Callable[..., Any]) -> None:
    strange = torch.tensor([[1.0, 0.0, float("inf"), float("nan"), -0.0]])
    driven = compiled(function, strange)
    assert driven.applied == 0
    assert driven.difference(strange) == 0
