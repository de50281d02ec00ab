"""Whatever rules made of the weights of a small network, in whatever order, and however it is
trained: their form holds, asked without the engine.
"""

from __future__ import annotations

from collections import Counter

import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lissom

from .learning import notes, trained

X = torch.randn(24, 3, 6, 6, generator=torch.Generator().manual_seed(0))
Y = (X.mean((1, 2, 3)) > 0).long()

PROGRAM = """pipeline p {{
  data train = sample("train", all)
  data calib = sample("train", 8)
  {stages}
  recover tune {{ epochs = 1; batch = 7; {settings} }}
}}"""
RULES = {
    "mask": "once prune_weights(ratio = 40%, budget = 100%)",
    "grid": "once grid_weights(bits = 3, budget = 100%)",
    "signs": "once binary_weights(least = 1)",
    "drawn": "once binary_weights(stochastic = true, least = 1)",
    "factors": "once low_rank_linear(rank = 2, least = 4, budget = 100%)",
}


def network(kind: str, width: int, seed: int) -> nn.Module:
    """Images [N, 3, 6, 6] to two logits."""
    torch.manual_seed(seed)
    if kind == "mlp":
        layers = [nn.Flatten(), nn.Linear(108, width), nn.ReLU(), nn.Linear(width, 2)]
    else:
        first = [nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU()]
        layers = [*first, nn.Flatten(), nn.Linear(4 * width, 2)]
    return nn.Sequential(*layers).eval()


@st.composite
def optimizers(draw: st.DrawFn) -> str:
    """Settings that an optimiser moves all weights by."""
    momentum = draw(st.sampled_from([0, 0.9]))
    nesterov = draw(st.booleans()) and momentum > 0
    decay = draw(st.sampled_from([0, 0.01, 0.5]))
    more = f", momentum = {momentum}, nesterov = {str(nesterov).lower()}"
    name, rate = draw(st.sampled_from([("SGD", 0.1), ("AdamW", 0.02), ("RMSprop", 0.01)]))
    said = f"{name}(lr = {rate}, weight_decay = {decay}{more if name == 'SGD' else ''})"
    clip = draw(st.sampled_from(["", "; clip = 0.1", "; norms = frozen"]))
    return f"optimizer = {said}{clip}"


def expected(order: list[str]) -> set[str]:
    """What holds of each weight in the end: signs know no zero, and what has zeros no signs."""
    found: set[str] = set()
    for kind in ("signs" if name == "drawn" else name for name in order):
        found -= {"signs": {"mask"}, "mask": {"signs"}}.get(kind, set())
        found.add(kind)
    return found - {"factors"}


def holds(kind: str, w: Tensor) -> bool:
    rows = w.flatten(1)
    if kind == "mask":
        return int((rows == 0).sum()) >= int(0.4 * rows.numel())
    if kind == "grid":
        steps = 3 * rows / rows.abs().amax(1, keepdim=True).clamp(min=1e-30)
        return float((steps - steps.round()).abs().max()) < 1e-4
    return len(rows.abs().unique()) == 1


@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(
    kind=st.sampled_from(["mlp", "conv"]),
    width=st.integers(4, 7),
    factors=st.booleans(),
    order=st.lists(st.sampled_from(["mask", "grid", "signs", "drawn"]), min_size=1, max_size=3),
    optimizer=optimizers(),
    seed=st.integers(0, 99),
)
def test_the_form_of_weights_holds(
    kind: str, width: int, factors: bool, order: list[str], optimizer: str, seed: int
) -> None:
    order = [*(["factors"] if factors else []), *dict.fromkeys(order)]
    stages = "\n".join(f"stage s{at} {{ {RULES[name]} }}" for at, name in enumerate(order))
    program = PROGRAM.format(stages=stages, settings=f"{optimizer}; seed = {seed}")
    result = lissom.compile(network(kind, width, seed), program, inputs=(X[:2],), data=[(X, Y)])
    (event,) = trained(result)
    assert not event.stopped
    assert all(verdict.holds for verdict in event.verdicts)
    layers = [m for m in result.model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    fired = Counter(event.stage for event in result.applied)
    # A rule leaves a layer alone where its error would be too large.
    assume(all(fired[f"s{at}"] == len(layers) for at, n in enumerate(order) if n != "factors"))
    kinds = expected(order)
    assert all(holds(one, layer.weight.detach()) for layer in layers for one in kinds)
    lost = {name.replace("drawn", "signs") for name in order} - {"factors"} - kinds
    assert bool(lost) == bool(notes(result, "F102"))
