"""Known silent miscompiles of layers that share: values, weights, memory; and of integer layers.

Each test is called by its row in docs/hard_cases.md.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import lissom
from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.journal import Note, Refused

from .hard_models import compiled, conv, norm
from .support import library

# -- one value or one weight, read twice -----------------------------------------------------------


def test_s15_concatenation_of_one_value_with_itself() -> None:
    """VainF/Torch-Pruning#146: both calls fold, into one layer."""
    driven = compiled(
        lambda m, x: m.c(torch.cat([m.n(m.a(x)), m.n(m.a(x))], 1)),
        a=conv(),
        n=norm(),
        c=conv(16, 8, 3),
    )
    assert driven.sites("fold_bn") == ["a", "a"]
    nodes = driven.module.graph.nodes
    assert len({node.target for node in nodes if node.op == "call_module"}) == 2


def test_s15_queries_keys_and_values_of_one_layer() -> None:
    """VainF/Torch-Pruning#481, #524: three parts, not as many as the axis before."""

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        q, k, v = m.c(m.i(x)).reshape(2, 5, 3, 4).permute(2, 0, 1, 3).unbind(0)
        return (q @ k.transpose(-1, -2)) @ v

    driven = compiled(forward, torch.randn(2, 5, 6), c=nn.Linear(6, 12), i=nn.Identity())
    assert driven.sites() == ["i"]
    assert driven.difference() == 0


def test_s15_a_norm_before_flatten_before_linear() -> None:
    """VainF/Torch-Pruning#50: each channel is a run of inputs, with a gain of its own."""
    parts = {"n": norm(), "l": nn.Linear(288, 5)}
    driven = compiled(lambda m, x: m.l(m.n(x).flatten(1)), rules=library("fold"), **parts)
    assert driven.sites("absorb_bn_flat") == ["n"]
    assert 0 < driven.difference() < 1e-5


def test_s20_two_layers_over_one_weight() -> None:
    """onnx/optimizer#133."""
    tied = conv()
    tied.weight = (first := conv()).weight
    driven = compiled(lambda m, x: m.n(m.c(x)) + m.e(x), c=first, e=tied, n=norm())
    assert driven.applied == 0
    assert any("other calls" in reason for reason in driven.reasons("fold_bn"))


def test_s20_weights_that_are_parts_of_one_memory() -> None:
    """As read from one file: no part overlaps another, so each layer owns its weight."""
    wide = nn.Parameter(torch.randn(16, 8, 3, 3))
    first, second = conv(), conv()
    first.weight, second.weight = nn.Parameter(wide.data[:8]), nn.Parameter(wide.data[8:])
    driven = compiled(lambda m, x: m.n(m.c(x)) + m.e(x), c=first, e=second, n=norm())
    assert driven.sites("fold_bn") == ["c"]


def test_s20_weights_that_overlap_in_memory() -> None:
    wide = torch.randn(12, 8, 3, 3)
    first, second = conv(), conv()
    first.weight, second.weight = nn.Parameter(wide[:8]), nn.Parameter(wide[4:])
    driven = compiled(lambda m, x: m.n(m.c(x)) + m.e(x), c=first, e=second, n=norm())
    assert driven.applied == 0
    assert any("other calls" in reason for reason in driven.reasons("fold_bn"))


# -- tied embeddings -------------------------------------------------------------------------------

TIED = """
pipeline p {
  data calib = sample("train", 4)
  stage clean { fixpoint { fold_scale_linear } }
  stage low { once low_rank_linear(rank = 2, least = 4, budget = 100%) }
}
"""


class Language(nn.Module):
    """Ids to scores of the same ids, with one table for both."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 16)
        self.middle = nn.Linear(16, 16, bias=False)
        self.head = nn.Linear(16, 40, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.middle(self.table(ids)))) * 2


def language(by_memory: bool) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = Language().eval()
    if by_memory:
        model.head.weight = nn.Parameter(model.table.weight.data)
    return model, torch.randint(0, 40, (4, 5))


def addresses(model: nn.Module) -> list[int]:
    found = dict(model.named_parameters(remove_duplicate=False))
    return [found[f"{name}.weight"].data_ptr() for name in ("table", "head")]


@pytest.mark.parametrize("by_memory", [False, True])
def test_s25_a_tied_head_keeps_its_tie(by_memory: bool, tmp_path: Path) -> None:
    """huggingface/transformers#37905: rules leave it, and save and load keep it tied."""
    model, ids = language(by_memory)
    result = lissom.compile(model, TIED, inputs=(ids,), data=lambda split: [(ids, None)])
    assert [event.site for event in result.applied] == ["middle"]
    reasons = {e.rule.partition("(")[0]: e.reason for e in result.journal.of(Refused)}
    assert reasons["fold_scale_linear"] == "head runs 2 times; its other calls would change"
    assert reasons["low_rank_linear"] == "weight is shared with table"
    result.save(tmp_path / "a", check_reload=False)
    loaded = lissom.load(tmp_path / "a")
    for module in (model, result.model, loaded):
        assert len(set(addresses(module))) == 1
    assert torch.equal(loaded(ids), result.model(ids))


# -- integer layers --------------------------------------------------------------------------------

QUANTIZED = """
pipeline p {
  data calib = sample("train", 4)
  stage clean { fixpoint { drop_identity; fold_scale_linear } }
  stage low { once low_rank_linear(rank = 2, least = 4, budget = 100%) }
}
"""


def quantized() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    layers = [nn.Linear(16, 16), nn.Identity(), nn.ReLU(), nn.Linear(16, 8)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch speaks of the package that will replace this one
        made = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(*layers).eval(), {nn.Linear}, dtype=torch.qint8
        )
    return made.eval(), torch.randn(4, 16)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_s24_int8_layers_stay_as_they_are(tmp_path: Path) -> None:
    """I42: openvinotoolkit/nncf#1498: no rule takes one for a linear; the integers stay."""
    model, x = quantized()
    assert model[0].weight().dtype == torch.qint8
    result = lissom.compile(model, QUANTIZED, inputs=(x,), data=lambda split: [(x, None)])
    assert [(event.rule, event.site) for event in result.applied] == [("drop_identity", "1")]
    silent = [note.text for note in result.journal.of(Note) if note.code == "W702"]
    assert any("low_rank_linear" in t and "no candidate op in the model" in t for t in silent)
    assert torch.equal(result.model(x), model(x))
    with pytest.raises(LissomError, match=r"A010(.|\n)*dynamic(.|\n)*--> 0"):
        result.save(tmp_path / "a")
    assert not (tmp_path / "a").exists()
