"""Writing a rule from nothing: what it says, how it is refused when it is wrong, and what it gives
when it is right.

    python examples/own_rule.py

Two linear layers with nothing between them are one. The first attempt forgets the first bias; the
verifier finds that on the model at hand and says where. The second attempt is right and is applied.
"""

from __future__ import annotations

import torch
from torch import nn

import lissom

WRONG = """
exact rule fuse {
  match {
    h = linear(x) as a
    y = linear(h) as b
  }
  rewrite { y = linear(x, weight = b.weight @ a.weight, bias = b.bias) from b }
}
"""

RIGHT = """
exact rule fuse {
  doc "B (A x + a) + b  ->  (B A) x + (B a + b), where that is smaller."
  match {
    h = linear(x) as a
    y = linear(h) as b
    a.weight : [M, I]
    b.weight : [O, M]
  }
  where {
    O * I < M * (O + I)  else "one {O}x{I} layer is larger than {M}x{I} and {O}x{M}"
  }
  let { shift = b.weight @ (a.bias or zeros(M)) + (b.bias or 0) }
  rewrite { y = linear(x, weight = b.weight @ a.weight, bias = shift) from b }
  ensure { params(after) < params(before) }
}
"""


def network() -> nn.Module:
    """A small net with a pair of linear layers that do the work of one."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 128), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10)
    ).eval()


def main() -> None:
    model, x = network(), torch.randn(8, 64)
    try:
        lissom.compile(model, WRONG, inputs=(x,))
    except lissom.LissomError as error:
        print(error, end="\n\n")
    result = lissom.compile(model, RIGHT, inputs=(x,))
    print(result.table())
    print(f"applied at {', '.join(event.site for event in result.applied)}")
    print(f"largest difference of the outputs: {(result.model(x) - model(x)).abs().max():.1e}")


if __name__ == "__main__":
    main()
