"""Folding batch norms into the convolutions before them: lissom beside torch.fx's `fuse`.

    python benchmarks/folding.py [--nets resnet152 densenet201] [--rounds 3] [--threads 1]
        [--skip-peers]

`compile` is all of `lissom.compile`: it copies the model, captures and proves the graph, folds and,
with verification on, checks each fold and the whole model. `rewriting alone` starts from the
captured graph and is one index, one fixpoint, one recompilation. `fuse` copies, traces and folds.
Both must fold the same number of pairs, and give the same outputs in float64.
"""

from __future__ import annotations

import argparse
import copy
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

sys.path.insert(0, str(Path(__file__).parent))

import models
import report
from measure import Contestant, Times, race

import lissom
from lissom.grammar.library.program import program_of
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.apply.queries import QUESTIONS
from lissom.rewrite.capture.capture import capture
from lissom.rewrite.graph.snapshot import snapshot
from lissom.rewrite.journal import Journal
from lissom.rewrite.measure.samples import Samples
from lissom.rewrite.ops.vocabulary import Vocabulary
from lissom.rewrite.pipeline.strategy import Runner
from lissom.rewrite.rules.rule import CompiledRule, compile_rule
from lissom.rewrite.rules.state import State

PROGRAM = "pipeline p { stage s { fixpoint { fold_bn } } }"
FUSE = "torch.fx fuse"
OURS = ("rewriting alone", "rewriting alone, verified", "compile", "compile, verified")


def norms(module: nn.Module) -> int:
    """Batch norms that the graph of a traced module still calls."""
    if not isinstance(module, fx.GraphModule):
        return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())
    called = [n for n in module.graph.nodes if n.op == "call_module"]
    return sum(isinstance(module.get_submodule(n.target), nn.BatchNorm2d) for n in called)


def by_compile(model: nn.Module, verify: bool) -> nn.Module:
    return lissom.compile(model, PROGRAM, inputs=(_images(model),), verify=verify).model


def by_rewriting(module: fx.GraphModule, verify: bool, rule: CompiledRule) -> fx.GraphModule:
    """What is left of a compilation without capture, parsing and the check of the whole model."""
    samples, vocabulary = Samples((_images(module),)), Vocabulary.library()
    state = State(module, vocabulary, FUNCTIONS, QUESTIONS, samples, Journal(), verify=verify)
    Runner(state, "s").fixpoint([rule])
    module.recompile()
    return module


def _images(model: nn.Module) -> Tensor:
    return models.example().to(next(model.parameters()).dtype)


@functools.cache
def _rule() -> CompiledRule:
    source = program_of(PROGRAM).shelf.get("fold_bn")
    if source is None:
        raise LookupError("the library has no rule fold_bn")
    return compile_rule(source, {})


# -- the contestants -------------------------------------------------------------------------------


def contestants(model: nn.Module, skip_peers: bool) -> list[Contestant]:
    """Everybody, each with a check that as many pairs were folded as exist."""
    pairs = conv_bn_pairs(model)
    check = _leaves(norms(model) - pairs)
    captured = capture(model, (_images(model),)).module
    found = []
    for verify, suffix in ((False, ""), (True, ", verified")):
        alone = functools.partial(by_rewriting, verify=verify, rule=_rule())
        whole = functools.partial(by_compile, verify=verify)
        found += [
            Contestant(f"rewriting alone{suffix}", lambda: snapshot(captured), alone, check),
            Contestant(f"compile{suffix}", lambda: model, whole, check),
        ]
    return found if skip_peers else [*found, Contestant(FUSE, lambda: model, fuse, check)]


def _leaves(count: int) -> Callable[[nn.Module], None]:
    def check(module: nn.Module) -> None:
        if norms(module) != count:
            raise AssertionError(f"{norms(module)} batch norms are left, expected {count}")

    return check


def conv_bn_pairs(model: nn.Module) -> int:
    """Batch norms that read a convolution which nobody else reads."""
    traced = fx.symbolic_trace(model)
    parts: dict[Any, nn.Module] = dict(traced.named_modules())
    calls = [n for n in traced.graph.nodes if n.op == "call_module" and n.args[0].op == n.op]
    wanted = (nn.Conv2d, nn.BatchNorm2d)
    return sum(
        (type(parts[n.args[0].target]), type(parts[n.target])) == wanted
        and len(n.args[0].users) == 1
        for n in calls
    )


def check_outputs(model: nn.Module) -> float:
    """The largest relative difference of any tool's output in float64. Raises where it is no
    rounding.
    """
    double = copy.deepcopy(model).double()
    images = models.example(2).double()
    with torch.no_grad():
        expected = double(images)
        tools = (functools.partial(by_compile, verify=True), fuse)
        outputs = [tool(double)(images) for tool in tools]
    worst = max(float((out - expected).norm() / expected.norm()) for out in outputs)
    if not all(torch.allclose(out, expected, rtol=1e-9, atol=1e-9) for out in outputs):
        raise AssertionError(f"outputs differ by {worst:.2g}")
    return worst


# -- the table -------------------------------------------------------------------------------------


def row(name: str, model: nn.Module, times: Times) -> list[str]:
    cells = [f"{name}-like, {conv_bn_pairs(model)} of {norms(model)} batch norms fold"]
    cells += [report.seconds(times.median(one)) for one in OURS]
    if FUSE not in times.seconds:
        return [*cells, "--", "--", "--"]
    cells.append(report.seconds(times.median(FUSE)))
    return cells + [report.times(times.ratio(FUSE, one)) for one in OURS[2:]]


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    rows, worst = [], 0.0
    for name in options.nets:
        model = models.build(name)
        worst = max(worst, check_outputs(model))
        times = race(contestants(model, options.skip_peers), options.rounds)
        rows.append(row(name, model, times))
    columns = [*OURS, FUSE, "fuse / compile", "fuse / compile, verified"]
    print(report.table(["network", *columns], rows))
    print(f"\nMedian CPU seconds of {options.rounds} interleaved rounds. {_how(worst)}")
    print(f"\n{report.machine()}.")


def _how(worst: float) -> str:
    side = models.SIDE
    return (
        f"Example images are 3 x {side} x {side}. In float64 the outputs of lissom's and of fuse's "
        f"result differ from the model's by at most {worst:.1g} (relative L2); both fold every "
        "batch norm that directly follows a convolution."
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nets", nargs="*", default=["resnet152", "densenet201"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch, for every tool")
    parser.add_argument("--skip-peers", action="store_true", help="measure lissom alone")
    return parser.parse_args()


if __name__ == "__main__":
    main()
