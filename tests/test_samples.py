"""What counts as a sample of calibration data."""

from __future__ import annotations

import torch
from torch import fx, nn

import lissom
from lissom.rewrite.measure.samples import SITE_SAMPLES, Samples

PROGRAM = """
pipeline p {
  data calib = sample("train", 64)
  stage s { once low_rank_linear(rank = 4, least = 4, budget = 100%) }
}
"""


def calibration(*batches: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    samples = Samples((batches[0],))
    samples.named["calib"] = [(batch, None) for batch in batches]
    return samples.calibration(fx.symbolic_trace(nn.Identity()))


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


class Two(nn.Module):
    """A batch, and a vector with as many features as the batch has samples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(40, 33)

    def forward(self, x: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.first(x), self.second(v)


def test_a_batch_that_no_part_of_runs_stays_whole() -> None:
    """Found by generated models: the vector was cut with the batch."""
    torch.manual_seed(0)
    x, v = torch.rand(40, 4), torch.rand(40)
    data = lambda split: [((x, v), torch.zeros(()))]  # noqa: E731
    result = lissom.compile(Two().eval(), PROGRAM, inputs=(x, v), data=data)
    assert [event.site for event in result.applied] == ["second"]


def test_large_samples_are_fewer() -> None:
    """At least eight, and as many as hold a million numbers: an image has enough for a mean."""
    images = [(torch.zeros(4, 3, 96, 96), torch.zeros(4)) for _ in range(16)]
    samples = Samples((images[0][0],), lambda split: images)
    samples.named["calib"] = images
    module = torch.fx.symbolic_trace(torch.nn.ReLU())
    assert sum(len(x) for (x,) in samples.calibration(module)) == 32
    images = [(torch.zeros(4, 3, 256, 256), torch.zeros(4)) for _ in range(16)]
    samples = Samples((images[0][0],), lambda split: images)
    samples.named["calib"] = images
    assert sum(len(x) for (x,) in samples.calibration(module)) == 8
