"""What a feature counts: scores of weights, norms, activations and gradients, seen from rules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.journal import Applied, Refused, StageEnd
from lissom.rewrite.measure import gradients as slopes
from lissom.rewrite.measure.latency import Latency
from lissom.rewrite.pipeline import budgets
from lissom.rewrite.targets import check

from .support import library

PRUNE = library("prune")
SCORE = "l1_over(writers(D))"
DATA = 'data calib = sample("train", all); budget drift(outputs) <= 1000000%;'


class Net(nn.Module):
    """3 -> 8 -> 6 -> 4: a convolution with a norm, a hidden layer behind the mean of its pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.hidden, self.head = nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return self.head(torch.relu(self.hidden(x.mean((2, 3)))))


def net() -> Net:
    torch.manual_seed(0)
    return Net().double().eval()


def data(split: str) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, 3, 5, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(4, (12,), generator=generator)
    return list(zip(x.split(8), y.split(8), strict=True))


def pruned(score: str, model: nn.Module, at: str = "hidden", **options: Any) -> Any:
    """A quarter of one dimension removed, the least by a score."""
    rule = PRUNE.replace(SCORE, score)
    step = f'once prune_l1(ratio = 25%) at "{at}"'
    inputs = (data("train")[0][0][:2],)
    given = {"inputs": inputs, "data": data, **options}
    return lissom.compile(model, f"{rule} pipeline p {{ {DATA} stage s {{ {step} }} }}", **given)


def kept(result: Any, layer: str, old: nn.Module) -> list[int]:
    """Which rows of a layer are left."""
    new, was = result.model.get_submodule(layer).weight, old.get_submodule(layer).weight
    return [i for i, row in enumerate(was) if any(torch.equal(row, other) for other in new)]


def best(scores: Tensor, count: int) -> list[int]:
    return sorted(scores.argsort(descending=True)[:count].tolist())


def activations(model: Net) -> Tensor:
    """What the head reads of the hidden layer, [samples, features]."""
    x = torch.cat([x for x, _ in data("train")])
    pooled = torch.relu(model.norm(model.conv(x))).mean((2, 3))
    return torch.relu(model.hidden(pooled)).detach()


def sample_gradients(model: Net) -> Tensor:
    """The gradient of the hidden layer's weight and bias for each sample, [samples, 6, 9]."""
    found = []
    images, labels = (torch.cat(parts) for parts in zip(*data("train"), strict=True))
    for x, y in zip(images.split(1), labels.split(1), strict=True):
        loss = nn.functional.cross_entropy(model(x), y)
        weight, bias = torch.autograd.grad(loss, [model.hidden.weight, model.hidden.bias])
        found.append(torch.cat([weight, bias[:, None]], 1))
    return torch.stack(found)


def hidden_numbers(model: Net) -> Tensor:
    return torch.cat([model.hidden.weight, model.hidden.bias[:, None]], 1).detach()


def expected(name: str, model: Net) -> Tensor:
    if name == "activity":
        return (activations(model) != 0).double().mean(0)
    if name == "mean":
        return activations(model).mean(0)
    slopes, numbers = sample_gradients(model), hidden_numbers(model)
    if name == "taylor":
        return (slopes.mean(0) * numbers).sum(1).square()
    return (slopes.square().mean(0) * numbers.square()).sum(1)


RULES = {
    "activity": "activity_over(activations(D))",
    "mean": "mean_over(activations(D))",
    "taylor": "taylor_over(writers(D), gradients(writers(D)))",
    "hessian": "hessian_over(writers(D), fisher(writers(D)))",
}


@pytest.mark.parametrize("name", RULES)
def test_scores_of_data_are_what_their_papers_say(name: str) -> None:
    """Recomputed by hand, sample by sample; what the L1 norm would keep is something else."""
    model = net()
    with torch.no_grad():  # so that every score orders the features, and in its own way
        model.hidden.weight.mul_(torch.linspace(2.0, 0.5, 6, dtype=torch.float64)[:, None])
        model.hidden.bias += torch.linspace(-0.3, 0.3, 6, dtype=torch.float64)
    scores = expected(name, model)
    keep = best(scores, 5)
    assert kept(pruned(RULES[name], model), "hidden", model) == keep
    assert keep != kept(pruned(SCORE, model), "hidden", model)


