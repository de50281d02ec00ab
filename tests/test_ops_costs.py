"""Declared costs and shapes against torch itself, over drawn shapes."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.graph.index import GraphView
from lissom.rewrite.ops.vocabulary import OpSpec, Vocabulary
from tests.traced import described

LIBRARY = Vocabulary.library()
CONVOLUTIONS = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
TRANSPOSED = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]


def recorded(model: nn.Module, *inputs: torch.Tensor) -> tuple[GraphView, fx.Node]:
    """The view of a traced model with shapes, and the node that the output reads."""
    root = fx.symbolic_trace(model)
    described(root, *inputs)
    output = next(iter(reversed(root.graph.nodes)))
    return GraphView(root), output.args[0]


def counted(model: nn.Module, *inputs: torch.Tensor) -> int:
    """Floating-point operations as torch counts them: two for each multiply-accumulate."""
    math = sdpa_kernel(SDPBackend.MATH)  # the fused kernel of the CPU is not counted
    with FlopCounterMode(display=False) as counter, torch.no_grad(), math:
        model(*inputs)
    return counter.get_total_flops()


def declared(model: nn.Module, *inputs: torch.Tensor) -> int:
    view, node = recorded(model, *inputs)
    call = view.call(node)
    assert call is not None, view.why_opaque(node)
    specs = call.op.result_specs(call)
    assert node.meta["val"] in (specs, specs[0])
    return call.op.macs(call.op.bind(call.shapes(), call.attrs))


def drawn_convolution(rng: random.Random, kind: type[Any]) -> tuple[nn.Module, torch.Tensor]:
    rank = 1 + (CONVOLUTIONS + TRANSPOSED).index(kind) % 3
    groups, kernel = rng.choice([1, 2, 3]), [rng.randint(1, 3) for _ in range(rank)]
    settings: dict[str, Any] = {
        name: [rng.randint(low, high) for _ in range(rank)]
        for name, low, high in (("stride", 1, 3), ("padding", 0, 1), ("dilation", 1, 2))
    }
    if kind in TRANSPOSED:
        settings["output_padding"] = [rng.randint(0, s - 1) for s in settings["stride"]]
    layer = kind(2 * groups, 3 * groups, kernel, groups=groups, bias=rng.random() < 0.5, **settings)
    return layer, torch.randn(
        rng.randint(1, 3), 2 * groups, *(rng.randint(6, 9) for _ in range(rank))
    )


@pytest.mark.parametrize("kind", CONVOLUTIONS + TRANSPOSED, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("seed", range(8))
def test_macs_of_convolutions_are_half_of_torchs_flops(kind: type[Any], seed: int) -> None:
    layer, x = drawn_convolution(random.Random(seed), kind)
    model = nn.Sequential(layer).eval()
    assert 2 * declared(model, x) == counted(model, x) > 0


class Product(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any, y: Any) -> Any:
        return self.function(x, y)


@pytest.mark.parametrize(
    ("function", "left", "right"),
    [
        (torch.matmul, (3, 4), (4, 5)),
        (torch.matmul, (2, 3, 4), (2, 4, 5)),
        (torch.matmul, (2, 6, 3, 4), (4, 5)),
        (torch.matmul, (3, 4), (6, 4, 5)),
        (torch.bmm, (2, 3, 4), (2, 4, 5)),
        (lambda x, y: torch.baddbmm(torch.ones(()), x, y), (2, 3, 4), (2, 4, 5)),
        (lambda x, y: torch.addmm(torch.ones(()), x, y), (3, 4), (4, 5)),
        (
            lambda x, y: nn.functional.scaled_dot_product_attention(x, y, y),
            (2, 3, 5, 8),
            (2, 3, 7, 8),
        ),
    ],
)
def test_macs_of_products_are_half_of_torchs_flops(
    function: Callable[..., Any], left: tuple[int, ...], right: tuple[int, ...]
) -> None:
    model, inputs = Product(function), (torch.randn(left), torch.randn(right))
    assert 2 * declared(model, *inputs) == counted(model, *inputs) > 0


def drawn_batches(rng: random.Random) -> tuple[list[int], list[int]]:
    """Two lists of batch axes that broadcast, in one direction or both."""
    full = [rng.randint(2, 4) for _ in range(rng.randint(0, 3))]
    one, other = ([rng.choice([size, size, 1]) for size in full] for _ in range(2))
    return one[rng.randint(0, len(one)) :], other


@pytest.mark.parametrize("seed", range(40))
def test_macs_of_a_broadcast_product_are_half_of_torchs_flops(seed: int) -> None:
    rng = random.Random(seed)
    left, right = drawn_batches(rng) if seed % 2 else reversed(drawn_batches(rng))
    m, k, n = (rng.randint(1, 5) for _ in range(3))
    inputs = torch.randn(*left, m, k), torch.randn(*right, k, n)
    model = Product(torch.matmul)
    assert 2 * declared(model, *inputs) == counted(model, *inputs) > 0


@pytest.mark.parametrize("seed", range(20))
def test_macs_of_broadcast_attention_are_half_of_torchs_flops(seed: int) -> None:
    rng = random.Random(seed)
    left, right = drawn_batches(rng)
    queries, keys, width = (rng.randint(2, 5) for _ in range(3))
    inputs = torch.randn(*left, queries, width), torch.randn(*right, keys, width)
    model = Product(lambda x, y: nn.functional.scaled_dot_product_attention(x, y, y))
    assert 2 * declared(model, *inputs) == counted(model, *inputs) > 0


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("shape", [(3, 5, 8), (1, 4, 8), (7, 8)])
def test_macs_of_recurrent_layers_are_half_of_torchs_flops(
    kind: type[Any], batch_first: bool, shape: tuple[int, ...]
) -> None:
    layer = kind(8, 6, batch_first=batch_first).eval()
    with torch.backends.mkldnn.flags(enabled=False):  # what mkldnn fuses is not counted
        flops = counted(layer, torch.randn(shape))
    assert 2 * declared(Whole(layer), torch.randn(shape)) == flops > 0


class Whole(nn.Module):
    """A model that returns all that its layer gives."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Any) -> Any:
        return self.layer(x)


