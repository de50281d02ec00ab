"""Turning a rule's text into evidence: generated models, near-misses, exact arithmetic, mutants.

prove.py       all of it, for one rule over ops; wide.py: for a rule over anything else
trial.py       one model, one rule: does it fire where it must, and is the result equal
whole.py       the same, where a rule changes something of the whole model
near_miss.py   sites at which the rule must stay silent for the right reason
budget_check.py  whether an approximate rule kept its word, on data that it has not seen too
cases.py       `test` blocks of a rule file
compose.py     rules of one file together
stages.py      each kind of evidence; worker.py: in a process of its own, which a kernel may kill
reproduce.py   a mistake as a script; report.py: what was found, as plain values
strategies.py  the same models for property tests with Hypothesis

choices/       where choices come from (a list of whole numbers is a model), made few by shrink.py
models/        a small model around one or more instances of a rule's left side: generate.py
algebra/       is the exact half an identity, in a finite field
bits/          does the engine keep every bit where nothing rounds (the premise)
mutants/       mistakes planted in a rule, and whether they are noticed
guards/        rules that lack a guard, `where { ? }`, and the guard that they need
dims/          rules over dimensions, and the networks that are drawn for all but rules over ops
params/        rules over parameters; values/: rules over values
"""
