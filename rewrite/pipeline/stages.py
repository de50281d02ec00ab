"""What a file of rules without a pipeline asks for."""

from __future__ import annotations

from ...grammar.library.program import Program
from ...grammar.tree import tree as t


def implicit_stages(program: Program) -> list[t.Stage]:
    """A file of rules without a pipeline: exact rules to their fixpoint, then each approximate rule
    once.
    """
    span = program.file.span
    rules = program.file.all(t.Rule)
    exact = tuple(t.Ref(r.name, span=span) for r in rules if r.kind == "exact")
    approx = tuple(t.Ref(r.name, span=span) for r in rules if r.kind != "exact")
    stages = []
    if exact:
        stages.append(
            t.Stage(t.Word("exact", span=span), (t.Fixpoint(exact, None, span=span),), span=span)
        )
    if approx:
        stages.append(t.Stage(t.Word("approx", span=span), (t.Once(approx, span=span),), span=span))
    return stages
