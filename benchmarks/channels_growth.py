"""What a cut costs in memory, and how its time grows with the model. Linux.

    python benchmarks/channels_growth.py [--models resnet50 vit_b_16 densenet201] [--rounds 3]
        [--most 1600] [--cuts 128]

Memory: a fresh process for each model, captured; the most that it holds while half of everything is
cut (analysis, classes, the cut model), beyond what it held before, over the bytes of the model.

Cuts: CPU seconds of a step that halves every dimension, `once prune_l1`, not verified, for networks
of growing depth, and the slope of log(seconds) over log(cuts); over the tensors that all cuts slice
together, too: in a dense network a cut reaches every layer behind it.

Growth: CPU seconds of analysis and cut, without the capture, for chains of residual blocks and for
dense concatenations of 50 to 1600 nodes, and the slope of log(seconds) over log(size). The size of
a dense concatenation is not its number of nodes alone: every layer reads what all before it wrote,
so that the features that stand along its axes grow with the square. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

import report
import torchvision_cpu
from capture_models import torchvision_entries
from channels_cut import analysed, parameters, random_half
from channels_models import enliven
from channels_race import cut_each
from measure import Contestant, exponent, race
from torch import Tensor, fx, nn

from lissom.rewrite.capture.capture import Captured, capture
from lissom.rewrite.channels.analyse import analyse
from lissom.rewrite.channels.cut import cut
from lissom.rewrite.channels.flow import Flow
from lissom.rewrite.graph.index import GraphView
from lissom.rewrite.journal import Applied

MODELS = ("resnet50", "vit_b_16", "densenet201")
WIDTH, GROWTH = 16, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=MODELS, help="models of torchvision")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each chain")
    parser.add_argument("--most", type=int, default=1600, help="nodes of the longest chain")
    parser.add_argument("--cuts", type=int, default=128, help="blocks of the deepest network")
    parser.add_argument("--held", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.held:
        print(json.dumps(held(options.held)))
        return
    print(report.machine())
    if options.models:
        print(f"\n{memory(options.models)}")
    for name, deep in DEEP.items():
        print(f"\n{name}\n\n{cuts(deep, options.cuts, options.rounds)}")
    for name, build in FAMILIES.items() if options.most else ():
        print(f"\n{name}\n\n{growth(build, options.most, options.rounds)}")


# -- memory ----------------------------------------------------------------------------------------


def memory(models: Sequence[str]) -> str:
    head = ("model", "its bytes", "held before", "most while cutting", "more, in models")
    lines = []
    for name in models:
        found = _in_fresh_process(name)
        more = found["most"] - found["before"]
        cells = (f"{found[key] / 1e6:.0f} MB" for key in ("model", "before", "most"))
        lines.append([name, *cells, f"{more / found['model']:.2f}"])
    return report.table(head, lines)


def _in_fresh_process(name: str) -> dict[str, int]:
    command = [sys.executable, __file__, "--held", name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def held(name: str) -> dict[str, int]:
    """Bytes of the model, of this process before the cut, and the most that it held during it."""
    torchvision_cpu.prepare()
    build = next(build for model, _, build in torchvision_entries() if model == name)
    model, inputs = build()
    with torch.no_grad():
        captured = capture(model, inputs, prove=False)
    size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    # What was held at most while the model was captured would hide what comes now.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    smaller = half(captured)
    assert parameters(smaller) < parameters(model)
    return {"model": size, "before": before, "most": _status("VmHWM")}


def _status(key: str) -> int:
    """A number of bytes that the kernel knows of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def half(captured: Captured) -> fx.GraphModule:
    prepared = analysed(captured)
    return cut(prepared.flow, random_half(prepared.free))


# -- growth ----------------------------------------------------------------------------------------


