"""What certificates and `lissom doctor` say of the processor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lissom.__main__ import main
from lissom.rewrite.evidence.certificate import environment
from lissom.rewrite.measure import processor as processor_module
from lissom.rewrite.measure.processor import LIMITS, processor, processor_name

LISTED = (
    "processor\t: 0\ncpu family\t: 6\nmodel\t\t: 7\nmodel name\t: Some Maker 9000\n"
    "flags\t\t: fpu avx2 amx_tile\n\n"
)


@pytest.fixture(autouse=True)
def anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the machine is like is asked again, before and after."""
    for name in LIMITS:
        monkeypatch.delenv(name, raising=False)
    processor_module._hardware.cache_clear()
    yield
    processor_module._hardware.cache_clear()


def listed(patch: pytest.MonkeyPatch, folder: Path, text: str) -> None:
    """A torch that tells nothing, on a machine that lists this."""
    (folder / "cpuinfo").write_text(text)
    patch.setattr(processor_module, "CPUINFO", folder / "cpuinfo")
    patch.delattr(torch.cpu, "get_capabilities", raising=False)


def test_certificates_name_processor_and_instructions() -> None:
    found = environment()
    assert found["cpu"]
    assert found["instructions"] == torch.backends.cpu.get_cpu_capability()
    assert found["amx"] in ("yes", "no")
    assert "limits" not in found


@pytest.mark.parametrize(("flags", "amx"), [("amx_tile", "yes"), ("sse2", "no")])
def test_what_torch_does_not_tell_is_read_from_the_machine(
    flags: str, amx: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listed(monkeypatch, tmp_path, LISTED.replace("amx_tile", flags))
    found = processor()
    assert (found["cpu"], found["amx"]) == ("Some Maker 9000 (family 6, model 7)", amx)
    assert ("AMX" in processor_name()) == (amx == "yes")


def test_a_machine_that_lists_nothing_is_named_by_its_kind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listed(monkeypatch, tmp_path, "")
    (tmp_path / "cpuinfo").unlink()
    assert processor()["cpu"]
    assert processor()["amx"] == "no"


def test_forbidden_instructions_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[Any]
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert processor_name().endswith("ONEDNN_MAX_CPU_ISA=AVX2")
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "ONEDNN_MAX_CPU_ISA=AVX2" in text
    assert processor()["cpu"] in text
