"""Accuracy against the share of removed channels, for each importance function, without retraining.

    python benchmarks/importance.py [--models mnist_cnn fashion_resnet] [--scores l1 taylor ...]
        [--ratios 0 10 ... 80] [--seeds 0 1 2] [--draws 5] [--test-at 30 50]
        [--out results.jsonl] [--table] [--plot docs/figures/importance.svg]

The same rule cuts the same share of every dimension that can be cut; only the score that chooses
the channels differs. Data-driven scores see the first 256 training images. Points are accuracies on
the validation split; at the ratios of `--test-at` the test split is measured too. `random` is the
control. A network with batch norms is measured a second time after these 256 images have passed
through it and made its running statistics anew; no weight changes. A model is an example's name or
the path of a model file; where its `build` takes a seed, as many separately trained networks are
cut as `--seeds` names. Lines of the file that `--out` names are not measured again. `--table`
prints Markdown, `--plot` writes the figure.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

import importance_show as show

import lissom
from lissom.model_file import load_module
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.journal import StageEnd
from lissom.rewrite.measure.batches import first

Row = dict[str, Any]
Key = tuple[Any, ...]

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("mnist_cnn", "fashion_resnet")
CALIBRATION = 256
PLAIN = "l1_over(writers(D))"
"""The score that the library's rule is written with, and that the others take the place of."""

SCORES = {
    "l1": PLAIN,
    "l2": "l2_over(writers(D))",
    "median": "median_over(writers(D))",
    "readers": "l1_over(readers(D))",
    "scale": "l1_over(scales(D))",
    "apoz": "activity_over(activations(D))",
    "mean": "mean_over(activations(D))",
    "taylor": "taylor_over(writers(D), gradients(writers(D)))",
    "hessian": "hessian_over(writers(D), fisher(writers(D)))",
}
NORM = nn.modules.batchnorm._BatchNorm
NEEDS_NORMS = ("scale",)
"""Scores that are asked of a model only if it has batch norms."""


@dataclass(frozen=True)
class Network:
    """One trained network, with the data and the metric of its model file."""

    model: str
    seed: int
    module: ModuleType
    net: nn.Module
    data: Callable[[str], list[Any]]

    def measured(self, net: nn.Module, split: str) -> float:
        metric = next(iter(self.module.metrics.values()))
        return metric(net, self.data(split))

    @property
    def has_norms(self) -> bool:
        return any(isinstance(module, NORM) for module in self.net.modules())


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    torch.set_num_threads(1)
    rows = list(_run(options))
    if options.table:
        print(show.markdown(rows))
    if options.plot:
        show.plot(rows, options.plot)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS, help="examples, or model files")
    names = [*SCORES, show.RANDOM]
    parser.add_argument("--scores", nargs="+", choices=names, metavar="SCORE", default=names,
                        help=", ".join(names))  # fmt: skip
    parser.add_argument("--ratios", nargs="+", type=_percent, default=range(0, 90, 10))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="trained networks")
    parser.add_argument("--draws", type=int, default=5, help="random choices of each network")
    parser.add_argument("--test-at", nargs="*", type=_percent, default=[30, 50])
    parser.add_argument("--out", type=Path, help="append results to this file, skip what it holds")
    parser.add_argument("--table", action="store_true", help="print Markdown tables")
    parser.add_argument("--plot", type=Path, help="write the figure (SVG)")
    return parser.parse_args(arguments)


def _percent(text: str) -> int:
    if not text.isdigit() or int(text) >= 100:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of percent from 0 to 99")
    return int(text)


# -- what is measured ------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> Iterator[Row]:
    """The rows that are asked for: those of an earlier run, and the new ones as they come."""
    known = {_key(row): row for row in _read(options.out)}
    for place in options.models:
        for network in _networks(place, options.seeds):
            for key in _keys(network, options):
                row = known.get(key) or _measured(network, key, options.test_at)
                if key not in known:
                    _note(row, options.out)
                yield row


def _key(row: Row) -> Key:
    return row["model"], row["network"], row["score"], row["draw"], row["ratio"]