class Residual(nn.Module):
    """A chain of residual blocks; seven nodes each."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, WIDTH, 1), nn.Conv2d(WIDTH, 4, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.ReLU(),
                nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.ReLU(),
            )
            for _ in range(blocks)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class Dense(nn.Module):
    """A chain of concatenations, each with all that came before; four nodes each."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        widths = [WIDTH + i * GROWTH for i in range(layers)]
        self.stem = nn.Conv2d(3, WIDTH, 1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, GROWTH, 1))
            for width in widths
        )
        self.head = nn.Conv2d(WIDTH + layers * GROWTH, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.head(x)


class Heads(nn.Module):
    """A chain of attention and MLPs, four heads of four each, with a norm and a sum around each."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 4)
        self.norm = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(blocks))
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(blocks))
        self.out = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(blocks))
        self.up = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(2).transpose(1, 2))
        parts = zip(self.norm, self.qkv, self.out, self.up, self.down, strict=True)
        for norm, qkv, out, up, down in parts:
            each = qkv(norm(x)).reshape(x.shape[0], -1, 3, 4, WIDTH // 4)
            q, k, v = each.permute(2, 0, 3, 1, 4).unbind(0)
            mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
            x = x + out(mixed.transpose(1, 2).flatten(2))
            x = x + down(torch.relu(up(x)))
        return self.head(x)


def plain(layers: int) -> nn.Module:
    """A chain of convolutions."""
    kinds = [(3, WIDTH), *[(WIDTH, WIDTH)] * (layers - 1)]
    parts = [
        part
        for i, o in kinds
        for part in (nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU())
    ]
    return nn.Sequential(*parts, nn.Conv2d(WIDTH, 4, 1))


DEEP: dict[str, tuple[Callable[[int], nn.Module], int]] = {
    "Chains of convolutions": (plain, 1),
    "Chains of residual blocks": (Residual, 1),
    "Chains of attention": (Heads, 4),
    "Dense concatenations": (Dense, 2),
}
"""How to build a network of so many blocks, and by how much its deepest one is shorter."""

FAMILIES: dict[str, Callable[[int], nn.Module]] = {
    "Chains of residual blocks": lambda nodes: Residual(max(1, nodes // 7)),
    "Dense concatenations": lambda nodes: Dense(max(1, nodes // 4)),
}


def cuts(deep: tuple[Callable[[int], nn.Module], int], most: int, rounds: int) -> str:
    build, share = deep
    seconds: dict[int, float] = {}
    reached: dict[int, int] = {}
    for blocks in _doubled(max(2, most // share // 16), most // share):
        model = build(blocks).eval()
        enliven(model)
        captured = capture(model, (torch.randn(1, 3, 4, 4),), prove=False)
        made = cut_each(captured).journal.of(Applied)
        runner = Contestant("cut", lambda made=captured: made, cut_each)
        seconds[len(made)] = min(race([runner], rounds).seconds["cut"])
        reached[len(made)] = sum(len(event.renewed) for event in made)
    lines = [
        [str(n), str(reached[n]), report.seconds(spent), f"{1e3 * spent / n:.2f} ms"]
        for n, spent in seconds.items()
    ]
    over = exponent(seconds), exponent({reached[n]: spent for n, spent in seconds.items()})
    told = "exponent over cuts {:.2f}, over tensors cut {:.2f}".format(*over)
    head = ("cuts", "tensors cut", "CPU: the step", "each cut")
    return f"{report.table(head, lines)}\n\n{told}"


def growth(build: Callable[[int], nn.Module], most: int, rounds: int) -> str:
    sizes: dict[int, int] = {}
    by_nodes: dict[int, float] = {}
    for nodes in _doubled(50, most):
        model = build(nodes).eval()
        enliven(model)
        captured = capture(model, (torch.randn(1, 3, 4, 4),), prove=False)
        count = len(captured.module.graph.nodes)
        sizes[count] = count + labels(analyse(GraphView(captured.module)))
        runner = Contestant("cut", lambda made=captured: made, half)
        by_nodes[count] = min(race([runner], rounds).seconds["cut"])
    lines = [
        [str(n), str(sizes[n]), report.seconds(spent), f"{1e6 * spent / sizes[n]:.2g} us"]
        for n, spent in by_nodes.items()
    ]
    by_size = {sizes[n]: spent for n, spent in by_nodes.items()}
    exponents = f"exponent over nodes {exponent(by_nodes):.2f}, over both {exponent(by_size):.2f}"
    head = ("nodes", "nodes and labels", "CPU: analysis and cut", "each")
    return f"{report.table(head, lines)}\n\n{exponents}"


def _doubled(first: int, most: int) -> Iterator[int]:
    while first <= most:
        yield first
        first *= 2


def labels(flow: Flow) -> int:
    """How many features stand along the axes of values and parameters, all told."""
    tracks = [track for results in flow.values.values() for own in results for track in own]
    tracks += [track for own in flow.params.values() for track in own]
    return sum(track.numel() for track in tracks)


if __name__ == "__main__":
    main()