def test_the_scale_of_a_norm_is_a_score() -> None:
    """Network slimming; a dimension that no norm scales has none."""
    model = net()
    with torch.no_grad():
        model.norm.weight[:] = torch.tensor([5, 4, -6, 0.1, 3, 2, 0.2, 1])
    result = pruned("l1_over(scales(D))", model, at="conv")
    assert kept(result, "conv", model) == [0, 1, 2, 4, 5, 7]
    scaled = 'known(scales(D))  else "no norm scales it"'
    guarded = PRUNE.replace('sliceable(D)  else "{blocker(D)}"', scaled)
    rule = guarded.replace(SCORE, "l1_over(scales(D))")
    text = f"{rule} pipeline p {{ {DATA} stage s {{ once prune_l1(ratio = 25%) }} }}"
    result = lissom.compile(model, text, inputs=(data("train")[0][0][:2],), data=data)
    assert [event.site for event in result.journal.of(Applied)] == ["conv"]
    assert "no norm scales it" in {event.reason for event in result.journal.of(Refused)}


def test_a_loss_of_ones_own() -> None:
    """Only the first logit counts, which does not read the largest feature."""
    model = net()
    with torch.no_grad():
        model.head.weight[0] = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 1.0])
        model.hidden.bias.fill_(5.0)
        model.hidden.weight[2] = 7.0

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs[:, 0].mean()

    assert kept(pruned(RULES["taylor"], model, loss=loss), "hidden", model) == [0, 1, 3, 4, 5]
    assert kept(pruned(SCORE, model), "hidden", model) != [0, 1, 3, 4, 5]


def test_gradients_need_data_and_a_loss() -> None:
    with pytest.raises(LissomError, match="D002"):
        pruned(RULES["taylor"], net(), data=None)

    def texts(split: str) -> list[tuple[Tensor, Any]]:
        return [(x, ["cat"] * len(x)) for x, _ in data(split)]

    with pytest.raises(LissomError, match="D006"):
        pruned(RULES["taylor"], net(), data=texts)

    def broken(outputs: Tensor, targets: Tensor) -> Tensor:
        raise ValueError("three")

    with pytest.raises(LissomError, match=r"D006[\s\S]*ValueError: three"):
        pruned(RULES["taylor"], net(), loss=broken)


def test_no_gradient_stays_in_the_model() -> None:
    model = net()
    pruned(RULES["hessian"], model)
    assert all(parameter.grad is None for parameter in model.parameters())


# -- all dimensions at once ------------------------------------------------------------------------


def everywhere(ratio: str, model: nn.Module, score: str = SCORE) -> dict[str, str]:
    rule = library("slim").replace(SCORE, score)
    step = f"once prune_global(ratio = {ratio}, least = 10%)"
    text = f"{rule} pipeline p {{ {DATA} stage s {{ {step} }} }}"
    result = lissom.compile(model, text, inputs=(data("train")[0][0][:2],), data=data)
    return {event.site: event.bindings["D"] for event in result.journal.of(Applied)}


def test_a_global_ratio_takes_most_where_least_is_lost() -> None:
    model = net()
    with torch.no_grad():
        model.conv.weight[:6], model.conv.bias[:6] = 1e-6, 0.0
        model.hidden.weight.fill_(1.0)
    assert everywhere("43%", model) == {"conv": "8 -> 2"}  # 6 of 14


def test_of_each_dimension_a_least_share_stays() -> None:
    model = net()
    cuts = everywhere("100%", model)
    assert cuts == {"conv": "8 -> 1", "hidden": "6 -> 1"}


def test_the_ranks_are_those_of_the_beginning() -> None:
    """Once the first dimension is cut, the features that read it have other norms; the share was
    taken of all dimensions before.
    """
    model = net()
    with torch.no_grad():
        model.conv.weight[:4], model.conv.bias[:4] = 1e-9, 0.0
        model.hidden.weight[:3, :4], model.hidden.weight[3:, :4] = 100.0, 0.0
    assert everywhere("50%", model) == {"conv": "8 -> 4", "hidden": "6 -> 3"}


# -- measured time ---------------------------------------------------------------------------------


def timed(monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float]) -> None:
    """Every model takes the time that is given for its number of hidden features."""

    def measure(before: nn.Module, after: nn.Module, args: Any, **_: Any) -> Latency:
        times = [seconds[model.get_submodule("hidden").out_features] for model in (before, after)]
        return Latency(*times, (0.0, 0.0), 5, 2, 1)

    for module in (budgets, check):
        monkeypatch.setattr(module, "measure_latency", measure)


def cut_to(text: str) -> tuple[Any, int]:
    result = lissom.compile(net(), text, inputs=(data("train")[0][0][:2],), data=data)
    return result, result.model.get_submodule("hidden").out_features


