"""A mistake that was found, as a script that shows it again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx

from ...grammar.library.program import program_of
from ...grammar.tree.clauses import over_ops
from ..ops.vocabulary import Vocabulary
from .choices.source import Replayed
from .distance import first_difference
from .report import RuleReport
from .subject import Subject
from .trial import BAD, Outcome, model, trial
from .whole import graph_state
from .wide import ground_of

_SCRIPT = '''\
"""{headline}

{detail}

Run it with `python {file}`. The same choices give the same model with lissom {version}.
"""

from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.proving.reproduce import replay

PROGRAM = """\\
{program}"""

CHOICES = {tape}

replay(PROGRAM, {rule!r}, CHOICES, FUNCTIONS)
'''


def script(report: RuleReport, program: str, file: str, version: str) -> str:
    """The text of a script for the first mistake of a report."""
    first = report.failures[0]
    return _SCRIPT.format(
        headline=f"The rule `{report.rule}` is {first.kind}: {first.condition}".replace('"""', "'"),
        detail=first.detail.replace("\\", "/").replace('"""', "'''"),
        file=file,
        version=version,
        program=f"{program.rstrip()}\n".replace("\\", "\\\\").replace('"""', '\\"\\"\\"'),
        tape=list(report.tape),
        rule=report.rule,
    )


def replay(
    program: str,
    rule: str,
    choices: Sequence[int],
    functions: Mapping[str, Callable[..., Any]],
    ops: Mapping[str, Any] | None = None,
) -> bool:
    """Grows the model of `choices` once more and prints it, what the rule does to it, and the first
    number that comes out different.

    `functions` and `ops` are what the program's own declarations name. True if the mistake is
    still there.
    """
    read = program_of(program, "<program>")
    source = read.own_rules[rule]
    vocabulary = Vocabulary(read.declarations, dict(ops or {}))
    subject = Subject(source, vocabulary, functions, tuple(read.own_rules.values()))
    if not over_ops(source):
        return _replay_wide(subject, choices)
    grown = model(Replayed(choices), subject)
    _print_model(grown.module, grown.inputs)
    outcomes = trial(subject, grown)
    wrong = _print_outcomes(outcomes)
    print("if it is applied:", first_difference(subject, model(Replayed(choices), subject)))
    return wrong


def _replay_wide(subject: Subject, choices: Sequence[int]) -> bool:
    """The same for a rule over dimensions, parameters or values: all of them in turn."""
    ground = ground_of(subject.source)
    rule, graph = ground.case(subject, Replayed(choices))
    _print_model(graph.module, graph.args)
    return _print_outcomes(ground.tried(graph_state(subject, graph), rule, graph.seed))


def _print_model(module: fx.GraphModule, inputs: Sequence[Any]) -> None:
    print(module.code)
    for name, weight in module.state_dict().items():
        print(f"{name}: {weight.dtype} {list(weight.shape)}")
    print("inputs:", *(list(value.shape) for value in inputs))


def _print_outcomes(outcomes: Sequence[Outcome]) -> bool:
    for outcome in outcomes:
        print(f"{outcome.kind} {outcome.condition}\n{outcome.detail}")
    return any(outcome.kind in BAD for outcome in outcomes)
