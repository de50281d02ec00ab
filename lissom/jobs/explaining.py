"""Asks about one model, and one rule: what `why` and `dims` do before they print."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..grammar.diagnostics import Label, Source, Span, did_you_mean, fail
from ..grammar.library.program import Program, load_program, program_of
from ..grammar.tree import tree as t
from ..model_file import ModelFile, load_model
from ..output import Output
from ..passes.functions import FUNCTIONS
from ..rewrite.capture.capture import capture
from ..rewrite.channels.listing import Listing, listing
from ..rewrite.explain.funnel import Funnel, funnel, opaque_at
from ..rewrite.graph.opaque import opaque_costs
from ..rewrite.graph.own import declared
from ..rewrite.journal import Opaque
from ..rewrite.measure.compare import Metrics
from ..rewrite.ops.vocabulary import Vocabulary
from ..rewrite.pipeline.compile import Options, example_of, working_state
from ..rewrite.pipeline.pipeline import PipelineRun
from ..rewrite.rules.rule import compile_rule
from ..rewrite.rules.scope import Scope
from ..rewrite.rules.state import State
from .compiling import read_settings


def ask(
    out: Output,
    model: str,
    rule: str,
    at: str | None,
    program: str | None,
    settings: tuple[str, ...],
    nearest: int,
) -> tuple[Funnel, list[tuple[str, str]], tuple[Opaque, ...]]:
    """The funnel of `rule`, what at `at` no rule can see, and what of the model holds parameters
    there.

    The rule has the arguments that the program's pipeline gives it, overridden by `settings`.
    """
    read = program_at(program)
    source = rule_of(read, rule)
    state = state_of(load_model(model), read, out)
    given = given_by(read, rule, state) | read_settings(settings, source.params)
    compiled = compile_rule(source, given, functions=state.functions, declared=read.declarations)
    with out.progress(f"asking {rule}"):
        found = funnel(state, compiled, at, nearest)
    # What keeps a dimension from being cut names the opaque ops that read it.
    there = opaque_at(state, at) if at is not None and not compiled.dim else []
    return found, there, opaque_costs(state.module, state.view)


def dimensions(
    out: Output, model: str, at: str | None, program: str | None, blocked: bool
) -> Listing:
    """The dimensions of a model: those at the path or glob `at`, those that cannot be cut.

    Raises U008 if none is at `at`.
    """
    state = state_of(load_model(model), program_at(program), out)
    with out.progress("following features"):
        found = listing(state.features(), at)
    return replace(found, dims=tuple(d for d in found.dims if d.reasons)) if blocked else found


def program_at(path: str | None) -> Program:
    """The program of a file; one with the library alone where there is none."""
    return load_program(Path(path)) if path is not None else program_of("", "<no program>")


def rule_of(program: Program, name: str) -> t.Rule:
    """The rule of that name. Raises N001, pointing at the command line rather than at a file."""
    if not name.isidentifier() or (name not in program.own_rules and not program.shelf.get(name)):
        known = [*program.own_rules, *program.shelf.names]
        hint = next(iter(did_you_mean(name, known)), "name its file: --program FILE")
        raise fail("N001", f"no rule is called `{name}`", Label(None, where=name), help=hint)
    source = Source("<command line>", name)
    return program.rule(t.Word(name, span=Span(source, 0, len(name))))


def state_of(file: ModelFile, program: Program, out: Output) -> State:
    """The model of a file, captured, with the data that the program's pipeline names."""
    options = Options(functions={**FUNCTIONS, **file.functions}, own=file.ops, loss=file.loss)
    vocabulary = Vocabulary(program.declarations, options.own)
    with out.progress(f"capturing {file.name}"), declared(vocabulary):
        captured = capture(
            file.model, file.inputs or example_of(file.data, file.model), second=file.second
        )
    state = working_state(captured, program, file.data, options)
    for pipeline in program.file.all(t.Pipeline)[:1]:
        PipelineRun(state, program, pipeline, Metrics(captured.module, file.metrics)).define_data()
    out.report(*captured.notes)
    return state


def given_by(program: Program, rule: str, state: State) -> dict[str, Any]:
    """The arguments of the rule's only use in the pipeline; none where it is used several times."""
    refs = list(_refs(program, rule))
    if len(refs) != 1:
        return {}
    pipeline = program.pipeline()
    assert pipeline is not None
    defaults = {
        p.name.text: p.default.value for p in pipeline.params if hasattr(p.default, "value")
    }
    scope: Scope = state.scope(defaults)
    return {keyword.name.text: scope.number(keyword.value) for keyword in refs[0].keywords}


def _refs(program: Program, rule: str) -> Iterator[t.Ref]:
    for pipeline in program.file.all(t.Pipeline):
        for node in t.walk(pipeline):
            if isinstance(node, t.Ref) and node.rule.text == rule:
                yield node
