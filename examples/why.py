"""Why did a rule not match? The three commonest reasons, on a model that has all of them.

    python examples/why.py

The same on the command line: lissom why examples/why.py:build fold_bn
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

import lissom
from lissom.rewrite.journal import Refused


class Net(nn.Module):
    """One convolution whose result is read twice, one that runs twice, one that can be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.read_twice, self.runs_twice, self.plain = (
            nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)
        )
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.read_twice(x)
        h = self.bn1(h) + h
        h = self.bn2(self.runs_twice(h)) + self.runs_twice(x)
        return self.bn3(self.plain(h))


def build() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def inputs() -> tuple[Tensor, ...]:
    return (torch.randn(2, 8, 12, 12),)


def main() -> None:
    program = "pipeline clean { stage fold { fixpoint { fold_bn } } }"
    result = lissom.compile(build(), program, inputs=inputs())
    for event in result.applied:
        print(f"{event.rule} applied at {event.site}")
    refused = [event for event in result.journal.events if isinstance(event, Refused)]
    for (site, reason), _ in Counter((e.site, e.reason) for e in refused).items():
        print(f"left alone: {site}: {reason}")


if __name__ == "__main__":
    main()
