"""Every spelling of an op is the same call; its shape is as declared; written anew, it computes
the same.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lissom.rewrite.graph.emit import emit
from lissom.rewrite.graph.index import GraphView
from lissom.rewrite.ops.vocabulary import Vocabulary
from tests.spelled_functions import FUNCTIONS
from tests.spelled_layers import LAYERS
from tests.traced import canonical, traced

CASES = LAYERS + FUNCTIONS


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_every_spelling_is_one_call(case: tuple[Any, ...]) -> None:
    op, inputs, spellings = case
    first = None
    for spelling in spellings:
        root, node, _ = traced(spelling, inputs)
        call = GraphView(root).call(node)
        assert call is not None, GraphView(root).why_opaque(node)
        assert call.op.name == op
        assert canonical(call) == (first := first or canonical(call))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_shapes_and_meaning_agree_with_torch(case: tuple[Any, ...]) -> None:
    _, inputs, spellings = case
    for spelling in spellings:
        check_result(spelling, inputs)


def check_result(spelling: Any, inputs: tuple[Any, ...]) -> None:
    """Declared result, run before inserting, and run after inserting: all as the traced model."""
    root, node, expected = traced(spelling, inputs)
    call = GraphView(root).call(node)
    assert call is not None
    specs = call.op.result_specs(call)
    assert specs == (
        node.meta["val"] if isinstance(node.meta["val"], (tuple, list)) else (node.meta["val"],)
    )
    like = root.get_submodule(node.target) if node.op == "call_module" else None
    params = {name: call.tensor(name) for name in call.params}
    new = emit(call.op, call.inputs, params, call.attrs, like)
    inserted = new.insert(root, node, "fresh.layer")
    node.replace_all_uses_with(inserted)
    root.graph.lint()
    root.recompile()
    torch.manual_seed(0)
    with torch.no_grad():
        given = root(*inputs)
    torch.testing.assert_close(given, expected, rtol=0, atol=0)
    again = GraphView(root).call(inserted)
    assert again is not None
    assert canonical(again) == canonical(call)


def test_every_op_of_the_library_is_in_the_tables() -> None:
    separately = {"batch_norm", "multihead_attention"}
    integer = {n for n in Vocabulary.library().names() if n.startswith(("int8_", "quant"))}
    separately |= integer | {"dequantize", "fake_quantize"}  # tests/test_int8_ops.py
    separately |= {"row_scale", "fake_quantize_rows"}  # tests/test_int8_rows.py, _tables.py
    separately |= {"confidence", "entropy", "margin", "agreement", "exit_at"}  # tests/test_exits.py
    named = {case[0] for case in CASES}
    assert named | separately == set(Vocabulary.library().names())