@pytest.mark.parametrize(("target", "left"), [("70%", 4), ("2.5", 3), ("3.1", 5)])
def test_until_a_latency_is_reached(
    target: str, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A share is one of the original model's, a number is milliseconds."""
    timed(monkeypatch, {6: 4e-3, 5: 3e-3, 4: 2.6e-3, 3: 2e-3, 2: 1e-3})
    one_less = PRUNE.replace("round_up((1 - ratio) * D, multiple)", "D - multiple")
    step = f'each prune_l1 at "hidden" until latency(model) <= {target}; '
    _, found = cut_to(f"{one_less} pipeline p {{ {DATA} stage s {{ {4 * step} }} }}")
    assert found == left


@pytest.mark.parametrize("stands", [True, False])
def test_a_cut_that_saves_no_time_is_refused(stands: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """`latency(after) < latency(before)` in a rule; the verdict says how it was measured."""
    timed(monkeypatch, {6: 4e-3, 5: 3e-3 if stands else 5e-3})
    claim = "params(after) < params(before)"
    rule = PRUNE.replace(claim, f"{claim}; latency(after) < latency(before)")
    step = 'once prune_l1(ratio = 25%) at "hidden"'
    result, found = cut_to(f"{rule} pipeline p {{ {DATA} stage s {{ {step} }} }}")
    assert found == (5 if stands else 6)
    if not stands:
        reasons = [event.reason for event in result.journal.of(Refused)]
        assert reasons == ["`latency(after) < latency(before)` does not hold: 5 against 4"]


def test_a_budget_in_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slower model is taken back, and the verdict says on what it was timed."""
    timed(monkeypatch, {6: 4e-3, 5: 5e-3})
    budget = "budget latency(model) <= 4.5; budget drift(outputs) <= 1000000%;"
    stage = 'stage s { once prune_l1(ratio = 25%) at "hidden" }'
    result, found = cut_to(f"{PRUNE} pipeline p {{ {budget} {stage} }}")
    assert found == 6
    (end,) = result.journal.of(StageEnd)
    assert not end.kept
    assert "5 against 4.5; median of 5" in end.reason
    assert "1 thread, torch eager, batch 2" in end.reason


def test_an_op_alone_has_no_latency() -> None:
    rule = """
    exact rule drop { match { y = dropout(x) } rewrite { y = x }
      ensure { latency(after) < latency(before) } }"""
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout()).eval()
    with pytest.raises(LissomError, match="there is no whole model to time here"):
        lissom.compile(model, rule, inputs=(torch.randn(2, 3),))


def test_latency_is_measured() -> None:
    """With a real clock: a hidden layer of 2,000 features against one of 20."""
    model = nn.Sequential(nn.Linear(500, 2000), nn.ReLU(), nn.Linear(2000, 8)).eval()
    budget = "budget latency(model) <= 60%; budget drift(outputs) <= 1000000%;"
    stage = "stage s { once prune_l1(ratio = 99%) }"
    text = f"{PRUNE} pipeline p {{ {budget} {stage} }}"
    result = lissom.compile(model, text, inputs=(torch.randn(64, 500),))
    assert result.model.get_submodule("0").out_features == 20


class Hidden(nn.Module):
    """3 -> 6 -> 4, on the mean of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(3, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(x.mean((2, 3)))))


def test_a_loss_that_looks_at_numbers_is_run_sample_by_sample(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch cannot vectorise `if loss > 0`: the same features stay."""
    torch.manual_seed(0)
    model = Hidden().double().eval()

    def looking(outputs: Tensor, targets: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(outputs, targets)
        return loss if float(loss.detach()) > -1 else -loss

    one_by_one, alone = slopes._squares_apart, []
    monkeypatch.setattr(slopes, "_squares_apart", lambda *a: alone.append(a) or one_by_one(*a))
    fast = pruned(RULES["hessian"], model)
    assert alone == []
    slow = pruned(RULES["hessian"], model, loss=looking)
    assert len(alone) == 2
    assert kept(fast, "hidden", model) == kept(slow, "hidden", model)


def test_gradients_are_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few samples at a time, where their gradients would not fit together."""
    model = net()
    whole = slopes_of(model)
    monkeypatch.setattr(slopes, "TOGETHER", 1)
    alone = slopes_of(model)
    monkeypatch.setattr(slopes, "_squares_together", lambda *_: (_ for _ in ()).throw(TypeError()))
    apart = slopes_of(model)
    for one, two, three in zip(whole, alone, apart, strict=True):
        torch.testing.assert_close(one, two)
        torch.testing.assert_close(one, three)


def slopes_of(model: Net) -> list[Tensor]:
    graph = torch.fx.symbolic_trace(model)
    found = slopes.slopes(
        graph, [((x,), y) for x, y in data("train")], slopes.loss_of_task, squared=True
    )
    return [found[id(parameter)] for parameter in graph.parameters()]
