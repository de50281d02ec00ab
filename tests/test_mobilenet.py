"""Blocks of MobileNet: what is built, what it starts as, what it costs; that it learns again."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

import lissom
from lissom.demo import model as digits
from lissom.grammar.diagnostics import LissomError
from lissom.passes.mobilenet import output_moments, outputs_svd, pointwise_fit
from lissom.rewrite.journal import Refused, VerdictKind

from .learning import DATA, ends, epochs, run

pytestmark = pytest.mark.usefixtures("one_thread")

LATER = "recover later { epochs = 0 }"


def blocks(widths: tuple[int, ...], norms: bool = True, stride: int = 1) -> nn.Sequential:
    """3x3 convolutions, the first one without a stride, then the mean over all positions."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for at, (inputs, outputs) in enumerate(pairwise(widths)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride if at else 1, 1, bias=not norms)]
        layers += [nn.BatchNorm2d(outputs), nn.ReLU()] if norms else [nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10)]
    return nn.Sequential(*layers).eval()


class Residual(nn.Module):
    """A basic block of a ResNet: with another width or a stride, a 1x1 convolution goes around."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.b = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.n, self.m = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        around = nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        self.around = nn.Sequential(*(around if inputs != outputs or stride > 1 else ()))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.m(self.b(torch.relu(self.n(self.a(x)))))
        return torch.relu(inner + self.around(x))


def residuals() -> nn.Sequential:
    torch.manual_seed(0)
    stem = nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()
    tail = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10)
    return nn.Sequential(*stem, Residual(32, 32, 1), Residual(32, 48, 2), *tail).eval()


@cache
def trained(kind: str) -> nn.Module:
    model = {"plain": lambda: blocks((1, 16, 48, 64), stride=2), "residual": residuals}[kind]()
    settings = "epochs = 6; batch = 50; optimizer = AdamW(lr = 0.005); schedule = cosine()"
    return run(f"recover dense {{ {settings} }}", model).model.eval()


def compiled(body: str, model: nn.Module, x: Tensor) -> lissom.Result:
    program = f"pipeline p {{ {DATA} {body} }}"
    return lissom.compile(model, program, inputs=(x,), data=[(x, model(x).detach())])


def steps(model: nn.Module) -> list[str]:
    """The layers of a result in order, convolutions with what tells them apart."""
    assert isinstance(model, fx.GraphModule)
    found = []
    for node in model.graph.nodes:
        layer = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, nn.Conv2d):
            depthwise = layer.groups == layer.in_channels > 1
            kind = "depthwise" if depthwise else f"{layer.kernel_size[0]}x{layer.kernel_size[1]}"
            found.append(f"{kind} {layer.in_channels}->{layer.out_channels}")
        elif node.op not in ("placeholder", "output"):
            name = type(layer).__name__ if layer is not None else node.target.__name__
            found.append(name)
    return found


def errors(result: lissom.Result) -> list[float]:
    """How far each rewrite moved its site."""
    kind = VerdictKind.ERROR
    return [v.worst or 0.0 for e in result.applied for v in e.verdicts if v.kind is kind]


# -- what is built ---------------------------------------------------------------------------------


@pytest.mark.parametrize("norms", [True, False])
def test_a_convolution_becomes_a_separable_block(norms: bool) -> None:
    model = blocks((1, 16, 24), norms)
    result = run(f"stage s {{ once separable_block, clip_relu }} {LATER}", model)
    block = ["depthwise 16->16", "BatchNorm2d", "ReLU6", "1x1 16->24", "BatchNorm2d", "ReLU6"]
    found = [{"hardtanh": "ReLU6"}.get(name, name) for name in steps(result.model)]
    first = ["3x3 1->16", "BatchNorm2d", "ReLU6"] if norms else ["3x3 1->16", "ReLU6"]
    assert found[: len(first) + 6] == [*first, *block]
    (x,) = digits.inputs()
    assert result.model(x).shape == model(x).shape


def test_a_residual_branch_becomes_an_inverted_bottleneck() -> None:
    result = run(f"stage s {{ once inverted_residual(t = 3) }} {LATER}", trained("residual"))
    convolutions = [name for name in steps(result.model) if "->" in name]
    assert convolutions == [
        "3x3 1->32",
        "1x1 32->96", "depthwise 96->96", "1x1 96->32",
        "1x1 32->48", "1x1 32->96", "depthwise 96->96", "1x1 96->48",
    ]  # fmt: skip
    (x,) = digits.inputs()
    assert result.model(x).shape == (len(x), 10)


# -- what it starts as -----------------------------------------------------------------------------


def test_a_block_starts_nearer_than_the_separable_convolution_that_weights_alone_give() -> None:
    model = trained("plain")
    block = run(f"stage s {{ once separable_block }} {LATER}", model)
    plain = run("stage s { once separable_conv(budget = 100%) }", model)
    assert len(errors(block)) == len(errors(plain)) == 2
    assert errors(block)[0] < 0.8 * errors(plain)[0]


def test_norms_start_with_the_statistics_of_the_data() -> None:
    """So that training, which normalises by the batch, begins where the block was built."""
    result = run(f"stage s {{ once separable_block }} {LATER}", trained("plain"))
    x = torch.cat([x for x, _ in digits.data("train")])[:64]
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for name, layer in result.model.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(
                lambda module, args, name=name: seen.update({name: (module.running_mean, args[0])})
            )
    result.model(x)
    first = next(name for name in steps(result.model) if "depthwise" in name)
    assert first == "depthwise 16->16"
    gaps = [
        (mean - h.mean((0, 2, 3))).abs().max() / h.std() for mean, h in list(seen.values())[1:3]
    ]
    assert max(gaps) < 0.05


def test_no_other_mix_of_filters_is_nearer() -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(5, 4, 3, 3, generator=generator).double()
    dw = torch.randn(4, 1, 3, 3, generator=generator).double()
    u = (
        torch.randn(500, 36, generator=generator).double()
        @ torch.randn(36, 36, generator=generator).double()
        + 1
    )
    moments, mean = u.T @ u / 500, u.mean(0)[None]
    z = torch.einsum("nik,ik->ni", u.reshape(500, 4, 9), dw.reshape(4, 9))
    ones = torch.cat([z, torch.ones(500, 1).double()], 1)
    best = torch.linalg.lstsq(ones, u @ w.flatten(1).T).solution[:4].T
    assert torch.allclose(
        pointwise_fit(w, dw, moments, mean)[:, :, 0, 0], best, rtol=1e-3, atol=1e-4
    )
    middle, variance = output_moments(dw, moments, mean)
    assert torch.allclose(middle, z.mean(0))
    assert torch.allclose(variance, z.var(0, correction=0))


def test_all_components_of_a_filter_add_up_to_it() -> None:
    w = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    mixes, filters = outputs_svd(w, 6)
    parts = (mixes * filters).reshape(2, 3, 2, 3, 3)
    assert torch.allclose(parts.sum(0), w, atol=1e-5)
    assert parts[0].norm() > parts[1].norm()
    with pytest.raises(LissomError, match="K001"):
        outputs_svd(w, 7)


# -- what it costs ---------------------------------------------------------------------------------


def counted(model: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("rule", ["separable_block", "inverted_residual(t = 2)"])
@pytest.mark.parametrize(("alpha", "rho"), [("100%", "100%"), ("75%", "50%")])
def test_what_a_block_costs_is_known_without_running_it(rule: str, alpha: str, rho: str) -> None:
    """With thinner layers (alpha) and on smaller images (rho), before it and behind it."""
    model = blocks((1, 24, 32, 48), stride=2) if rule == "separable_block" else residuals()
    slim = f"stage a {{ once width(alpha = {alpha}) }} stage r {{ once resolution(rho = {rho}) }}"
    block = f"stage b {{ once {rule} }}"
    (x,) = digits.inputs()
    budget = "budget drift(outputs) <= 10000%"
    found = [run(f"{budget}\n{b} {LATER}", model) for b in (block + slim, slim + block)]
    for result in found:
        assert sum(event.rule.startswith(rule[:9]) for event in result.applied) == 2
        assert result.after.macs == counted(result.model, x)
        assert result.after.params == sum(p.numel() for p in result.model.parameters())
    if rule == "separable_block":  # how wide a bottleneck is hangs on what was there before
        assert found[0].after == found[1].after


@pytest.mark.parametrize("size", [8, 15])
def test_the_cost_of_a_separable_block_is_that_of_the_paper(size: int) -> None:
    """Section 3.1: 1 / outputs + 1 / taps of what it was."""
    model = nn.Sequential(nn.Conv2d(16, 40, 5, padding=2), nn.ReLU()).eval()
    x = torch.randn(2, 16, size, size)
    result = compiled(f"stage s {{ once separable_block }} {LATER}", model, x)
    assert result.before.macs == counted(model, x)
    assert result.after.macs == counted(result.model, x)
    assert result.after.macs == result.before.macs * (1 / 40 + 1 / 25)


# -- where it must not -----------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["separable_block", "inverted_residual"])
def test_a_block_that_nothing_trains_is_an_error(rule: str) -> None:
    with pytest.raises(LissomError) as caught:
        run(f"stage s {{ once {rule} }}", residuals())
    (found,) = caught.value.diagnostics
    assert found.code == "F001"
    assert "needs a `recover`" in found.message


@pytest.mark.parametrize(
    ("body", "layers", "reason"),
    [
        ("separable_block", (nn.Conv2d(16, 24, 1),), "already pointwise"),
        ("separable_block", (nn.Conv2d(16, 24, 3, groups=2),), "groups"),
        ("separable_block", (nn.Conv2d(8, 24, 3),), "only 8->24 channels"),
        ("inverted_residual(t = 9)", (Residual(16, 16, 1),), "multiplies more"),
        ("inverted_residual(t = 2)", (Residual(16, 48, 1),), "do not hold the filters"),
    ],
)
def test_what_is_left_has_a_reason(body: str, layers: Any, reason: str) -> None:
    model = nn.Sequential(*layers).eval()
    first = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    x = torch.randn(2, first.in_channels, 6, 6)
    found = compiled(f"stage s {{ once {body} }} {LATER}", model, x)
    assert found.applied == []
    assert reason in found.journal.of(Refused)[0].reason


# -- what comes of it ------------------------------------------------------------------------------


def test_distillation_brings_accuracy_back_sooner_than_a_new_start() -> None:
    settings = "epochs = 3; batch = 50; optimizer = AdamW(lr = 0.003); schedule = cosine()"
    result = run(
        f"""
  stage s {{ once separable_block, clip_relu }}
  control anew {{ rewind drawn(seed = 1); recover tune {{ {settings} }} }}
  recover tune {{ {settings}; teacher = original; loss = kl(temperature = 4) + task() }}
""",
        trained("plain"),
    )
    before = digits.accuracy(trained("plain"), digits.data("valid"))
    anew, tune = (
        [e.metrics["accuracy"] for e in epochs(result, name)] for name in ("tune anew", "tune")
    )
    assert [end.stage for end in ends(result)][-1] == "tune"
    assert anew[0] < 0.3 < 0.7 < tune[0]
    assert max(tune) > max(anew)
    assert max(tune) > before - 0.03
    assert result.after.macs < result.before.macs / 4


def test_an_inverted_residual_learns_again() -> None:
    settings = "epochs = 3; batch = 50; optimizer = AdamW(lr = 0.003); schedule = cosine()"
    teacher = "teacher = original; loss = kl(temperature = 4) + task()"
    body = f"stage s {{ once inverted_residual(t = 2) }} recover tune {{ {settings}; {teacher} }}"
    result = run(body, trained("residual"))
    before = digits.accuracy(trained("residual"), digits.data("valid"))
    assert digits.accuracy(result.model, digits.data("valid")) > before - 0.04