def _keys(network: Network, options: argparse.Namespace) -> Iterator[Key]:
    """The whole network once, then every score at every ratio."""
    yield network.model, network.seed, show.WHOLE, 0, 0
    for score in options.scores:
        if score in NEEDS_NORMS and not network.has_norms:
            continue
        for draw in range(options.draws if score == show.RANDOM else 1):
            for ratio in (each for each in options.ratios if each > 0):
                yield network.model, network.seed, score, draw, ratio


def _read(path: Path | None) -> list[Row]:
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _note(row: Row, out: Path | None) -> None:
    print(*_key(row), f"{row['valid']:.4f}", f"{row['cpu_s']} s", file=sys.stderr, flush=True)
    if out:
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _networks(place: str, seeds: Sequence[int]) -> Iterator[Network]:
    """The network of a model file, or one for each seed that its `build` takes."""
    path = Path(place) if place.endswith(".py") else ROOT / "examples" / place / "model.py"
    module, data = load_module(str(path)), None
    several = "seed" in inspect.signature(module.build).parameters
    for seed in seeds if several else [0]:
        net = module.build(seed) if several else module.build()
        data = data or cache(module.data)
        yield Network(path.parent.name, seed, module, net, data)


def _measured(network: Network, key: Key, test_at: Sequence[int]) -> Row:
    _, _, score, draw, ratio = key
    begun = time.process_time()
    result = None if score == show.WHOLE else _cut(network, _score(score, draw), ratio)
    seconds = time.process_time() - begun
    net = result.model if result else network.net
    row = dict(zip(("model", "network", "score", "draw", "ratio"), key, strict=True))
    row["params"] = sum(parameter.numel() for parameter in net.parameters())
    row["images"] = sum(len(y) for _, y in network.data("valid"))
    row |= _accuracies(network, net, "", tested=ratio in test_at or not ratio)
    if network.has_norms:
        settled = _settled(net, network.data("train"))
        row |= _accuracies(network, settled, show.SETTLED, tested=ratio in test_at or not ratio)
    return row | {"cpu_s": round(seconds, 2)}


def _accuracies(network: Network, net: nn.Module, mark: str, *, tested: bool) -> Row:
    splits = ("valid", "test") if tested else ("valid",)
    return {split + mark: network.measured(net, split) for split in splits}


def _settled(net: nn.Module, batches: Sequence[Any]) -> nn.Module:
    """A copy whose batch norms have the statistics of the calibration images."""
    net = copy.deepcopy(net)
    norms = [module for module in net.modules() if isinstance(module, NORM)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # The plain mean over what passes.
        norm.train()
    with torch.no_grad():
        for x, _ in first(batches, CALIBRATION, lambda batch: len(batch[0])):
            net(x)
    return net.eval()


# -- the rule --------------------------------------------------------------------------------------


def _score(name: str, draw: int) -> str:
    return f"drawn(D, seed = {draw})" if name == show.RANDOM else SCORES[name]


def program(score: str, ratio: int) -> str:
    """The library's `prune_l1` with another score, under a budget that nothing breaks."""
    library = (ROOT / "passes" / "prune.lissom").read_text(encoding="utf-8")
    _, head, rest = library.partition("approx rule prune_l1(")
    text = head + rest[: rest.index("\n}\n") + 3]
    if text.count(PLAIN) != 1:
        raise ValueError(f"prune_l1 is expected to use {PLAIN} once")
    rule = text.replace("prune_l1", "prune").replace(PLAIN, score)
    return f"""{rule}
pipeline p {{
  data calib = sample("train", {CALIBRATION})
  budget drift(outputs) <= 1000000%
  stage cut {{ once prune(ratio = {ratio}%) }}
}}"""


def _cut(network: Network, score: str, ratio: int) -> lissom.Result:
    """The cut and verified network; raises where nothing was cut or the cut was taken back."""
    module = network.module
    result = lissom.compile(
        network.net,
        program(score, ratio),
        inputs=module.inputs(),
        data=network.data,
        metrics=module.metrics,
        functions=FUNCTIONS,
    )
    (end,) = result.journal.of(StageEnd)
    if not end.kept or not result.applied:
        raise ValueError(f"{score} at {ratio} % of {network.model}: {end.reason or 'nothing cut'}")
    return result


if __name__ == "__main__":
    sys.exit(main())
