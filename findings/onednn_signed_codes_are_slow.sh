#!/usr/bin/env bash
# onednn.qlinear_pointwise takes int8 activations, gives right sums, and takes hundreds of times as long as for uint8.
#
# Seen with: torch 2.13.0 (CPU, oneDNN 3.12, AVX-512 with VNNI, no AMX), Python 3.11
# Source: ONEDNN_VERBOSE=1 says `matmul,ref_int8:any` for src:s8 (on a weight packed as for any other), and
#   `brg_matmul:avx512_core_vnni` for src:u8
# Expected: a kernel like that for uint8, or a refusal; the operator's schema says nothing
# Seen: 10 x 384 by 384 x 384: 30 to 200 us for uint8 with zero point 128, 20 to 39 ms for int8, equal results. Signed codes plus
#   128 are uint8 codes with zero point 128, which is what to pass
#
# Installs the pinned package in a temporary folder and fails when the behaviour is another one. Needs VNNI without AMX.
set -euo pipefail
grep -q avx512_vnni /proc/cpuinfo || { echo "not seen here: no AVX-512 VNNI"; exit 0; }
if grep -q amx_int8 /proc/cpuinfo; then echo "not seen here: AMX"; exit 0; fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import statistics
import time

import torch

torch.set_num_threads(1)
torch.manual_seed(0)
operators, width = torch.ops.onednn, 384
signed = torch.randint(-127, 128, (10, width), dtype=torch.int8)
weight = torch.randint(-127, 128, (width, width), dtype=torch.int8)
packed = operators.qlinear_prepack(weight, [10, width])
scales, zeros = torch.ones(width), torch.zeros(width, dtype=torch.int32)


def product(codes: torch.Tensor, zero: int) -> torch.Tensor:
    given = (codes, 1.0, zero, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], "")
    return operators.qlinear_pointwise(*given)


CODES = {"int8": (signed, 0), "uint8": ((signed.int() + 128).to(torch.uint8), 128)}
seconds: dict[str, list[float]] = {name: [] for name in CODES}
for _ in range(12):
    for name, given in CODES.items():
        begun = time.perf_counter()
        product(*given)
        seconds[name].append(time.perf_counter() - begun)
middle = {name: statistics.median(found) for name, found in seconds.items()}
for name, found in middle.items():
    print(f"{name} codes: {1e6 * found:.0f} us")
wanted = signed.double() @ weight.double().t()
if not all(torch.equal(product(*given).double(), wanted) for given in CODES.values()):
    raise SystemExit("changed: other sums")
if middle["int8"] < 20 * middle["uint8"]:
    raise SystemExit("changed: int8 is no longer slow")
PYTHON
