"""A teacher that can only be asked: `python examples/learning/teacher_from_file.py`.

`lissom record` asks a model for its outputs on all training data, once, and writes them to a file;
it never looks into the model, which may as well call a service. A program then names the file as
its teacher. Where the model is at hand, too, it teaches the very same weights, bit for bit.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

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
    teacher = TEACHER
    loss = kl(temperature = 3)
  }
}
"""


def network(width: int, seed: int) -> nn.Module:
    """64 pixels to 10 digits; nothing is trained yet."""
    torch.manual_seed(seed)
    layers = nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10)
    return nn.Sequential(*layers).eval()


def teacher() -> nn.Module:
    """Trained by hand, in a second."""
    model = network(300, 0)
    x, y = (torch.cat(parts) for parts in zip(*data("train"), strict=True))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


class Service(nn.Module):
    """Stands for a model that answers from elsewhere: no tracer could follow what it does."""

    def __init__(self) -> None:
        super().__init__()
        model = teacher()
        with torch.no_grad():
            self.answers = {x.numpy().tobytes(): model(x) for x, _ in data("train")}

    def forward(self, x: Tensor) -> Tensor:
        return self.answers[x.numpy().tobytes()]


def service() -> nn.Module:
    """What `lissom record` is given."""
    torch.set_num_threads(1)
    return Service().eval()


def main() -> None:
    torch.set_num_threads(1)  # the networks are too small for more
    given = {"inputs": inputs(), "data": data, "metrics": metrics}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "teacher.safetensors")
        command = [sys.executable, "-m", "lissom", "record", f"{__file__}:service", "-o", str(file)]
        subprocess.run(command, check=True)
        program = Path(folder, "distil.lissom")
        program.write_text(PROGRAM.replace("TEACHER", f'recorded("{file.name}")'))
        by_file = lissom.compile(network(10, 7), program, **given).model
    program_of_model = PROGRAM.replace("TEACHER", "big")
    by_model = lissom.compile(network(10, 7), program_of_model, models={"big": teacher}, **given)
    for name, model in (("teacher", teacher()), ("student", by_file)):
        print(f"{name}: accuracy {accuracy(model, data('test')):.3f} on test")
    pairs = zip(by_file.parameters(), by_model.model.parameters(), strict=True)
    same = all(torch.equal(a, b) for a, b in pairs)
    print(f"the model itself teaches {'the same weights' if same else 'other weights'}")


if __name__ == "__main__":
    main()
