"""`lissom new`: a rule file to start from."""

from __future__ import annotations

import re
from pathlib import Path

import click

from .cmd_check import check_path
from .grammar.diagnostics import Label, fail
from .output import Output, command, exit_code
from .rewrite.files import write_file

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


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def new() -> None:
    """Start a rule file."""


@command(name="rule")
@click.argument("name")
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Default: NAME.lissom.")
def rule(out: Output, name: str, output: str | None) -> int:
    """Write NAME.lissom with a small rule that checks, to be changed into yours."""
    if not _NAME.fullmatch(name):
        hint = "lower case letters, digits and underscores: fold_scale"
        raise fail("U007", f"`{name}` is no name for a rule", Label(None, where=name), help=hint)
    path = Path(output or f"{name}.lissom")
    if path.exists():
        place = Label(None, where=str(path))
        raise fail(
            "U005", f"`{path}` exists already", place, help="choose another name, or -o FILE"
        )
    write_file(path, TEMPLATE.format(name=name).encode())
    found = list(check_path(path))
    out.report(*found)
    out.say(f"wrote {path}; next: lissom check {path}, lissom why MODEL {name} --program {path}")
    out.fields["file"] = str(path)
    return exit_code(found)


new.add_command(rule)
