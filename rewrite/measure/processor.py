"""The processor that numbers come from, and the instructions that torch uses on it: kernels are
chosen by both, and so are their mistakes.
"""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

import torch

CPUINFO = Path("/proc/cpuinfo")
NUMBERS = ("cpu family", "model")
LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
"""Settings that keep torch from instructions which the processor has."""


HALVES = {
    "bfloat16": {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"},
    "float16": {"avx512_fp16", "amx_fp16", "avx_ne_convert", "fp16_arith", "asimdhp"},
}
"""The instructions that products of numbers of 16 bits run on, by the names of torch and Linux."""

ALLOWS = ("BF16", "FP16", "AMX", "AVX10", "AVX2_VNNI_2", "ALL", "DEFAULT")
"""Words of a limit that leaves some of these."""


def computes_in(half: str) -> bool:
    """Whether torch has instructions here for `bfloat16` or `float16`. Without them results are the
    same, and take longer than those of float32.
    """
    limits = [os.environ[key].upper() for key in LIMITS[:2] if os.environ.get(key)]
    allowed = all(any(word in limit for word in ALLOWS) for limit in limits)
    return allowed and not HALVES[half].isdisjoint(_features())


INTEGERS = {
    "avx512_core_amx": ("amx_int8", ("AMX", "AVX10_2", "ALL", "DEFAULT")),
    "avx512_core_vnni": ("avx512_vnni", ("AVX512_CORE_", "AVX10", "ALL", "DEFAULT")),
    "avx2_vnni": ("avx_vnni", ("VNNI", "AVX512_CORE_", "AVX10", "ALL", "DEFAULT")),
}
"""The instructions that sums of products of int8 run on, as oneDNN calls them, the fastest first:
what the processor has to have, and words of a limit that leaves them.
"""


def integer_instructions() -> str:
    """Those that oneDNN uses here; where there are none, what torch uses for other numbers."""
    limits = [os.environ[key].upper() for key in LIMITS[:2] if os.environ.get(key)]
    for name, (needed, words) in INTEGERS.items():
        allowed = all(any(word in limit for word in words) for limit in limits)
        if needed in _features() and allowed:
            return name
    return f"{torch.backends.cpu.get_cpu_capability()} without VNNI"


def processor() -> dict[str, str]:
    """The name of the processor, its instruction set as torch uses it, whether it has matrix tiles
    (AMX), and the settings that forbid instructions, where there are any.
    """
    name, amx = _hardware()
    limits = [f"{key}={os.environ[key]}" for key in LIMITS if os.environ.get(key)]
    return {
        "cpu": name,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "amx": "yes" if amx else "no",
        **({"limits": ", ".join(limits)} if limits else {}),
    }


def processor_name() -> str:
    """The same in a few words: `AMD EPYC, AVX512, ONEDNN_MAX_CPU_ISA=AVX2`."""
    found = processor()
    parts = [found["cpu"], found["instructions"], "AMX" if found["amx"] == "yes" else ""]
    return ", ".join(part for part in (*parts, found.get("limits", "")) if part)


@cache
def _features() -> frozenset[str]:
    """What the processor can do, as torch and the kernel tell."""
    ask = getattr(torch.cpu, "get_capabilities", None)
    told, listed = ask() if ask is not None else {}, _listed()
    flags = f"{listed.get('flags', '')} {listed.get('Features', '')}".split()
    return frozenset((*flags, *(name for name, has in told.items() if has is True)))


@cache
def _hardware() -> tuple[str, bool]:
    """Name, and whether there are matrix tiles. Older torch tells neither, and no torch the model
    number, without which some names are bare.
    """
    ask = getattr(torch.cpu, "get_capabilities", None)
    told, listed = ask() if ask is not None else {}, _listed()
    name = listed.get("model name") or told.get("cpu_name") or platform.processor()
    numbers = [f"{key.removeprefix('cpu ')} {listed[key]}" for key in NUMBERS if key in listed]
    amx = told.get("amx_tile", "amx_tile" in listed.get("flags", "").split())
    kind = f" ({', '.join(numbers)})" if numbers else ""
    return f"{name or platform.machine()}{kind}", bool(amx)


def _listed() -> dict[str, str]:
    """What the kernel lists of the first processor; nothing where it lists none."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    pairs = [line.partition(":") for line in lines]
    return {key.strip(): value.strip() for key, _, value in reversed(pairs)}
