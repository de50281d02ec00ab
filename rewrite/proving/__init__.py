"""Turning a rule's text into evidence: generated models, near-misses, exact arithmetic, mutants.

source    where choices come from (Hypothesis, so that failures shrink)
settings  values of attributes, weights and inputs
sizes     extents that satisfy an op's declaration and a rule's shape clauses
grow      a small model around one or more instances of a rule's left side
trial     one model, one rule: does it fire where it must, and is the result equal
"""
