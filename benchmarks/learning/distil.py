"""Distillation on MNIST (Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 3): a teacher
with dropout, trained on shifted digits, and students that see neither: an MLP with an eighth of its
multiplications and a CNN with a fourteenth. Each student learns from labels, from soft targets at
temperature 1, and at the temperature of 1, 2 and 4 that is best on validation data. All of them see
20,000 digits and few epochs, so that a seed takes minutes on a shared machine.

Then a student of 784-300-100-10 that never sees a 3, and no label at all. As in that paper the bias
of class 3 is raised afterwards; by how much is chosen by all errors on validation data, which has
3s. Beside it the same student on labels, without 3s, corrected in the same way; and one at
temperature 8 whose transfer set is all of MNIST but the 3s.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from study import Row, compiled, lenet_300_100, measured, mlp, mnist, study
from torch import Tensor, nn

SETTINGS = """
    optimizer = SGD(lr = 0.05, momentum = 0.9, weight_decay = 0.0001)
    schedule = cosine(warmup = 5%)
    batch = 128
    seed = SEED
"""
TEACHER = f"recover teacher {{ epochs = 6; augment = shift(1); {SETTINGS} }}"
PLAIN = f"recover small {{ epochs = EPOCHS; {SETTINGS} }}"
TAUGHT = f"""
  recover small {{
    epochs = EPOCHS
    teacher = teacher
    loss = 0.9 * kl(temperature = HEAT) + 0.1 * task()
    {SETTINGS}
  }}
"""
UNLABELLED = TAUGHT.replace("0.9 * kl(temperature = HEAT) + 0.1 * task()", "kl(temperature = HEAT)")
HEATS = (1, 2, 4)
Data = Callable[[str], Any]
EPOCHS = {"mlp": 12, "cnn": 8, "wide": 8}


def with_dropout(seed: int) -> nn.Sequential:
    """147,146 parameters, 394,000 multiplications."""
    torch.manual_seed(seed)
    first, second = nn.Conv2d(1, 16, 5, 2), nn.Conv2d(16, 32, 5, 2)
    layers: list[nn.Module] = [first, nn.ReLU(), second, nn.ReLU(), nn.Flatten()]
    layers += [nn.Linear(512, 256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, 10)]
    return nn.Sequential(*layers).eval()


def digits(split: str) -> list[tuple[Tensor, Tensor]]:
    """MNIST with the first 20,000 digits to train on."""
    return mnist(split)[:40] if split == "train" else mnist(split)


@cache
def teacher(seed: int) -> nn.Module:
    """Trained once for all studies: its training is found ended in a folder of the system's."""
    text, kept = TEACHER.replace("SEED", str(seed)), Path(tempfile.gettempdir(), "lissom-studies")
    return compiled(text, with_dropout(seed), digits, checkpoints=kept).model


def student(kind: str, seed: int) -> nn.Module:
    """An MLP of 50,890 parameters, a CNN of 2,202, LeNet-300-100 of 266,610."""
    if kind == "mlp":
        return mlp(784, 64, 10, seed=seed)
    if kind == "wide":
        return lenet_300_100(seed)
    torch.manual_seed(seed)
    first, second = nn.Conv2d(1, 4, 5, 2), nn.Conv2d(4, 8, 5, 2)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))


@cache
def taught(kind: str, seed: int, heat: float, text: str = TAUGHT, data: Data = digits) -> nn.Module:
    """The student as this program trains it."""
    text = text.replace("EPOCHS", str(EPOCHS[kind])).replace("SEED", str(seed))
    text = text.replace("HEAT", str(heat))
    models = {"teacher": teacher(seed)}
    return compiled(text, student(kind, seed).eval(), data=data, models=models).model


def row(model: nn.Module, **more: object) -> Row:
    weights = sum(w.numel() for w in model.parameters())
    return {**measured(model), "parameters": weights, **more}


def best_heat(kind: str, seed: int) -> Row:
    """The temperature that is best on validation data."""
    found = [(taught(kind, seed, heat), heat) for heat in HEATS]
    model, heat = min(found, key=lambda one: errors(one[0], "valid"))
    return row(model, temperature=heat)


def errors(model: nn.Module, split: str) -> int:
    with torch.no_grad():
        return sum(int((model(x).argmax(1) != y).sum()) for x, y in mnist(split))


# -- a digit that was never seen -------------------------------------------------------------------


@cache
def without_threes(split: str) -> list[tuple[Tensor, Tensor]]:
    pairs = digits(split)
    return pairs if split != "train" else [(x[y != 3], y[y != 3]) for x, y in pairs]


@cache
def all_unlabelled(split: str) -> list[Any]:
    """A transfer set of all 55,000 digits but the 3s."""
    if split != "train":
        return mnist(split)
    return [(x[y != 3],) for x, y in mnist(split)]


@cache
def unlabelled(split: str) -> list[Any]:
    return [(x,) for x, _ in without_threes(split)] if split == "train" else mnist(split)


def threes(model: nn.Module) -> float:
    """Percent of the 3s of the test split that are read."""
    pairs = mnist("test")
    with torch.no_grad():
        right = sum(int(((model(x).argmax(1) == 3) & (y == 3)).sum()) for x, y in pairs)
    return 100 * right / sum(int((y == 3).sum()) for _, y in pairs)


def corrected(model: nn.Module) -> tuple[nn.Module, float]:
    """The model with a raised bias of class 3, by what gives the fewest errors on validation."""
    found = [(raised(model, step / 4), step / 4) for step in range(61)]
    return min(found, key=lambda one: errors(one[0], "valid"))


def raised(model: nn.Module, by: float) -> nn.Module:
    made = copy.deepcopy(model)
    with torch.no_grad():
        list(made.parameters())[-1][3] += by
    return made


def never_saw(model: nn.Module) -> Row:
    better, by = corrected(model)
    return row(better, threes=threes(better), threes_before=threes(model), raised=by)


ARMS = {
    "teacher": lambda seed: row(teacher(seed)),
    "mlp plain": lambda seed: row(taught("mlp", seed, 1, PLAIN)),
    "mlp T = 1": lambda seed: row(taught("mlp", seed, 1)),
    "mlp T chosen": lambda seed: best_heat("mlp", seed),
    "cnn plain": lambda seed: row(taught("cnn", seed, 1, PLAIN)),
    "cnn T = 1": lambda seed: row(taught("cnn", seed, 1)),
    "cnn T chosen": lambda seed: best_heat("cnn", seed),
    "no 3, labels": lambda seed: never_saw(taught("wide", seed, 1, PLAIN, without_threes)),
    "no 3, T = 8, 55,000": lambda seed: never_saw(
        taught("wide", seed, 8, UNLABELLED, all_unlabelled)
    ),
    "no 3, T = 4": lambda seed: never_saw(taught("wide", seed, 4, UNLABELLED, unlabelled)),
}

if __name__ == "__main__":
    study("distil", ARMS, __doc__)
