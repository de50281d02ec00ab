"""Damage and forgery of the files of an artifact: found before anything of them is used."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx

from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.store.folder import load, save

from .stored import Small, forge, refused, sign


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    module = fx.symbolic_trace(Small().eval())
    return save(module, tmp_path / "artifact", {"plan.json": b"{}"})


# -- damage ----------------------------------------------------------------------------------------


def test_every_flipped_byte_is_found(folder: Path) -> None:
    """H27, I47, I59."""
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for position in range(len(whole)):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << (position % 8)
            path.write_bytes(damaged)
            assert refused(folder) in ("A021", "A024"), (path.name, position)
        path.write_bytes(whole)
    load(folder)


def test_every_bit_of_the_manifest_counts(folder: Path) -> None:
    """I47."""
    path = folder / "manifest.json"
    whole = path.read_bytes()
    generator = random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        assert refused(folder) == "A021"


@pytest.mark.parametrize(
    "name", ["manifest.json", "graph.json", "weights.safetensors", "plan.json"]
)
def test_truncated_and_longer_files_are_found(folder: Path, name: str) -> None:
    """H27, I48."""
    path = folder / name
    whole = path.read_bytes()
    for length in {0, 1, 7, 8, len(whole) // 2, len(whole) - 1}:
        path.write_bytes(whole[: min(length, len(whole) - 1)])
        assert refused(folder) == "A021"
    path.write_bytes(whole + b" ")
    assert refused(folder) == "A021"


def test_swapped_missing_and_additional_files_are_found(folder: Path, tmp_path: Path) -> None:
    """I49."""
    swapped = shutil.copytree(folder, tmp_path / "swapped")
    (swapped / "plan.json").write_bytes((folder / "graph.json").read_bytes())
    assert refused(swapped) == "A021"
    for name in os.listdir(folder):
        part = shutil.copytree(folder, tmp_path / f"without_{name}")
        (part / name).unlink()
        assert refused(part) == "A020"
    (folder / "extra.pkl").write_bytes(b"cos\nsystem\n")
    assert refused(folder) == "A022"


def test_weights_of_another_artifact_are_found(folder: Path, tmp_path: Path) -> None:
    """I49."""
    torch.manual_seed(1)
    other = save(fx.symbolic_trace(Small().eval()), tmp_path / "other")
    shutil.copy(other / "weights.safetensors", folder / "weights.safetensors")
    assert refused(folder) == "A021"


def test_links_pipes_and_folders_are_not_read(folder: Path, tmp_path: Path) -> None:
    """I52, I54."""
    path = folder / "weights.safetensors"
    moved = tmp_path / "elsewhere"
    path.rename(moved)
    path.symlink_to(moved)
    assert refused(folder) == "A023"
    path.unlink()
    os.mkfifo(path)
    assert refused(folder) == "A023"
    path.unlink()
    path.mkdir()
    assert refused(folder) in ("A020", "A023")
    path.rmdir()
    path.symlink_to("/dev/zero")
    assert refused(folder) == "A023"


def test_a_link_put_there_after_the_check_is_not_followed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I52."""
    path = folder / "weights.safetensors"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    monkeypatch.setattr(Path, "is_symlink", lambda self: False)
    assert refused(folder) == "A020"


def test_no_folder_and_another_kind_of_folder(tmp_path: Path) -> None:
    assert refused(tmp_path / "none") == "A020"
    (tmp_path / "file").write_bytes(b"")
    assert refused(tmp_path / "file") == "A020"
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty") == "A020"


def test_unknown_format_names_the_lissom_that_reads_it(folder: Path) -> None:
    """H27, I58."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest.pop("self")
    sign(folder, {**manifest, "format": 2, "lissom": "9.9.9", "novelty": []})
    with pytest.raises(LissomError, match=r"A024(.|\n)*format 2(.|\n)*install lissom 9\.9\.9"):
        load(folder)
    sign(folder, {**manifest, "format": True})
    assert refused(folder) == "A024"


# -- a manifest with right hashes ------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "../plan.json",
        "/etc/passwd",
        "a\\b.json",
        "C:x.json",
        "nul.json",
        "PLAN.json",
        ".json",
        "a/b.json",
    ],
)
def test_names_beyond_the_folder_are_refused(folder: Path, name: str) -> None:
    """I51, I55."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest.pop("self")
    manifest["files"][name] = manifest["files"]["plan.json"]
    sign(folder, manifest)
    assert refused(folder) == "A004"
    with pytest.raises(LissomError, match="A004"):
        save(fx.symbolic_trace(Small().eval()), folder, {name: b""})


@pytest.mark.parametrize("size", [-1, 2**63, 10**30, 1.0, "2", None, True])
def test_sizes_that_no_file_has_are_refused(folder: Path, size: object) -> None:
    """I56."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest.pop("self")
    manifest["files"]["plan.json"]["size"] = size
    sign(folder, manifest)
    assert refused(folder) in ("A018", "A025")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"[" * 100_000,
        b'{"a":1,"a":1}',
        b'{"a":1e400}',
        b'{"a":NaN}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"modules": []}',
        b"\xff\xfe{\x00}\x00",
        b'"\xed\xa0\x80"',
    ],
)
def test_json_of_another_spelling_is_refused(folder: Path, text: bytes) -> None:
    """I50."""
    forge(folder, graph=text)
    assert refused(folder) == "A025"


# -- weights with right hashes ---------------------------------------------------------------------


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def with_header(text: bytes, body: bytes) -> bytes:
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def test_weights_that_disagree_with_the_graph_are_refused(folder: Path) -> None:
    """I48, I50, I60."""
    content = (folder / "weights.safetensors").read_bytes()
    header, body = header_of(content)
    first, *_ = header
    other = json.dumps({**header, first: {**header[first], "dtype": "I32"}}).encode()
    spare = json.dumps(
        {**header, "x": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}
    ).encode()
    twice = json.dumps(header).encode()[:-1] + b"," + json.dumps(header).encode()[1:]
    bad = {
        "empty": b"",
        "short": content[:9],
        "long header": struct.pack("<Q", 2**63) + content[8:],
        "cut body": content[:-1],
        "long body": content + b"\0",
        "other dtype": with_header(other, body),
        "spare tensor": with_header(spare, body),
        "repeated keys": with_header(twice, body),
        "no object": with_header(b"[]", body),
        "deep header": with_header(b"[" * 50_000, body),
    }
    for case, data in bad.items():
        forge(folder, weights=data)
        assert refused(folder) in ("A025", "A027"), case
    forge(folder, weights=content)
    load(folder)


def test_a_pickle_in_place_of_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    """I31."""
    torch.save({"weight": torch.ones(2)}, tmp_path / "pickled")
    forge(folder, weights=(tmp_path / "pickled").read_bytes())
    assert refused(folder) == "A027"


def test_random_changes_with_right_hashes_never_crash(folder: Path) -> None:
    """Either the very graph is read or a diagnostic says why not: no other exception, no hang."""
    graph = (folder / "graph.json").read_bytes()
    generator = random.Random(0)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(300):
        text = bytearray(graph)
        for _ in range(generator.randrange(1, 4)):
            start = generator.randrange(len(text))
            text[start : start + generator.randrange(3)] = generator.choice(
                [b"", b"0", b"9", b"null", b"{}", b"[]", b'"', b"-1", b"true", b"a"]
            )
        forge(folder, graph=bytes(text))
        try:
            load(folder)
            outcomes["read"] += 1
        except LissomError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 250
