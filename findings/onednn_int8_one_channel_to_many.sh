#!/usr/bin/env bash
# onednn.qconv_pointwise: 1 channel to more than 32 in each group, with a zero point, gives other numbers.
#
# Seen with: torch 2.13.0 (CPU, oneDNN 3.12), Python 3.11
# Source: aten/src/ATen/native/quantized/cpu/qconv.cpp hands the zero point to oneDNN as an attribute; its
#   AVX-512 kernels for one input channel in a group compensate for it a block of channels at a time
# Expected: sums of (code - zero point) * weight, as for every other number of channels
# Seen: right for 1 to 32 channels in each group, wrong in most results from 33 on; right without
#   a zero point, with 2 input channels in each group, and with kernels for AVX2, to which a CPU without
#   AVX-512 is kept
#
# Installs the pinned package in a temporary folder and fails when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import torch

onednn = torch.ops.onednn


def share(multiple, zero, inputs=1, groups=4):
    """How many results are wrong, of 1."""
    generator = torch.Generator().manual_seed(0)
    count, stride, edge, step = groups * multiple, [2, 2], [0, 0], [1, 1]
    codes = torch.randint(0, 256, (2, groups * inputs, 7, 7), dtype=torch.uint8, generator=generator)
    weight = torch.randint(-60, 61, (count, inputs, 3, 3), dtype=torch.int8, generator=generator)
    one = torch.ones(count)
    packed = onednn.qconv_prepack(weight, one, 1.0, zero, stride, edge, step, groups, None)
    zeros = torch.zeros(count, dtype=torch.int32)
    given = (codes, 1.0, zero, packed, one, zeros, None, stride, edge, step, groups)
    found = onednn.qconv_pointwise(*given, 1.0, 0, torch.float32, "none", [], "")
    exact = torch.conv2d(codes.double() - zero, weight.double(), None, stride, edge, step, groups)
    return (found != exact.float()).double().mean().item()


print({f"{n} channels, zero point {z}": share(n, z) for n in (1, 32, 33, 40) for z in (0, 79)})
print("2 input channels in each group:", share(40, 79, inputs=2))
if torch.backends.cpu.get_cpu_capability() != "AVX512":
    raise SystemExit("this CPU has no AVX-512: nothing to see")
if not (share(32, 79) == 0 and share(33, 79) > 0.5 and share(33, 0) == 0 and share(40, 79, 2) == 0):
    raise SystemExit("changed: see what is right now")
PYTHON
