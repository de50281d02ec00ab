"""Tables whose rows are codes: a quarter of the bytes, and nothing of a row is lost that its 255
numbers do not hold.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def int8_embedding(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """The rows of a table [V, E] (int8) at indices [...], each times its scale [V]: [..., E] in the
    type of `scale`.
    """
    return F.embedding(x, weight) * F.embedding(x, scale[:, None])


class Int8Embedding(nn.Module):
    """`int8_embedding` as a layer."""

    def __init__(
        self, num_embeddings: int, embedding_dim: int, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        codes = torch.zeros(num_embeddings, embedding_dim, dtype=torch.int8, device=device)
        ones = torch.ones(num_embeddings, device=device)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.scale = nn.Parameter(ones, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return int8_embedding(x, self.weight, self.scale)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"
