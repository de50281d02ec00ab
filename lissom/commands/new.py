"""`lissom new`: a rule file or a pipeline to start from."""

from __future__ import annotations

import re
from pathlib import Path

import click

from ..grammar.diagnostics import Label, fail
from ..output import Output, command, exit_code
from ..rewrite.store.files import write_file
from .check import check_path

_NAME = re.compile(r"[a-z][a-z0-9_]*")

TEMPLATE = """\
# {name}: say what goes, what comes, and why that is right.
#
#     relu(neg(neg(x)))  ->  relu(x)
#
# `exact` promises the same outputs up to rounding; every site is tested before it is rewritten. A
# rule that changes outputs is `approx rule`, says how in `perturb`, and has a budget in `ensure`.

exact rule {name} {{
  doc "One line for the list of rules: what changes, and how exact it is."
  # The ops to find, by their names in the vocabulary. Names of values hold them together.
  match {{
    a = neg(x)
    b = neg(a)
    y = relu(b)
  }}
  # When it may happen. The text is what people read where it may not.
  where {{ rank(x) >= 2  else "{{x}} has only {{rank(x)}} axes" }}
  # What stands there instead; it defines the last value anew.
  rewrite {{ y = relu(x) }}
  # What is checked at every site.
  ensure {{ ops(after) == ops(before) - 2 }}
}}
"""


PIPELINE = """\
# {name}: what is done to a model, in which order, and what must hold at the end.
#
#     lissom plan model.py:build {name}.lissom
#
# Rules are of this file, of files that `use` names, or of the library: `lissom explain` lists them.

pipeline {name}(most: frac = 5%) {{
  # Samples of data(split) in the model file; without it sites are measured on the example inputs.
  data calib = sample("train", 256)
  # What every stage must keep. A metric of the model file says more:
  # `budget drop(accuracy) <= 1% on valid`, with `data valid = sample("valid", all)`.
  budget drift(outputs) <= most

  # Exact rules keep the outputs: the whole model is compared after the stage.
  stage clean {{
    fixpoint {{ drop_dropout; fold_bn; fold_bn_linear }}
  }}
  # Approximate rules change them, each site within a budget of its own.
  stage factor {{
    each low_rank_linear(energy = 90%, budget = 20%) order by saving until params(model) <= 50%
  }}
  verify {{
    forbids dropout
  }}
  on_fail rollback
}}
"""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def new() -> None:
    """Start a rule file or a pipeline."""


@command(name="rule")
@click.argument("name")
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Default: NAME.lissom.")
def rule(out: Output, name: str, output: str | None) -> int:
    """Write NAME.lissom with a small rule that checks, to be changed into yours."""
    path = _started(out, name, output, TEMPLATE, "rule")
    found = list(check_path(path))
    out.report(*found)
    out.say(f"wrote {path}; next: lissom check {path}, lissom why MODEL {name} --program {path}")
    return exit_code(found)


@command(name="pipeline")
@click.argument("name")
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Default: NAME.lissom.")
def pipeline(out: Output, name: str, output: str | None) -> int:
    """Write NAME.lissom with a pipeline of library rules that checks, to be changed into yours."""
    path = _started(out, name, output, PIPELINE, "pipeline")
    found = list(check_path(path))
    out.report(*found)
    out.say(f"wrote {path}; next: lissom plan MODEL {path}")
    return exit_code(found)


def _started(out: Output, name: str, output: str | None, text: str, what: str) -> Path:
    """The new file. Raises U007 for a bad name, U005 where the file exists."""
    if not _NAME.fullmatch(name):
        hint = "lower case letters, digits and underscores: fold_scale"
        raise fail("U007", f"`{name}` is no name for a {what}", Label(None, where=name), help=hint)
    path = Path(output or f"{name}.lissom")
    if path.exists():
        place = Label(None, where=str(path))
        raise fail(
            "U005", f"`{path}` exists already", place, help="choose another name, or -o FILE"
        )
    write_file(path, text.format(name=name).encode())
    out.fields["file"] = str(path)
    return path


new.add_command(rule)
new.add_command(pipeline)
