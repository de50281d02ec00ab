"""Whether two checkouts give the same results, bit for bit: random networks, and the examples whose
data is at hand.

    python benchmarks/same_results.py OTHER_CHECKOUT [--graphs 500] [--seconds 600]

Each network is compiled with exact rules, low-rank layers and a cut of channels, by this checkout
and by the other one, in a process of each. Compared are the code of the graph, every tensor of the
result, and which rule changed which place. A network that one of them refuses has the code of the
refusal in the place of a result. Say this before and after a change of the engine's shape.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

PROGRAM = """
pipeline all {
  data calib = sample("train", 8)
  budget drift(outputs) <= 1000%
  stage clean { fixpoint { fold_bn; fold_bn_linear; merge_pointwise; drop_dropout; drop_identity } }
  stage factor { once low_rank_linear(energy = 95%) }
  stage cut { once prune_l1(ratio = 50%, multiple = 1) }
}
"""


def network(seed: int) -> tuple[Any, tuple[Any, ...]]:
    """A random network of convolutions, norms, activations, sums and concatenations."""
    import torch
    from torch import nn

    draw = random.Random(seed)
    torch.manual_seed(seed)
    wide, kinds = draw.choice((4, 6, 8)), []
    layers, channels = nn.ModuleList(), 3
    for _ in range(draw.randint(2, 7)):
        kind = draw.choice(("conv", "conv", "bottleneck", "residual", "branches"))
        out = channels if kind == "residual" else wide * draw.choice((1, 2))
        kernel = draw.choice((1, 3))
        parts = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=draw.random() < 0.5),
                nn.BatchNorm2d(out) if draw.random() < 0.7 else nn.Identity(),
                draw.choice((nn.ReLU, nn.SiLU, nn.Hardtanh, nn.Identity))(),
            )
            for _ in range(2 if kind == "branches" else 1)
        )
        if kind == "bottleneck":
            parts[0].append(nn.Conv2d(out, out, 1))
        layers.append(parts)
        kinds.append(kind)
        channels = out * len(parts)
    head = nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(32, 10),
    )

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.head = layers, head

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for parts, kind in zip(self.layers, kinds, strict=True):
                found = [part(x) for part in parts]
                x = x + found[0] if kind == "residual" else torch.cat(found, 1)
            return self.head(x)

    model = Network()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval(), (torch.randn(2, 3, 8, 8),)


def digest(result: Any) -> str:
    """SHA-256 of the code, the tensors and the places of a result."""
    found = hashlib.sha256(result.model.code.encode())
    for name, tensor in sorted(result.model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().contiguous().numpy().tobytes())
    for event in result.applied:
        found.update(f"{event.rule} {event.site}".encode())
    return f"{len(result.applied)} rewrites, {found.hexdigest()[:16]}"


def compiled(seed: int) -> str:
    import torch

    import lissom

    model, inputs = network(seed)
    data = [(torch.randn(8, 3, 8, 8), torch.zeros(8, dtype=torch.long))]
    try:
        return digest(lissom.compile(model, PROGRAM, inputs=inputs, data=lambda split: data))
    except lissom.LissomError as error:
        return f"refused: {error.diagnostics[0].code}"


def example(folder: Path) -> str:
    """One of the examples, as `lissom apply` runs it; the code of the refusal without its data."""
    import tempfile

    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "lissom", "apply", f"{folder / 'model.py'}:build"]
        command += [str(folder / "shrink.lissom"), "--allow", "approx", "-o", f"{out}/result"]
        run = subprocess.run(command, capture_output=True, text=True, env=os.environ)
        if run.returncode:
            return f"refused: exit code {run.returncode}"
        found = hashlib.sha256()
        for file in sorted(Path(out, "result").rglob("*")):
            if file.suffix == ".safetensors" or file.name == "graph.json":
                found.update(file.read_bytes())
        return found.hexdigest()[:16]


def here(graphs: int, seconds: float) -> None:
    """Prints one line for each network: its name and what came out."""
    import torch

    torch.set_num_threads(1)
    for folder in sorted(path.parent for path in (ROOT / "examples").glob("*/shrink.lissom")):
        print(json.dumps([folder.name, example(folder)]), flush=True)
    begun = time.monotonic()
    for seed in range(graphs):
        if time.monotonic() - begun > seconds:
            return
        print(json.dumps([f"network {seed}", compiled(seed)]), flush=True)


def asked(checkout: Path, options: argparse.Namespace) -> dict[str, str]:
    """What a checkout says, in a process of its own."""
    command = [sys.executable, __file__, "--here", "--graphs", str(options.graphs)]
    command += ["--seconds", str(options.seconds), str(checkout)]
    env = {**os.environ, "PYTHONPATH": str(checkout)}
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=checkout, env=env)
    return dict(json.loads(line) for line in run.stdout.splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path)
    parser.add_argument("--graphs", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        here(options.graphs, options.seconds)
        return
    own, other = asked(ROOT, options), asked(options.other.resolve(), options)
    both = own.keys() & other.keys()
    unlike = sorted(name for name in both if own[name] != other[name])
    for name in unlike:
        print(f"{name}: {own[name]} here, {other[name]} there")
    refused = sum(own[name].startswith("refused") for name in both)
    print(f"{len(both)} compared, {refused} of them refused by both, {len(unlike)} differ")
    sys.exit(bool(unlike))


if __name__ == "__main__":
    main()
