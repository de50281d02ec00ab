#!/usr/bin/env bash
# all_reduce with MAX over gloo: a NaN vanishes or stays by its place in the tensor, and can take the maximum with it.
#
# Seen with: torch 2.13.0 (CPU), Python 3.11
# Source: torch/csrc/distributed/c10d/ProcessGroupGlooDetail.hpp, toFunction, hands gloo::max of gloo/math.h to every
#   reduction: std::max(a, b), which is a where either one is NaN. Which rank comes first changes along the tensor
# Expected: NaN wherever a rank has one, as torch.maximum and amax give; or else the maximum of the others
# Seen: three ranks with 1, NaN and 3: NaN in a third of the numbers, 3 in a third, and 1, which is neither, in a third;
#   the same on all ranks. MIN drops NaN alike, SUM keeps it. So a shared range of activations can be finite and too small
#
# Installs the pinned package in a temporary folder and fails when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy
cat >"$folder/run.py" <<'PYTHON'
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD, LENGTH, VALUES = 3, 999, (1.0, float("nan"), 3.0)


def work(rank: int, path: str) -> None:
    rendezvous = {"init_method": f"file://{path}/meet", "timeout": timedelta(seconds=60)}
    dist.init_process_group("gloo", rank=rank, world_size=WORLD, **rendezvous)
    for name in ("MAX", "MIN", "SUM"):
        found = torch.full((LENGTH,), VALUES[rank])
        dist.all_reduce(found, getattr(dist.ReduceOp, name))
        torch.save(found, f"{path}/{name}{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(work, (sys.argv[1],), nprocs=WORLD)
    shares = {}
    for name in ("MAX", "MIN", "SUM"):
        ranks = [torch.load(f"{sys.argv[1]}/{name}{rank}") for rank in range(WORLD)]
        assert all(torch.equal(ranks[0].nan_to_num(-1), other.nan_to_num(-1)) for other in ranks)
        values, counts = ranks[0].nan_to_num(-1).unique(return_counts=True)
        shares[name] = dict(zip(values.tolist(), counts.tolist(), strict=True))
        told = (f"{'NaN' if value < 0 else value}: {n}" for value, n in shares[name].items())
        print(f"{name}: " + ", ".join(told))
    if shares["SUM"] != {-1.0: LENGTH}:
        raise SystemExit("changed: SUM loses NaN")
    if set(shares["MAX"]) != {-1.0, 1.0, 3.0}:
        raise SystemExit("changed: MAX treats NaN alike everywhere")
PYTHON
"$folder/venv/bin/python" "$folder/run.py" "$folder"