def test_macs_of_linear_count_every_leading_axis() -> None:
    model, x = nn.Sequential(nn.Linear(8, 5)), torch.randn(2, 3, 4, 8)
    assert 2 * declared(model, x) == counted(model, x) == 2 * 2 * 3 * 4 * 8 * 5


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_as_a_layer(batch_first: bool) -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=batch_first).eval()
    model = Product(lambda x, y: x)
    model.layer = layer
    model.function = lambda x, y: layer(x, y, y, need_weights=False)[0]
    root = fx.symbolic_trace(model)
    inputs = torch.randn(3, 5, 8), torch.randn(3, 7, 8) if batch_first else torch.randn(7, 5, 8)
    described(root, *inputs)
    view = GraphView(root)
    node = view.calls_of("multihead_attention")[0]
    call = view.call(node)
    assert call is not None
    assert call.attrs["need_weights"] is False
    batch, queries, keys = (3, 5, 7) if batch_first else (5, 3, 7)
    projections = 2 * batch * 8 * 8 * (queries + keys)
    products = 2 * batch * queries * keys * 8
    assert call.op.macs(call.op.bind(call.shapes(), call.attrs)) == projections + products
    assert call.op.result_specs(call) == node.meta["val"]


@pytest.mark.parametrize("seed", range(30))
def test_pooled_sizes_are_torchs(seed: int) -> None:
    """Above all with `ceil_mode`, whose last window must begin inside the input."""
    rng = random.Random(seed)
    kernel = [rng.randint(1, 4), rng.randint(1, 4)]
    settings = {"stride": [rng.randint(1, 4), rng.randint(1, 4)], "ceil_mode": rng.random() < 0.7}
    settings["padding"] = [rng.randint(0, k // 2) for k in kernel]
    pool = nn.AvgPool2d(kernel, **settings) if seed % 2 else nn.MaxPool2d(kernel, **settings)
    declared(nn.Sequential(pool), torch.randn(1, 2, rng.randint(5, 12), rng.randint(5, 12)))


# -- defaults --------------------------------------------------------------------------------------

SAME = {("var", "correction"), ("std", "correction"), ("pad", "value")}
"""torch's None and our number mean the same."""


def defaults_of_torch(op: OpSpec) -> list[dict[str, Any]]:
    function = op.writer.function
    schemas = torch._C._jit_get_schemas_for_operator(f"aten::{op.writer.name}")
    if schemas and not inspect.isfunction(function):
        return [
            {a.name: a.default_value if a.has_default_value() else ... for a in schema.arguments}
            for schema in schemas
        ]
    found = inspect.signature(function.forward if op.writer.is_module else function)
    return [{n: ... if p.default is p.empty else p.default for n, p in found.parameters.items()}]


def agrees(ours: Any, theirs: Any) -> bool:
    """`...` is no default; ours may be None then. A pair may be one number in torch."""
    if theirs is ...:
        return ours is None
    listed = tuple(theirs) if isinstance(theirs, (list, tuple)) else (theirs,)
    wide = ours if isinstance(ours, tuple) else (ours,)
    return ours is None or wide == listed or wide == listed * len(wide)


@pytest.mark.parametrize("name", LIBRARY.names())
def test_declared_defaults_are_torchs(name: str) -> None:
    """A call leaves out what is the default, so a wrong one would change what runs."""
    op = LIBRARY[name]
    by_name = [(theirs, ours) for theirs, ours in op.writer._kwargs if ours in op.defaults]
    # The functions that choose between with and without indices hide their arguments.
    known = defaults_of_torch(op) if by_name and "max_pool" not in name else []
    for theirs, ours in by_name:
        choices = [each[theirs] for each in known if theirs in each]
        if choices and (name, ours) not in SAME:
            assert any(agrees(op.defaults[ours], choice) for choice in choices), (theirs, choices)


# -- contradictions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "shapes", "attrs"),
    [
        ("linear", {"x": (2, 5), "weight": (3, 4)}, {}),
        ("conv2d", {"x": (1, 5, 4, 4), "weight": (4, 2, 3, 3)}, {"groups": 2}),
        ("batch_norm", {"x": (2, 3), "weight": (3,), "bias": (4,)}, {}),
        ("bmm", {"x": (2, 3, 4), "y": (3, 4, 5)}, {}),
        ("conv2d", {"x": (1, 4, 4), "weight": (4, 2, 3, 3)}, {}),
        ("matmul", {"x": (2, 3, 4), "y": (3, 4, 5)}, {}),
    ],
)
def test_shapes_that_contradict_a_declaration_are_refused(
    op: str, shapes: dict[str, Any], attrs: dict[str, Any]
) -> None:
    with pytest.raises(LissomError, match="S002"):
        LIBRARY[op].bind(shapes, attrs)


@pytest.mark.parametrize("seed", range(40))
def test_broadcasting_is_torchs(seed: int) -> None:
    rng = random.Random(seed)
    full = [rng.randint(1, 3) for _ in range(rng.randint(0, 4))]
    shapes = [
        tuple(rng.choice([size, size, 1, 2]) for size in full[rng.randint(0, len(full)) :])
        for _ in range(3)
    ]
    try:
        expected: Any = (tuple(torch.broadcast_shapes(*shapes)),)
    except RuntimeError:
        expected = None
    given = dict(zip(("condition", "x", "y"), shapes, strict=True))
    assert LIBRARY["where"].output_shapes(given, {}) == expected


def test_a_dimension_inside_a_product_is_solved() -> None:
    shapes = {"x": (2, 6, 5, 5), "weight": (9, 2, 3, 3)}
    env = LIBRARY["conv2d"].bind(
        shapes, {"groups": 3, "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
    )
    assert env == {"N": 2, "G": 3, "C": 2, "H": 5, "W": 5, "Q": 3, "K": 3, "L": 3, "HO": 3, "WO": 3}


def test_an_attribute_named_by_a_dimension_is_solved_from_shapes() -> None:
    shapes = {"x": (2, 6, 5, 5), "weight": (9, 2, 3, 3)}
    filled = LIBRARY["conv2d"].fill({}, ("x", "weight"), shapes)
    assert filled == {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 3}
