"""What this version has no engine for is refused by name, never skipped: docs/hard_cases.md."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import lissom
from lissom.cli import cli
from lissom.grammar.diagnostics import LissomError

from .support import digests

PROGRAMS = Path(__file__).parent / "programs"


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 4)).eval()


def refusal(text: str) -> str:
    """The words of R002; the model is left as it was."""
    model = network()
    before = digests(model)
    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(LissomError) as caught:
        lissom.compile(model, text, inputs=(x,), data=lambda split: [(x, None)])
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == "R002"
    assert diagnostic.labels[0].span is not None
    assert digests(model) == before
    return diagnostic.message


def test_h21_codebooks_are_refused() -> None:
    """H11, H21: codebooks wait for a later version as well."""
    assert "rule `cluster` needs `kmeans`" in refusal((PROGRAMS / "cluster.lissom").read_text())


def test_a_function_of_a_later_version_that_the_host_gives_runs() -> None:
    """Without it the rule is refused by name; with it nothing is said."""
    text = """
approx rule sparse {
  match { y = linear(x) as l }
  where { max(abs(l.weight)) > 0 }
  let { w = codebook(l.weight, l.weight) }
  perturb { l.weight := w }
  rewrite { y = l(x, weight = w) }
  ensure { error(y) <= 100% }
}
pipeline p { stage s { once sparse } }
"""
    assert "`codebook`, which is not in this version" in refusal(text)
    given = {"codebook": lambda w, book: (100 * w).round() / 100}
    x = torch.randn(2, 3, 8, 8)
    result = lissom.compile(network(), text, inputs=(x,), functions=given)
    assert [event.rule for event in result.applied] == ["sparse"]
    assert "R002" not in {note.code for note in result.notes}


HUFFMAN = """
lossless rule huffman {
  match param w of _
  rewrite { store w as huffman(w.codes) + raw(w.book) }
  ensure { equal(decode(w)) within 0 }
}
"""


def test_i61_there_is_no_decoder_to_attack() -> None:
    """I61, I62: nothing is stored as a Huffman stream, so none is ever read."""
    assert "rule `huffman` needs storing parameters in another form" in refusal(HUFFMAN)


def test_h21_such_rules_are_listed_as_not_run(tmp_path: Path) -> None:
    """H21: `lissom test` says what it cannot run."""
    path = tmp_path / "cluster.lissom"
    path.write_text((PROGRAMS / "cluster.lissom").read_text())
    found = CliRunner().invoke(cli, ["test", str(path), "--models", "5", "--jobs", "1"])
    assert "not run: cluster:" in found.stdout
    assert "`kmeans`" in found.stdout
