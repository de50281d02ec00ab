"""Programs for those who have none yet: one library rule by its name, or all exact ones."""

from __future__ import annotations

from collections.abc import Iterator

from ..grammar.checks.structure import is_budget
from ..grammar.diagnostics import Label, did_you_mean, fail
from ..grammar.library.program import Program, library_shelf, observers_of, program_of
from ..grammar.tree import tree as t
from ..grammar.tree.clauses import claims, over_ops

STAGES = (
    "tidy", "fold", "absorb", "smooth", "merge", "attention", "dead", "equalize", "dynamic",
    "codes", "widen",
)  # fmt: skip
"""Files of the library with exact rules, in an order in which each prepares the next."""


def program_named(name: str) -> Program:
    """The program of one library rule, whose parameters are the pipeline's. Raises U002 for a name
    that is neither a rule nor a rule file.
    """
    rule = library_shelf().get(name) if name.isidentifier() else None
    if rule is None:
        hint = next(iter(did_you_mean(name, library_shelf().names)), "rule files end in .lissom")
        place = Label(None, where=name)
        raise fail("U002", f"`{name}` is no rule of the library and no rule file", place, help=hint)
    return program_of(_of_rule(rule), f"<the rule {name}>")


def _of_rule(rule: t.Rule) -> str:
    name = rule.name.text
    limit = rule.kind != "exact" and not any(map(is_budget, claims(rule)))
    params = ", ".join([p.span.text for p in rule.params] + ["drift: frac = 5%"] * limit)
    passed = ", ".join(f"{p.name.text} = {p.name.text}" for p in rule.params)
    use = f"{name}({passed})" if passed else name
    step = f"fixpoint {{ {use} }}" if rule.kind == "exact" else f"once {use}"
    data = [f'  data {word} = sample("train", 256)' for word in _data(rule)]
    watch = [f"once {one.name}; calibrate calib; " for one in observers_of(rule)[:1]]
    budget = ["  budget drift(outputs) <= drift"] * limit
    head = f"pipeline {name}({params}) {{" if params else f"pipeline {name} {{"
    stage = f"  stage {name} {{ {''.join(watch)}{step} }}"
    return "\n".join([head, *data, *budget, stage, "}"]) + "\n"


def _data(rule: t.Rule) -> list[str]:
    """The names of the data that the rule is measured on."""
    return list(dict.fromkeys(claim.data.text for claim in claims(rule) if claim.data))


def every_exact() -> Program:
    """The program of all exact rules that need no arguments and no data, file by file."""
    lines = [f"  stage {stage} {{ {' '.join(_fixpoints(stage))} }}" for stage in STAGES]
    return program_of("\n".join(["pipeline all_exact {", *lines, "}"]) + "\n", "<exact rules>")


def _fixpoints(stage: str) -> Iterator[str]:
    """One for all rules that match ops, one for each that ranges over something else."""
    rules = {name: library_shelf().get(name) for name in _exact(stage)}
    apart = [name for name, rule in rules.items() if rule and not over_ops(rule)]
    ops = "; ".join(name for name in rules if name not in apart)
    yield from (f"fixpoint {{ {names} }}" for names in (ops, *apart) if names)


def _exact(stage: str) -> Iterator[str]:
    for name in library_shelf().names:
        rule = library_shelf().get(name)
        if rule is None or rule.kind != "exact" or _file(rule) != stage:
            continue
        if not observers_of(rule) and all(p.default is not None for p in rule.params):
            yield name


def _file(rule: t.Rule) -> str:
    return rule.span.source.name.rpartition("/")[2].removesuffix(".lissom")
