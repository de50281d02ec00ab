"""Whether the rewrite half of one application is exact, and at which sizes: on small inputs first,
then at the sizes of the example, and at those of the model's further examples where these differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...grammar.tree import tree as t
from ..graph.emit import Emitted
from ..graph.runs import record
from ..journal import Verdict, VerdictKind
from ..match.site import Site
from ..measure.twins import KernelFault, kernel_faults
from ..rules.state import State
from .begins import begins_as_stored
from .inputs import Probe
from .planned import Plan, Planned
from .run import cast
from .verify import CLAIMS, Both, Comparison, check_on, free_inputs, verdict_of


def check_exact(
    state: State, site: Site, plan: Plan, emitted: Mapping[Planned, Emitted]
) -> tuple[Verdict, ...]:
    """The rewrite against the perturbed original: in float64, then in the model's own precision.

    An approximate rule without `perturb` has no exact half; only its budget binds it.
    """
    return (*_check_numbers(state, site, plan, emitted), *begins_as_stored(plan, emitted))


def _check_numbers(
    state: State, site: Site, plan: Plan, emitted: Mapping[Planned, Emitted]
) -> tuple[Verdict, ...]:
    if site.rule.kind == "approx" and not site.rule.source.all(t.Perturb):
        return (
            _unchecked(VerdictKind.DOUBLE, "the rule has no `perturb`: only its error is measured"),
        )
    verdicts = check_on(state, site, plan, emitted, small=True)
    if all(verdict.holds for verdict in verdicts):
        return verdicts
    # Small probes have sizes of their own. A rule that is right at the sizes of the example alone
    # may still be right at all that the model takes: its other examples decide.
    full = check_on(state, site, plan, emitted, small=False)
    if not all(verdict.holds for verdict in full):
        return full
    return (*full, _elsewhere(state, site, plan, emitted))


def _unchecked(kind: VerdictKind, why: str) -> Verdict:
    return Verdict(CLAIMS[kind], "not checked", True, detail=why, kind=kind)


def _elsewhere(state: State, site: Site, plan: Plan, emitted: Mapping[Planned, Emitted]) -> Verdict:
    """Both sides on what the site sees on the model's further examples."""
    runs, both = [], Both(state, site, plan, emitted)
    nodes = free_inputs(site, plan)
    for example in state.samples.others:
        seen = record(state.module, nodes, example.args)
        probe = Probe({node: cast(value, both.wide) for node, value in seen.items()}, False)
        runs.append(both.compare(probe, both.left(probe, both.wide), both.wide))
        if any(comparison.ratio > 1 for comparison in runs[-1]):
            note = f"right on the example, wrong on {example.label}"
            worst = max(runs[-1], key=lambda comparison: comparison.ratio)
            return verdict_of(
                VerdictKind.SIZES, [[replace(worst, note=_also(note, worst))]], len(runs)
            )
    if not runs:
        return _unchecked(VerdictKind.SIZES, "the model has no example of another size")
    return verdict_of(VerdictKind.SIZES, runs, len(runs))


def _also(said: str, comparison: Comparison) -> str:
    return f"{said}: {comparison.note}" if comparison.note else said


def own_faults(
    state: State, site: Site, plan: Plan, emitted: Mapping[Planned, Emitted]
) -> tuple[KernelFault, ...]:
    """The kernels without whose mistakes both sides would agree in the model's own precision too;
    none where the rewrite is to blame.
    """

    def holds() -> bool:
        return all(v.holds for v in check_on(state, site, plan, emitted, small=False))

    return kernel_faults(holds)
