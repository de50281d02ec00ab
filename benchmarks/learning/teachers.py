"""Who teaches: the same two students under several kinds of teacher, on MNIST as in distil.py.

The MLP 784-64-10 follows one teacher, three teachers by the mean of their logits or of their
probabilities, a teaching assistant (784-256-10) that followed the teacher (Mirzadeh et al. 2019,
arXiv:1902.03393), and outputs in a file, where its weights must be those of the first, bit for bit.
The CNN follows the teacher's outputs alone, with a hint (Romero et al. 2015, arXiv:1412.6550), with
attention (Zagoruyko and Komodakis 2017, arXiv:1612.03928). The three teachers are those of seeds 0,
1 and 2, so that ensembles differ between seeds by their student alone.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import torch
from distil import EPOCHS, PLAIN, SETTINGS, digits, row, student, teacher
from study import Arm, Row, compiled, mlp, study
from torch import nn

from lissom.jobs.recording import record_outputs
from lissom.model_file import ModelFile

SMALL = """
  recover small {{
    epochs = {epochs}
    teacher = {teacher}
    loss = {loss}
    {settings}
  }}
"""
SOFT = "0.9 * kl(temperature = 2) + 0.1 * task()"
ASSISTANT = f"""
  recover assistant {{
    student = middle
    epochs = 8
    teacher = a
    loss = {SOFT}
    {SETTINGS}
  }}
"""
KEPT = Path(tempfile.gettempdir(), "lissom-studies")


def taught(kind: str, seed: int, who: str, loss: str = SOFT, first: str = "") -> nn.Module:
    text = SMALL.format(epochs=EPOCHS[kind], teacher=who, loss=loss, settings=SETTINGS)
    if first:
        text = first + text.replace("{", "{\n    student = little", 1)
    models = {name: teacher(number) for name, number in (("b", 1), ("c", 2), ("z", 0))}
    models |= {"a": teacher(seed), "middle": mlp(784, 256, 10, seed=seed)}
    models["little"] = student(kind, seed).eval()
    text = text.replace("SEED", str(seed))
    return compiled(text, student(kind, seed).eval(), digits, models=models).model


@cache
def one(seed: int) -> nn.Module:
    return taught("mlp", seed, "a")


def from_file(seed: int) -> Row:
    """Outputs as `lissom record` writes them."""
    path = KEPT / f"teacher-{seed}.safetensors"
    given = ModelFile("teacher", teacher(seed), None, data=digits)  # type: ignore[arg-type]
    record_outputs(given, "train", None, path)
    model = taught("mlp", seed, f'recorded("{path}")')
    return row(model, equal=int(equal(model, one(seed))))


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def plain(kind: str, seed: int) -> Row:
    text = PLAIN.replace("EPOCHS", str(EPOCHS[kind])).replace("SEED", str(seed))
    return row(compiled(text, student(kind, seed).eval(), digits).model)


def arm(kind: str, who: str, more: str = "") -> Arm:
    return lambda seed: row(taught(kind, seed, who, SOFT + more))


ARMS: dict[str, Arm] = {
    "mlp plain": lambda seed: plain("mlp", seed),
    "mlp one": lambda seed: row(one(seed)),
    "mlp logits of 3": arm("mlp", "z + b + c"),
    "mlp probabilities of 3": arm("mlp", "probabilities(z + b + c)"),
    "mlp assistant": lambda seed: row(taught("mlp", seed, "assistant", SOFT, ASSISTANT)),
    "mlp file": from_file,
    "cnn one": arm("cnn", "a"),
    "cnn hint": arm("cnn", "a", ' + 0.1 * hint(at = "2", of = "2")'),
    "cnn attention": arm("cnn", "a", ' + 0.5 * attention(at = "2", of = "2")'),
}

if __name__ == "__main__":
    study("teachers", ARMS, __doc__)
