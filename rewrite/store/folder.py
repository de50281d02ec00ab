"""The artifact: one folder that holds a compressed model and everything that says how it came to
be.

`graph.json` (nodes, modules, table of tensors), `weights.safetensors`, documents such as the
program text, the plan and the certificate, and `manifest.json` with the SHA-256 hash and the size
of every file and a hash of itself. Reading one runs no code from it: every name is looked up in a
table of what torch itself defines, and every file is compared with its hash before it is parsed.
Equal modules give equal bytes.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import fx

from ...grammar.diagnostics import Label, LissomError, fail
from ...grammar.documents import sha256
from .files import folder_names, read_file, write_folder
from .graph import data_table, decode_graph, encode_graph
from .rebuild import read_data
from .tensors import MAX_BYTES
from .values import canonical_json, fields, malformed, parse_json

FORMAT = 1
MANIFEST, GRAPH, WEIGHTS = "manifest.json", "graph.json", "weights.safetensors"
_NEEDED = (MANIFEST, GRAPH, WEIGHTS)
_MAX_JSON = 64 * 2**20
_MAX_DOCUMENT = 256 * 2**20
_MAX_FILES = 64
_LIMITS = {MANIFEST: 2**20, GRAPH: _MAX_JSON, WEIGHTS: MAX_BYTES + 100 * 2**20}
# Lower case only, so that no two names meet on a file system that ignores case.
_DOCUMENT = re.compile(r"[a-z][a-z0-9_-]{0,63}\.[a-z][a-z0-9]{0,15}")
_DEVICES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{port}{n}" for port in ("com", "lpt") for n in range(10)),
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """What an artifact holds: the module on the CPU in the mode it was saved in, the documents, the
    manifest.
    """

    module: fx.GraphModule
    documents: dict[str, bytes] = field(repr=False)
    manifest: dict[str, Any] = field(repr=False)


def save(
    module: fx.GraphModule, folder: Path, documents: Mapping[str, bytes] | None = None
) -> Path:
    """Write an artifact, in one step, replacing an artifact that is already there; returns its
    path.

    Raises A001 or A010 to A018 for what cannot be stored, A002 where the disk refuses, A003 where
    the folder holds anything but an artifact, A004 for the name of a document. After any of them
    the old folder is untouched.
    """
    documents = dict(documents or {})
    for name, content in documents.items():
        _require_document_name(name)
        _require_bytes(name, content)
    _require_replaceable(Path(folder))
    value, data = encode_graph(module)
    files = {GRAPH: canonical_json(value), WEIGHTS: safetensors.torch.save(data), **documents}
    for name, content in files.items():
        _require_size(name, len(content))
    return write_folder(Path(folder), {**files, MANIFEST: _manifest(files)})


def load(folder: Path) -> Loaded:
    """Read and check an artifact. Runs nothing from it; raises a `LissomError` A0xx for anything
    out of order.
    """
    folder = Path(folder)
    names = folder_names(folder)
    manifest = _read_manifest(folder)
    contents = {
        name: _read_checked(folder, name, digest, size)
        for name, (digest, size) in _listed(manifest, names, folder).items()
    }
    value = parse_json(contents.pop(GRAPH), GRAPH)
    module = decode_graph(value, read_data(contents.pop(WEIGHTS), data_table(value)))
    return Loaded(module, contents, manifest)


def file_bytes(folder: Path) -> int:
    """Bytes on disk of what is needed to run: graph, weights and manifest. Raises A020 where one is
    missing.
    """
    present = folder_names(Path(folder))
    for name in _NEEDED:
        if name not in present:
            raise _wrong("A020", Path(folder), name)
    return sum(os.path.getsize(Path(folder) / name) for name in _NEEDED)


# -- the manifest ----------------------------------------------------------------------------------


def _manifest(files: Mapping[str, bytes]) -> bytes:
    body: dict[str, Any] = {
        "format": FORMAT,
        "lissom": _own_version(),
        "torch": torch.__version__,
        "files": {
            name: {"sha256": sha256(data), "size": len(data)} for name, data in files.items()
        },
    }
    return canonical_json(body | {"self": sha256(canonical_json(body))})


def _own_version() -> str:
    try:
        return importlib.metadata.version("lissom")
    except importlib.metadata.PackageNotFoundError:
        return "0 (not installed)"


def _read_manifest(folder: Path) -> dict[str, Any]:
    if not os.path.lexists(folder / MANIFEST):
        raise _wrong("A020", folder, MANIFEST)
    content = read_file(folder / MANIFEST, _LIMITS[MANIFEST])
    try:
        manifest = parse_json(content, MANIFEST)
    except LissomError as error:
        raise _wrong("A021", folder, MANIFEST) from error
    # Every version of the format keeps this much: an object, `self` over the rest, `format`, and
    # who wrote it.
    if type(manifest) is not dict:
        raise _wrong("A021", folder, MANIFEST)
    body = {key: value for key, value in manifest.items() if key != "self"}
    if manifest.get("self") != sha256(canonical_json(body)):
        raise _wrong("A021", folder, MANIFEST)
    _require_version(manifest, folder)
    fields(manifest, MANIFEST, format=int, lissom=str, torch=str, files=dict, self=str)
    return manifest


def _require_version(manifest: dict[str, Any], folder: Path) -> None:
    version = manifest.get("format")
    if type(version) is int and version == FORMAT:
        return
    raise fail(
        "A024",
        f"`{folder}` has the artifact format {version!r}; this lissom reads format {FORMAT}",
        Label(None, where=str(folder / MANIFEST)),
        note=f"it was written by lissom {manifest.get('lissom')!r}",
        help=f"install lissom {manifest.get('lissom')} or newer to read it",
    )


def _listed(manifest: dict[str, Any], names: list[str], folder: Path) -> dict[str, tuple[str, int]]:
    """Name -> (hash, size), after the folder has been found to hold exactly the listed files."""
    listed = {}
    for name, entry in manifest["files"].items():
        if name not in (GRAPH, WEIGHTS):
            _require_document_name(name)
        digest, size = fields(entry, MANIFEST, sha256=str, size=int)
        _require_size(name, size)
        listed[name] = (digest, size)
    if len(listed) > _MAX_FILES or not {GRAPH, WEIGHTS} <= listed.keys():
        raise malformed("does not list a graph and its weights, or lists too many files", MANIFEST)
    for name in sorted({*listed, MANIFEST} - set(names)):
        raise _wrong("A020", folder, name)
    for name in sorted(set(names) - {*listed, MANIFEST}):
        raise _wrong("A022", folder, name)
    return listed


def _read_checked(folder: Path, name: str, digest: str, size: int) -> bytes:
    path = folder / name
    if (
        os.path.lexists(path)
        and not path.is_symlink()
        and path.is_file()
        and os.path.getsize(path) != size
    ):
        raise _wrong("A021", folder, name)
    content = read_file(path, size)
    if len(content) != size or sha256(content) != digest:
        raise _wrong("A021", folder, name)
    return content


# -- checks and errors -----------------------------------------------------------------------------


def _require_document_name(name: object) -> None:
    plain = type(name) is str and bool(_DOCUMENT.fullmatch(name))
    if plain and name not in _NEEDED and str(name).partition(".")[0] not in _DEVICES:
        return
    raise fail(
        "A004",
        f"{name!r} is not the name of a document",
        Label(None, where=repr(name)),
        note="names are lower case ASCII with one ending, such as `plan.json`, and not one of "
        + ", ".join(_NEEDED),
        help="choose another name",
    )


def _require_bytes(name: str, content: object) -> None:
    if type(content) is not bytes:
        raise fail(
            "A004",
            f"the document `{name}` is a `{type(content).__qualname__}`, not bytes",
            Label(None, where=name),
            help='encode a text first: text.encode("utf-8")',
        )


def _require_size(name: str, size: int) -> None:
    limit = _LIMITS.get(name, _MAX_DOCUMENT)
    if not 0 <= size <= limit:
        raise fail(
            "A018",
            f"`{name}` has {size} bytes; an artifact holds at most {limit} of it",
            Label(None, where=name),
            help="split the model, or leave the document out",
        )


def _require_replaceable(folder: Path) -> None:
    """Only an artifact or an empty folder may be replaced: nobody's other files are removed by a
    save.
    """
    if not folder.is_dir():
        return
    names = folder_names(folder)
    listed = {MANIFEST, *_read_manifest(folder)["files"]} if MANIFEST in names else set()
    foreign = [name for name in names if name not in listed]
    if foreign:
        raise _wrong("A003", folder, foreign[0])


_WRONG = {
    "A003": (
        "`{folder}` holds `{name}`, which is not part of an artifact, and would be replaced",
        "",
        "save to a new folder, or move that file away first",
    ),
    "A020": (
        "`{folder}` has no `{name}`, so it is not a whole artifact",
        "",
        "give the path of a folder that lissom saved, or copy it again, with every file",
    ),
    "A021": (
        "`{name}` is damaged: it is not what was saved",
        "its size or SHA-256 hash is not the one recorded at saving; nothing of it was used",
        "copy the artifact again from where it came, or save it again",
    ),
    "A022": (
        "`{folder}` holds `{name}`, which its manifest does not list",
        "an artifact is exactly what was saved; another file may pose as a part of it",
        "move the file out of the folder",
    ),
}
"""What can be wrong with one file of an artifact: message, note and help by code."""


def _wrong(code: str, folder: Path, name: str) -> LissomError:
    message, note, hint = _WRONG[code]
    place = Label(None, where=str(folder / name))
    return fail(code, message.format(folder=folder, name=name), place, note=note, help=hint)
