"""Matching and replacing: lissom beside torch.fx's `replace_pattern` and onnxscript's rewriter.

    python benchmarks/rewriting.py [--sizes 1000 5000 20000 100000] [--nets resnet152 densenet201]
        [--rounds 3] [--skip-peers]

Everybody replaces the same pairs of ops by `tanh`: `relu(x + 1.0)` in a chain, and
`relu(batch_norm(x))` in networks. Time runs from a graph to the rewritten graph that can be called:
for lissom the index, the matching, the rewriting and the recompilation. A verified rewrite must
compute the same, so with verification on `relu(x + 1.0)` becomes one op that does just that.
"""

from __future__ import annotations

import argparse
import operator
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.subgraph_rewriter import replace_pattern
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))

import models
import report
from measure import Contestant, Times, exponent, race

from lissom.grammar.text.parse import parse
from lissom.grammar.tree import tree as t
from lissom.rewrite.apply.queries import QUESTIONS
from lissom.rewrite.capture.capture import capture
from lissom.rewrite.graph.snapshot import snapshot
from lissom.rewrite.journal import Journal
from lissom.rewrite.measure.samples import Samples
from lissom.rewrite.ops.spec import TensorSpec
from lissom.rewrite.ops.vocabulary import Vocabulary
from lissom.rewrite.pipeline.strategy import Runner
from lissom.rewrite.rules.rule import compile_rule
from lissom.rewrite.rules.state import State

OURS, VERIFIED = "lissom", "lissom, verified"
FX, ONNX = "torch.fx replace_pattern", "onnxscript rewriter"
PEERS_UP_TO = 20_000
SLOW_FROM = 20_000

CHAIN_RULE = "exact rule pair { match { h = add(x, 1.0); y = relu(h) } rewrite { y = tanh(x) } }"
NET_RULE = (
    "exact rule pair { match { h = batch_norm(x) as n; y = relu(h) } rewrite { y = tanh(x) } }"
)
SAME_RULE = """
op shifted_relu(x: f[...]) -> f[...] {
  trait elementwise
  meaning bench.shifted_relu(x)
}
exact rule pair {
  match { h = add(x, 1.0); y = relu(h) }
  rewrite { y = shifted_relu(x) }
}
"""


def shifted_relu(x: Tensor) -> Tensor:
    return torch.relu(x + 1.0)


def chain_pattern(x: Tensor) -> Tensor:
    return torch.relu(x + 1.0)


