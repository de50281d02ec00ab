"""What counts as a sample of calibration data."""

from __future__ import annotations

import torch
from torch import nn

import lissom
from lissom.rewrite.samples import SITE_SAMPLES, Samples

PROGRAM = """
pipeline p {
  data calib = sample("train", 64)
  stage s { once low_rank_linear(rank = 4, least = 4, budget = 100%) }
}
"""


def calibration(*batches: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    samples = Samples((batches[0],))
    samples.named["calib"] = [(batch, None) for batch in batches]
    return samples.calibration


def test_the_last_batch_is_cut() -> None:
    found = calibration(torch.rand(20, 3), torch.rand(20, 3))
    assert [tuple(x.shape) for (x,) in found] == [(20, 3), (SITE_SAMPLES - 20, 3)]


def test_a_vector_is_one_sample() -> None:
    found = calibration(torch.rand(40), torch.rand(40))
    assert [tuple(x.shape) for (x,) in found] == [(40,)]


def test_a_model_of_vectors_is_measured() -> None:
    """Found by generated models: 33 features were cut to 32."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(33, 33)).eval(), torch.rand(33)
    data = lambda split: [(torch.rand(33), torch.zeros(())) for _ in range(3)]  # noqa: E731
    result = lissom.compile(model, PROGRAM, inputs=(x,), data=data)
    assert len(result.applied) == 1
