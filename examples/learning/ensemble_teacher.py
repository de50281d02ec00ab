"""A small network that learns from three: `python examples/learning/ensemble_teacher.py`.

Three networks are trained on the digits that scikit-learn carries, each from other first weights.
Then a network of a thirtieth of their size learns from labels, from one of them, from the mean of
their logits, and from the mean of their probabilities (Hinton et al. 2015, arXiv:1503.02531). The
500 scans of the test split are too few to tell teachers apart by a point; how closely a student
follows is seen on them, too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import lissom
from lissom.demo.model import accuracy, data, inputs, metrics

PROGRAM = """
pipeline distil {
  data train = sample("train", all)
  data valid = sample("valid", all)

  recover small {
    epochs = 30
    optimizer = Adam(lr = 0.01)
    schedule = cosine()
    batch = 50
    SETTINGS
  }
}
"""
TEACHERS = {
    "labels": "",
    "one teacher": "one",
    "three, mean of logits": "one + two + three",
    "three, mean of probabilities": "probabilities(one + two + three)",
}


def network(width: int, seed: int) -> nn.Module:
    """64 pixels to 10 digits; nothing is trained yet."""
    torch.manual_seed(seed)
    layers = nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10)
    return nn.Sequential(*layers).eval()


def trained(model: nn.Module, settings: str = "", **models: nn.Module) -> nn.Module:
    program = PROGRAM.replace("SETTINGS", settings)
    given = {"inputs": inputs(), "data": data, "metrics": metrics}
    return lissom.compile(model, program, models=models, **given).model


def probabilities(model: nn.Module) -> Tensor:
    """Of all scans of the test split: `[N, 10]`."""
    with torch.no_grad():
        return torch.cat([model(x).softmax(1) for x, _ in data("test")])


def main() -> None:
    torch.set_num_threads(1)  # the networks are too small for more
    names = ("one", "two", "three")
    big = {name: trained(network(300, seed)) for seed, name in enumerate(names)}
    for name, model in big.items():
        print(f"teacher {name}: accuracy {accuracy(model, data('test')):.3f} on test")
    together = torch.stack([probabilities(model) for model in big.values()]).mean(0)
    for name, teacher in TEACHERS.items():
        loss = "loss = kl(temperature = 3) + 0.1 * task()"
        settings = f"teacher = {teacher}\n    {loss}" if teacher else ""
        model = trained(network(10, 7), settings, **big)
        apart = float((probabilities(model) - together).abs().sum(1).mean()) / 2
        found = accuracy(model, data("test"))
        print(f"student of {name}: accuracy {found:.3f}, {apart:.3f} from the three together")


if __name__ == "__main__":
    main()
