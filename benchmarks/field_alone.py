"""What the finite field finds that nothing else does: mutants of the library's rules over ops.

    python benchmarks/field_alone.py [--models 8] [--rules fold_bn ...] [--part 0/2]

Each mutant is judged twice on the same generated models: as `lissom test` does (engine, float64
model, checker), and in the finite field alone. A line for each rule, and the sums: noticed by both,
by one of the two, by neither. `proved` counts mutants that the field takes for right on all models.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch

from lissom.grammar.text.parse import parse
from lissom.grammar.tree import tree as t
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.match.site import Site, examine
from lissom.rewrite.ops.vocabulary import Vocabulary
from lissom.rewrite.proving.algebra.field import PROVED, check_field
from lissom.rewrite.proving.algebra.field_scope import FAILURES
from lissom.rewrite.proving.choices.source import Rolled
from lissom.rewrite.proving.mutants.mutants import Mutant, mutants
from lissom.rewrite.proving.mutants.mutate import Specimen, kill, specimens
from lissom.rewrite.proving.trial import Subject, bound, model
from lissom.rewrite.rules.binding import Bindings
from lissom.rewrite.rules.rule import compile_rule

PASSES = Path(__file__).resolve().parents[1] / "passes"


def rules(names: Iterable[str]) -> list[t.Rule]:
    """The rules of the library that range over ops."""
    files = sorted(PASSES.glob("*.lissom"))
    found = [rule for file in files for rule in parse(file.read_text(), file.name).all(t.Rule)]
    wanted = set(names)
    over_ops = (rule for rule in found if compile_rule(rule, {}).pattern.ops)
    return [rule for rule in over_ops if not wanted or rule.name.text in wanted]


def in_field(mutant: Mutant, specimen: Specimen) -> str:
    """What the field says of a mutant at the first site of a model."""
    grown = specimen.grown
    rule = compile_rule(mutant.source, grown.rule.given)
    try:
        bindings = bound(specimen.state, rule, grown.planted[0])
        site = examine(specimen.state, rule, bindings) if isinstance(bindings, Bindings) else None
        return check_field(specimen.state, site).verdict if isinstance(site, Site) else "no site"
    except FAILURES:
        return "raises"


def judged(rule: t.Rule, count: int) -> Counter[str]:
    """How many mutants of a rule each of the two notices; the seconds of each."""
    subject = Subject(rule, Vocabulary.library(), FUNCTIONS)
    models = [lambda seed=seed: model(Rolled(seed), subject) for seed in range(20 * count)]
    samples, found = specimens(subject, models, count), Counter[str]()
    for mutant in mutants(rule, subject.vocabulary) if samples else ():
        begun = time.process_time()
        usual = kill(mutant, samples).killed
        between = time.process_time()
        said = Counter(in_field(mutant, specimen) for specimen in samples)
        found["usual s"] += round(1000 * (between - begun))
        found["field s"] += round(1000 * (time.process_time() - between))
        field = said["wrong"] > 0
        found["both" if usual and field else "field alone" if field else ""] += 1
        found["usual alone"] += usual and not field
        found["neither"] += not usual and not field
        found["proved"] += said[PROVED] == len(samples)
        found["mutants"] += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--rules", nargs="*", default=())
    parser.add_argument("--part", default="0/1", help="every n-th rule, as 0/n")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    first, step = map(int, options.part.split("/"))
    sums, shown = Counter[str](), ("mutants", "both", "usual alone", "field alone", "neither")
    for rule in rules(options.rules)[first::step]:
        found = judged(rule, options.models)
        sums += found
        print(rule.name.text, *(f"{name} {found[name]}" for name in shown), sep="  ", flush=True)
    print("all", *(f"{name} {sums[name]}" for name in (*shown, "proved")), sep="  ")
    print(f"seconds: usual {sums['usual s'] / 1000:.0f}, field {sums['field s'] / 1000:.0f}")


if __name__ == "__main__":
    main()
