"""Models inside wrappers, compiled parts, and what modules keep beside their weights."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn

from lissom.rewrite.capture.capture import Captured, capture
from lissom.rewrite.graph.building import assertions
from lissom.rewrite.graph.index import GraphView

from .captured import Lambda, codes, refusal, same

X = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3)
        self.norm = nn.BatchNorm1d(4)
        self.kept: Any = None

    def body(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.conv(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def small() -> Small:
    torch.manual_seed(0)
    return Small().eval()


def never(graph: fx.GraphModule, inputs: Any) -> Callable[..., Any]:
    """A backend of torch.compile that must not be asked for anything."""
    raise AssertionError("the model was compiled")


def ops(captured: Captured) -> list[str]:
    view = GraphView(captured.module)
    skipped = ("placeholder", "get_attr", "output")
    graph, left = captured.module.graph, assertions(captured.module.graph)
    found = [node for node in graph.nodes if node.op not in skipped and node not in left]
    nodes = [node for node in found if node.target is not operator.getitem]
    return [call.op.name if (call := view.call(node)) else str(node.target) for node in nodes]


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": lambda model: torch.compile(model, backend=never),
    "parallel": nn.DataParallel,
    "both": lambda model: torch.compile(nn.DataParallel(model), backend=never),
}


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("part", [False, True])
def test_a_wrapper_is_opened_and_never_run(name: str, part: bool) -> None:
    inner = small()
    wrapped = WRAPPERS[name](inner)
    model = nn.Sequential(wrapped, nn.ReLU()).eval() if part else wrapped
    if isinstance(wrapped, nn.DataParallel):
        wrapped.training = True
    captured = capture(model, (X,))
    assert ops(captured)[:3] == ["conv1d", "batch_norm", "relu"]
    assert same(captured, inner, X)
    prefix = "0." if part else ""
    assert f"{prefix}conv.weight" in captured.module.state_dict()


def test_a_wrapper_with_hooks_of_its_own_is_kept() -> None:
    model = nn.Sequential(nn.DataParallel(small())).eval()
    model[0].register_forward_hook(lambda module, args, output: output + 1)
    captured = capture(model, (X,))
    assert codes(captured) == ["M007"]
    assert same(captured, model, X)


def test_compiled_methods_and_functions_are_read_as_they_are_written() -> None:
    inner = small()
    inner.forward = torch.compile(inner.body, backend=never)  # type: ignore[method-assign]
    captured = capture(inner, (X,))
    assert ops(captured) == ["conv1d", "batch_norm", "relu"]
    assert {"conv.weight", "norm.running_mean"} <= captured.module.state_dict().keys()

    halved = torch.compile(lambda x: torch.relu(x) / 2, backend=never)
    assert ops(capture(Lambda(lambda self, x: halved(x)).eval(), (X,))) == ["relu", "div"]


@torch.jit.script
def gated(x: torch.Tensor, slope: float = 2.0) -> torch.Tensor:
    return x * torch.sigmoid(x * slope)


def test_a_scripted_function_is_read_as_it_was_written() -> None:
    model = small()
    model.kept = gated
    assert ops(capture(model, (X,))) == ["conv1d", "batch_norm", "relu"]
    captured = capture(Lambda(lambda self, x: gated(x), own=nn.Identity()).eval(), (X,))
    assert ops(captured) == ["mul", "sigmoid", "mul"]


def test_a_function_that_was_traced_has_no_text_and_stays_one_node() -> None:
    traced = torch.jit.trace(lambda x: x * 2 + 1, (X,))
    model = Lambda(lambda self, x: torch.relu(traced(x))).eval()
    captured = capture(model, (X,))
    assert captured.how == "trace"
    assert same(captured, model, torch.rand(4, 3, 6))


def test_a_scripted_part_is_no_cache() -> None:
    model = nn.Sequential(torch.jit.script(small())).eval()
    captured = capture(model, (X,))
    assert codes(captured) == []
    assert same(captured, model, X)


KEPT: dict[str, Callable[[torch.Tensor], Any]] = {
    "attribute": lambda out: out,
    "list": lambda out: [out, 1],
    "dict": lambda out: {"seen": [out]},
    "tuple": lambda out: (out, (out * 2).sum()),
    "object": lambda out: type("Record", (), {})(),
}


@pytest.mark.parametrize("how", KEPT)
def test_tensors_with_a_history_do_not_stand_in_the_way(how: str) -> None:
    model = small()
    out = model.conv(X)
    model.kept = KEPT[how](out)
    if how == "object":
        model.kept.loss = out.sum()
    captured = capture(model, (X,))
    assert ops(captured) == ["conv1d", "batch_norm", "relu"]
    assert same(captured, model, torch.rand(5, 3, 6))
    assert out.requires_grad


def test_what_cannot_be_copied_is_refused_by_name() -> None:
    model = small()
    model.kept = (number for number in (1, 2))
    found = refusal(model, X)
    assert found.code == "M004"
    assert "generator" in found.message
    assert found.labels[0].where == "kept"


def test_an_exported_program_runs_in_the_mode_that_it_was_exported_in() -> None:
    model = small()
    dims = ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(model, (X,), dynamic_shapes=dims).module()
    assert program.training
    captured = capture(program, (X,))
    assert ops(captured) == ["conv1d", "batch_norm", "relu"]
    assert same(captured, model, X)


def test_an_exported_program_that_trains_is_refused_all_the_same() -> None:
    model = small().train()
    program = torch.export.export(model, (X,)).module()
    assert refusal(program, X).code in ("M002", "M003")


EINOPS = {
    "heads": lambda e, x: e.rearrange(x, "b c (h l) -> b h (c l)", h=2),
    "mean": lambda e, x: e.reduce(x, "b c l -> b l", "mean"),
    "repeat": lambda e, x: e.repeat(x, "b c l -> b (r c) l", r=2),
}


@pytest.mark.parametrize("name", EINOPS)
def test_einops_computes_with_sizes_instead_of_looking_them_up(name: str) -> None:
    einops: Any = pytest.importorskip("einops")
    model = Lambda(lambda self, x: EINOPS[name](einops, x)).eval()
    captured = capture(model, (X,))
    assert captured.how == "trace"
    assert same(captured, model, torch.rand(5, 3, 10))
    assert set(ops(captured)) & {"reshape", "mean", "repeat", "expand"}
