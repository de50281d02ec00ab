"""Copies of a model whose weights have memory in common: what was tied stays tied."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lissom.rewrite.graph.ties import copies_of_views
from lissom.rewrite.store.overlap import overlapping


class Holder(nn.Module):
    def __init__(self, *tensors: Tensor) -> None:
        super().__init__()
        for number, tensor in enumerate(tensors):
            self.register_buffer(f"t{number}", tensor)


def copied(*tensors: Tensor) -> list[Tensor | None]:
    found = copies_of_views(Holder(*tensors))
    return [found.get(id(tensor)) for tensor in tensors]


def of_one_dtype() -> list[Tensor]:
    whole = torch.randn(12)
    return [whole[:8], whole[4:]]


def of_several_dtypes() -> list[Tensor]:
    """The bits of a weight between two parts of it."""
    whole = torch.randn(12)
    return [whole[:8], whole.view(torch.int32)[1:9], whole[4:]]


def of_several_storages() -> list[Tensor]:
    """Two views of an array that torch knows nothing of."""
    whole = np.arange(12, dtype=np.float32)
    return [torch.from_numpy(whole[:8]), torch.from_numpy(whole[4:])]


@pytest.mark.parametrize("make", [of_one_dtype, of_several_dtypes, of_several_storages])
def test_copies_lie_in_one_memory_as_their_originals_do(make: object) -> None:
    tensors = make()  # type: ignore[operator]
    found = copied(*tensors)
    for old, new in zip(tensors, found, strict=True):
        assert new is not None
        assert torch.equal(new, old)
        assert new.data_ptr() - found[0].data_ptr() == old.data_ptr() - tensors[0].data_ptr()
    before = tensors[0].clone()
    found[-1].zero_()
    assert torch.equal(found[0][4:], torch.zeros(4)), "a write through one is seen by the other"
    assert torch.equal(tensors[0], before)


def test_what_does_not_overlap_is_left_alone() -> None:
    whole = torch.randn(12)
    parts = [whole[:6], whole[6:], torch.randn(3), torch.empty(0)]
    assert copied(*parts) == [None] * 4
    assert overlapping(parts)[0] == [3]
    assert sorted(map(len, overlapping(parts))) == [1, 1, 1, 1]
