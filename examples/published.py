"""How the examples find the published files they read, check them and say how to get them.

Only the standard library is imported here, for fetch.py runs before anything is installed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HOW = """{missing} was not found. Get it, in the repository, with
    python examples/fetch.py {example}
or with {these}:
    {commands}
LISSOM_DATA may name another folder than examples/.data."""


def folder() -> Path:
    """Where everything fetched goes and is looked for: LISSOM_DATA, or `.data` beside this file."""
    return Path(os.environ.get("LISSOM_DATA") or Path(__file__).resolve().parent / ".data")


@dataclass(frozen=True)
class Files:
    """The pinned files of one example.

    `sha256`: a file's name -> the first 16 hex digits of its digest. `commands` get the files where
    fetch.py is not used.
    """

    example: str
    sha256: Mapping[str, str]
    commands: tuple[str, ...]

    def how(self, missing: object) -> str:
        """Says that something is missing and how to get it."""
        return HOW.format(
            missing=missing,
            example=self.example,
            these="this command" if len(self.commands) == 1 else "these commands",
            commands="\n    ".join(self.commands),
        )

    def package(self, name: str) -> Path:
        """The folder of a package, fetched or else installed, without importing it; raises
        FileNotFoundError.
        """
        fetched = folder() / "site" / name
        if fetched.is_dir():
            return fetched
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError(self.how(f"package {name}"))
        return Path(next(iter(spec.submodule_search_locations)))

    def checked(self, path: Path) -> Path:
        """The path, once its bytes are known to be the pinned ones; raises FileNotFoundError where
        there is no such file, ValueError where it is another one.
        """
        if not path.is_file():
            raise FileNotFoundError(self.how(path))
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not digest.startswith(self.sha256[path.name]):
            raise ValueError(
                f"{path} is not the pinned file (sha256 {digest[:16]}…); fetch it anew"
            )
        return path
