"""`lissom doctor`: what a bug report needs to say, and nothing about a model."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from ..grammar.library.program import RuleLibrary
from ..grammar.library.vocabulary import library, library_sources
from ..output import Output, command, exit_code

PACKAGES = (
    "lissom", "torch", "numpy", "safetensors", "networkx", "lark", "click", "rich", "scikit-learn",
)  # fmt: skip
SETTINGS = ("LISSOM_TRACEBACK", "NO_COLOR", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
PRIVACY = "It holds no weights, no data, no paths and no names of your models."


@command()
def doctor(out: Output) -> int:
    """Print versions and settings for a bug report. It holds no weights and no paths.

    Every op is read back from every spelling that it declares; what this torch hides is an error.
    """
    import torch

    from ..rewrite.capture.instruments import check_instruments
    from ..rewrite.measure.processor import processor
    from ..rewrite.ops.read_back import hidden_ops
    from ..rewrite.ops.vocabulary import Vocabulary

    hidden = [*hidden_ops(Vocabulary.library())]
    found = {
        "python": f"{platform.python_version()} ({sys.implementation.name})",
        "system": f"{platform.system()} {platform.machine()}",
        **{name: _version(name) for name in PACKAGES},
        **processor(),
        "threads": str(torch.get_num_threads()),
        "processors": str(os.cpu_count()),
        "default dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "ops": f"{len(library().names())}, {len(hidden)} hidden by this torch",
        "rules": str(len(RuleLibrary(library_sources()).names)),
        **{name: os.environ.get(name, "not set") for name in SETTINGS},
    }
    out.table(list(found.items()))
    out.say(PRIVACY)
    out.fields |= {"found": found, "privacy": PRIVACY}
    out.report(*hidden)
    check_instruments()
    return exit_code(hidden)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
