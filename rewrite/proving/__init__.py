"""Turning a rule's text into evidence: generated models, near-misses, exact arithmetic, mutants.

source      where choices come from; a list of whole numbers is a model
settings    values of attributes, weights and inputs
sizes       extents that satisfy an op's declaration and a rule's shape clauses
soil        the model while it grows
filling     operands and weights that a pattern leaves open
grow        a small model around one or more instances of a rule's left side
trial       one model, one rule: does it fire where it must, and is the result equal
near        near-misses, at which the rule must stay silent for the right reason
field       is the exact half an identity, in a finite field (field_scope, field_tensor,
            field_ops, residues)
dyadic      does the engine keep every bit where nothing rounds (premise)
mutants     mistakes planted in a rule (roles, pieces, alter_values, alter_steps)
mutate      are they noticed
cases       `test` blocks
prove       all of it, for one rule
holes       a rule that lacks a guard, `where { ? }`: without it, up to it, with one in it
instances   sites of such a rule, and whether both sides agree there
predicates  conditions that the guard may be made of
separate    the simplest of them that tell the sites apart
propose     the missing guard, with its proof
shrink      the choices that show a mistake, made small
report      what was found, as plain values
reproduce   a mistake as a script
strategies  the same models for property tests with Hypothesis
"""