def net_pattern(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.relu(F.batch_norm(x, mean, var, weight, bias))


def chain_replacement(x: Tensor) -> Tensor:
    return torch.tanh(x)


def net_replacement(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.tanh(x)


def chain(count: int) -> fx.GraphModule:
    """`count` ops in a row: add, relu, add, relu ..."""
    graph = fx.Graph()
    value = graph.placeholder("x")
    for _ in range(count // 2):
        value = graph.call_function(operator.add, (value, 1.0))
        value = graph.call_function(torch.relu, (value,))
    graph.output(value)
    for node in graph.nodes:
        node.meta["val"] = TensorSpec((4,), torch.float32)
    return fx.GraphModule(nn.Module(), graph)


@dataclass
class Task:
    """A graph, the pair of ops to replace, and how often it occurs."""

    name: str
    graph: Callable[[], fx.GraphModule]
    inputs: tuple[Tensor, ...]
    rule: str
    pattern: tuple[Callable[..., Tensor], Callable[..., Tensor]]
    onnx_pattern: tuple[Callable[..., Any], Callable[..., Any]]
    size: int | None = None
    matches: int = field(init=False)
    nodes: int = field(init=False)

    def __post_init__(self) -> None:
        graph = self.graph().graph
        ops = [node for node in graph.nodes if node.op == "call_function"]
        self.nodes, self.matches = len(ops), sum(_is_pair(node) for node in ops)


def _is_pair(node: fx.Node) -> bool:
    if node.target is not torch.relu:
        return False
    source: Any = node.args[0]
    by_one = source.target is operator.add and source.args[1] == 1.0
    return len(source.users) == 1 and (by_one or source.target is F.batch_norm)


def chain_task(count: int) -> Task:
    def build() -> fx.GraphModule:
        return chain(count)

    onnx = (lambda op, x, c: op.Relu(op.Add(x, c)), lambda op, x, **_: op.Tanh(x))
    pattern = (chain_pattern, chain_replacement)
    return Task(f"chain {count:,}", build, (torch.randn(4),), CHAIN_RULE, pattern, onnx, count)


def net_task(name: str) -> Task:
    """A network written with functions only, so that every tool can look inside."""
    images = models.example()
    module = capture(models.functional(models.build(name)), (images,)).module

    def pair(op: Any, x: Any, scale: Any, shift: Any, mean: Any, var: Any) -> Any:
        found = op.BatchNormalization(x, scale, shift, mean, var, _allow_other_attributes=True)
        return op.Relu(found)

    onnx = (pair, lambda op, x, **_: op.Tanh(x))
    pattern = (net_pattern, net_replacement)
    return Task(f"{name}-like", lambda: snapshot(module), (images,), NET_RULE, pattern, onnx)


# -- the contestants -------------------------------------------------------------------------------


def lissom(task: Task, verify: bool) -> Contestant:
    """From the graph to the rewritten, recompiled graph. The rule is parsed before."""
    file = parse(SAME_RULE if verify else task.rule)
    vocabulary = Vocabulary.from_files([file], {"bench.shifted_relu": shifted_relu})
    rule = compile_rule(file.all(t.Rule)[0], {})

    def run(module: fx.GraphModule) -> int:
        samples = Samples(task.inputs)
        state = State(module, vocabulary, {}, QUESTIONS, samples, Journal(), verify=verify)
        applied = Runner(state, "bench").fixpoint([rule])
        module.recompile()
        return applied

    slow = verify and task.nodes >= SLOW_FROM
    return Contestant(
        VERIFIED if verify else OURS, task.graph, run, _matched(task), 1 if slow else 1000
    )


def by_fx(task: Task) -> Contestant:
    """`replace_pattern` traces its pattern and recompiles the graph itself."""

    def run(module: fx.GraphModule) -> int:
        return len(replace_pattern(module, *task.pattern))

    most = 1 if task.nodes >= SLOW_FROM else 1000
    return Contestant(FX, task.graph, run, _matched(task), most)


def by_onnxscript(task: Task) -> Contestant:
    """The rewriter on the equivalent ONNX graph; reading and writing that graph is not counted."""
    import onnx_ir
    from onnxscript.rewriter import pattern

    proto = onnx_model(task.graph())
    rules = pattern.RewriteRuleSet([pattern.RewriteRule(*task.onnx_pattern)])
    run = rules.apply_to_model
    return Contestant(ONNX, lambda: onnx_ir.from_proto(proto), run, _matched(task))


def _matched(task: Task) -> Callable[[int], None]:
    def check(applied: int) -> None:
        if applied != task.matches:
            raise AssertionError(f"{task.name}: {applied} rewrites, {task.matches} pairs")

    return check


_ONNX_OPS: dict[Any, str] = {
    operator.add: "Add", torch.relu: "Relu", torch.cat: "Concat", torch.flatten: "Flatten",
    F.conv2d: "Conv", F.batch_norm: "BatchNormalization", F.linear: "Gemm",
    F.max_pool2d: "MaxPool", F.avg_pool2d: "AveragePool",
    F.adaptive_avg_pool2d: "GlobalAveragePool",
}  # fmt: skip


def onnx_model(module: fx.GraphModule) -> Any:
    """The graph's ops and edges in ONNX. Attributes are left out: no pattern asks for them."""
    from onnx import TensorProto, helper

    nodes = [node for node in module.graph.nodes if node.op != "output"]
    calls = [_onnx_node(node) for node in nodes if node.op == "call_function"]
    given = [node.name for node in nodes if node.op in ("placeholder", "get_attr")]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in given]
    result = helper.make_tensor_value_info(nodes[-1].name, TensorProto.FLOAT, None)
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    graph = helper.make_graph(calls, "graph", inputs, [result], [one])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def _onnx_node(node: fx.Node) -> Any:
    from onnx import helper

    names = [source.name for source in node.all_input_nodes]
    names += ["one"] if node.target is operator.add and len(names) == 1 else []
    if node.target is F.batch_norm:
        x, mean, var, weight, bias = names
        names = [x, weight, bias, mean, var]
    return helper.make_node(_ONNX_OPS[node.target], names, [node.name])


# -- the table -------------------------------------------------------------------------------------


def contestants(task: Task, skip_peers: bool) -> list[Contestant]:
    found = [lissom(task, False)]
    if task.size is not None and task.size <= PEERS_UP_TO:
        found.append(lissom(task, True))
    if not skip_peers and task.nodes <= PEERS_UP_TO:
        found += [by_fx(task), by_onnxscript(task)]
    return found


def row(task: Task, times: Times) -> list[str]:
    cells = [f"{task.name}, {task.matches:,} matches"]
    for name in (OURS, VERIFIED, FX, ONNX):
        cells.append(report.seconds(times.median(name)) if name in times.seconds else "--")
    for name in (FX, ONNX):
        known = name in times.seconds
        cells.append(report.times(times.ratio(name, OURS)) if known else "--")
    return cells


def growth(done: Sequence[tuple[Task, Times]]) -> str:
    """How each tool's time grows with the length of the chain."""
    lines = []
    for name in (OURS, VERIFIED, FX, ONNX):
        chains = [(task, times) for task, times in done if task.size and name in times.seconds]
        known = {task.size: times.median(name) for task, times in chains if task.size}
        if len(known) > 1:
            power = f"n^{exponent(known):.2f}"
            lines.append(f"{name} {power} ({min(known):,} to {max(known):,} nodes)")
    fits = "; ".join(lines) or "no tool ran at two lengths"
    return f"Time over nodes of the chain, least squares on both logarithms: {fits}"


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    race(contestants(chain_task(100), options.skip_peers), 1)
    tasks = [*map(chain_task, options.sizes), *map(net_task, options.nets)]
    done = [(task, race(contestants(task, options.skip_peers), options.rounds)) for task in tasks]
    columns = [OURS, VERIFIED, FX, ONNX, "replace_pattern / lissom", "onnxscript / lissom"]
    print(report.table(["graph", *columns], [row(task, times) for task, times in done]))
    print(f"\n{growth(done)}.")
    print(f"\nMedian CPU seconds of {options.rounds} interleaved rounds. {_left_out()}")
    print(f"\n{report.machine()}.")


def _left_out() -> str:
    return (
        f"From {SLOW_FROM:,} nodes on, replace_pattern and the verified row run one round: "
        f"they take long, and noise is small beside that. Beyond {PEERS_UP_TO:,} nodes only "
        "lissom without verification runs: replace_pattern's time grows with the square."
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[1000, 5000, 20_000, 100_000])
    parser.add_argument("--nets", nargs="*", default=["resnet152", "densenet201"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--skip-peers", action="store_true", help="measure lissom alone")
    return parser.parse_args()


if __name__ == "__main__":
    main()
