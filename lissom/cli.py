"""The command group. A command's module is imported when the command is run, and no sooner."""

from __future__ import annotations

import importlib

import click

from .grammar.diagnostics import did_you_mean

COMMANDS = {
    "check": "Find what is wrong with rule files; needs no model.",
    "fmt": "Write rule files in the canonical layout.",
    "test": "Test rules on models generated from their own text.",
    "pages": "Write pages about rules: what they do, and the evidence.",
    "explain": "Say what a code, a rule, an op, a function or a word means.",
    "show": "List the ops of a model as rules name them.",
    "why": "Say why a rule does or does not match a model.",
    "dims": "List the dimensions of a model that can be cut, and why others cannot.",
    "sensitivity": "Measure what a rule costs a model, place by place.",
    "plan": "Show what a program would do to a model, and save it.",
    "apply": "Compress a model, verify the result, and write it.",
    "record": "Write what a model says of data, for students that learn from it.",
    "bisect": "Find the rewrite that breaks a promise.",
    "verify": "Check a written model against its certificate.",
    "bench": "Measure how long a written model takes.",
    "export": "Write a written model as .pt2 or ONNX, and compare what the file computes.",
    "demo": "Train, compress and verify a small digit reader.",
    "new": "Start a rule file or a pipeline.",
    "doctor": "Print versions and settings for a bug report.",
}
"""Every command with its one-line help, so that `lissom --help` imports none of them."""


class Lazy(click.Group):
    """Finds command `x` as the function `x` of the module `commands/x.py`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f".commands.{cmd_name}", __package__)
        found = getattr(module, cmd_name)
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            guess = "".join(f"; {text}" for text in did_you_mean(args[0], COMMANDS))
            raise click.UsageError(f"there is no command `{args[0]}`{guess}", ctx)
        return super().resolve_command(ctx, args)


@click.group(
    cls=Lazy,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 ok, 1 a check failed, 2 usage or rule error, 3 the model cannot be "
    "captured, 4 a package is missing.",
)
@click.version_option(package_name="lissom")
def cli() -> None:
    """Compression rules as text, applied to trained PyTorch networks and verified.

    A MODEL is named `file.py:build` or `package.module:build`; the file may also define inputs(),
    data(split) and metrics. Errors carry a code: `lissom explain CODE` says more.
    """
