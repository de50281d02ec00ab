"""The static checker: what can be known to be wrong with a file before any model exists."""

from __future__ import annotations

from collections.abc import Iterable

from . import tree as t
from .declared import Declarations, Known
from .diagnostics import Diagnostic
from .names import Names
from .operations import check_operations
from .report import Report
from .sampling import Sampler, guards_of
from .shapes import models
from .sides import sides
from .sizes import check_sizes


def check(
    file: t.File, known: Declarations, rules: Iterable[t.Rule] = (), used: Iterable[str] = ()
) -> list[Diagnostic]:
    report = Report()
    names = Known(file, known)
    for rule in file.all(t.Rule):
        both = sides(rule, names)
        scope = Names(rule, both, names, report).run()
        check_operations(rule, both, scope, names, report, frozenset(("in_range", "out_range")))
        if report.errors:
            continue
        ms = models(rule, both, names)
        ss = [Sampler(m, guards_of(rule)) for m in ms]
        check_sizes(ms, ss, report)
    return list(report.found)
