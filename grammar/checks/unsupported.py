"""What the language has and this version cannot run: one list for the checker, which warns of it,
and for the engine, which refuses it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from ..diagnostics import Diagnostic, Label, Span
from ..library.vocabulary import library
from ..tree import tree as t
from ..tree.clauses import builds, claims, guard_holes, moves, over_images, over_ops
from .report import Messages

DECLARED = "passes/later.lissom"
"""The library's functions that nothing implements yet; everything else that it declares runs."""

SHOWN = 4
"""Places that the checker shows of one rule."""

_NEVER_OBSERVED = (t.Store, t.Exit)

_LATER: Sequence[tuple[type, str]] = ((t.Store, "storing parameters in another form"),)


class Externs(Protocol):
    """Where functions are declared."""

    def extern(self, name: str) -> t.Extern | None: ...


def unsupported(
    rule: t.Rule, functions: Container[str] | None, declared: Externs | None = None
) -> Iterator[Diagnostic]:
    """Why no engine can apply a rule: V004 for an open guard, N001 for a function that a file
    declares and nobody gives, R002 for all else.

    functions: the names that can be computed beside those of the library, None if it is not asked.
    declared: the declarations whose functions are asked for, those of the library if left out.
    """
    for hole in guard_holes(rule):
        message = f"a guard of `{rule.name}` is left open"
        help = f"`lissom test {hole.span.source.name}` proposes a condition; write it here"
        yield Diagnostic("V004", message, (Label(hole.span, "when?"),), helps=(help,))
    yield from _parts(rule)
    yield from _exits_elsewhere(rule)
    if functions is not None:
        yield from _functions(rule, functions, declared or library())
    if rule.kind == "observe":
        yield from _more_than_observers(rule)
    elif rule.all(t.MatchDim):
        yield from _more_than_a_cut(rule)
    elif rule.all(t.MatchParam):
        yield from _more_than_numbers(rule)
    elif rule.all(t.MatchValue):
        yield from _more_than_another_value(rule)
    elif over_ops(rule):
        yield from _moves(rule)
        yield from _builds(rule)


def _parts(rule: t.Rule) -> Iterator[Diagnostic]:
    for node in (n for n in t.walk(rule) if isinstance(n, t.Attach) and rule.kind != "observe"):
        message = f"rule `{rule.name}` attaches an observer and is no observe rule"
        yield _refusal(message, node.span, "attached here", "write an `observe rule` of its own")
    for node in t.walk(rule):
        for kind, what in _LATER:
            if isinstance(node, kind):
                message = f"rule `{rule.name}` needs {what}, which this version cannot apply"
                yield _refusal(message, node.span, "needed by this")


def _exits_elsewhere(rule: t.Rule) -> Iterator[Diagnostic]:
    """Samples leave behind a value."""
    exits = (node for node in t.walk(rule) if isinstance(node, t.Exit))
    for node in exits if not rule.all(t.MatchValue) or rule.kind == "observe" else ():
        message = f"rule `{rule.name}` has an exit and ranges over no values"
        yield _refusal(
            message, node.span, "samples leave behind a value", 'match value y at "layer2"'
        )


def _functions(rule: t.Rule, functions: Container[str], declared: Externs) -> Iterator[Diagnostic]:
    built = {id(call) for build in builds(rule) for call in _ops(build.value)}
    calls = [n for n in t.walk(rule) if isinstance(n, t.Call) and id(n) not in built]
    for name in (c.function for c in calls if isinstance(c.function, t.Name)):
        if name.text in functions or declared.extern(name.text) is None:
            continue
        own = library().extern(name.text) is None
        if own or is_later(name.text):
            why = "given by nobody" if own else "not in this version"
            message = f"rule `{rule.name}` needs `{name.text}`, which is {why}"
            help = f'give one in the model file: functions = {{"{name.text}": ...}}'
            code = "N001" if own else "R002"
            yield Diagnostic(code, message, (Label(name.span, why),), helps=(help,))


def _ops(value: t.Expr) -> Iterator[t.Call]:
    """`flatten(quantize(x, s))` of a rewrite makes two ops; its keywords hold functions."""
    if isinstance(value, t.Call):
        yield value
        for arg in value.args:
            yield from _ops(arg)


def is_later(name: str) -> bool:
    """Whether the library declares a function of this name for a later version."""
    found = library().extern(name)
    return found is not None and found.span.source.name == DECLARED


def _more_than_observers(rule: t.Rule) -> Iterator[Diagnostic]:
    """What a rule that observes cannot hold: anything but observers of values. That it changes
    nothing is asked elsewhere (X001).
    """
    steps = [step for r in rule.all(t.Rewrite) for step in r.steps]
    odd: list[t.Node] = [*rule.all(t.MatchDim, t.MatchParam)]
    odd += [s for s in steps if isinstance(s, t.Attach) and len(s.path.parts) != 2]
    odd += [s for s in steps if isinstance(s, (t.Assign, *_NEVER_OBSERVED))]
    message = f"rule `{rule.name}` does more than attach observers"
    hint = 'match value x : f[...] at "*"  rewrite { attach histogram() on x as x.range }'
    for place in odd[:1] or ([] if steps else [rule.name]):
        yield _refusal(message, place.span, "a rule that observes has no place for it", hint)


def _more_than_a_cut(rule: t.Rule) -> Iterator[Diagnostic]:
    """What a rule over dimensions cannot hold."""
    (clause,) = rule.all(t.MatchDim)
    dim, images = clause.dim.text, bool(over_images(rule))
    steps = [step for r in rule.all(t.Rewrite) for step in r.steps]
    odd: list[t.Node] = [s for s in steps if not resizes(s, dim)]
    odd += [m for m in moves(rule) if images or not _masks(m, dim)]
    odd += [call for call in _asked_about(rule, dim) if images]
    odd += list(rule.all(t.Match, t.Unless))
    if not odd and len(steps) == 1:
        return
    hint = "perturb { zero(readers(D), outside = keep) }  rewrite { D := keep }"
    hint = "images have a size and no features: rewrite { R := N }" if images else hint
    place = (odd or [rule.name])[0].span
    message = f"rule `{rule.name}` is more than one cut"
    yield _refusal(message, place, "a rule over dimensions has no place for it", hint)


def _more_than_numbers(rule: t.Rule) -> Iterator[Diagnostic]:
    """What a rule over parameters cannot hold: anything but other numbers for this one."""
    first, *more = rule.all(t.MatchParam)
    steps = [step for r in rule.all(t.Rewrite) for step in r.steps]
    odd: list[t.Node] = [*more, *rule.all(t.Match, t.Unless, t.MatchDim, t.MatchValue)]
    changes = [s for s in (*moves(rule), *steps) if not isinstance(s, _SAID)]
    odd += [s for s in changes if not resizes(s, first.name.text)]
    odd += changes[1:] if len(steps) > 1 else []
    message = f"rule `{rule.name}` does more than give a parameter other numbers"
    hint = "match param w of linear  perturb { w := ... }  rewrite { w := ... }"
    for place in odd[:1] or ([] if changes else [rule.name]):
        yield _refusal(message, place.span, "a rule over parameters has no place for it", hint)
    yield from _measured_inside(rule)


def _more_than_another_value(rule: t.Rule) -> Iterator[Diagnostic]:
    """What a rule over values cannot hold: anything but ops between this one and what reads it."""
    first, *more = rule.all(t.MatchValue)
    name = first.name.text
    steps = [s for r in rule.all(t.Rewrite) for s in r.steps if not isinstance(s, _SAID)]
    made = [s.targets[0].text for s in steps if isinstance(s, t.Build) and len(s.targets) == 1]
    odd: list[t.Node] = [*more, *rule.all(t.Match, t.Unless)]
    odd += [m for m in moves(rule) if not resizes(m, name)] + list(moves(rule))[1:]
    exits = [s for r in rule.all(t.Rewrite) for s in r.steps if isinstance(s, t.Exit)]
    odd += [s for s in steps if not isinstance(s, t.Build) or len(s.targets) != 1]
    odd += [step for step in steps[-1:] if not exits and made[-1:] != [name]]
    odd += [*exits[1:], *(s for s in steps if exits and name in made and s.targets[0].text == name)]
    odd += [build for build in builds(rule) if (build.handle and not exits) or build.origin]
    message = f"rule `{rule.name}` does more than give the readers of a value another one"
    hint = f"perturb {{ {name} := clamp({name}, ...) }}  rewrite {{ {name} = clamp({name}, ...) }}"
    later = bool(exits) or any(isinstance(s, _SAID) for r in rule.all(t.Rewrite) for s in r.steps)
    for place in odd[:1] or ([] if steps or later else [rule.name]):
        yield _refusal(message, place.span, "a rule over values has no place for it", hint)
    yield from _measured_inside(rule)


_SAID = (t.Store, t.Attach, t.Exit)
"""Steps that `_parts` speaks of."""


def _measured_inside(rule: t.Rule) -> Iterator[Diagnostic]:
    """Only the model's outputs are measured: a parameter has no output of its own."""
    calls = (n for claim in claims(rule) for n in t.walk(claim) if isinstance(n, t.Call))
    for call in (c for c in calls if c.function.span.text in ("error", "equal")):
        if [arg.span.text for arg in call.args] != ["outputs"]:
            message = f"rule `{rule.name}` measures something else than the model's outputs"
            name = call.function.span.text
            yield _refusal(message, call.span, "measured here", f"write `{name}(outputs)`")


def resizes(step: object, dim: str) -> bool:
    """`D := keep`, `w := numbers`."""
    return isinstance(step, t.Assign) and str(step.path) == dim


def _masks(move: object, dim: str) -> bool:
    """`zero(readers(D), outside = keep)`: nothing else is what a cut leaves out."""
    call = move.call if isinstance(move, t.Effect) else None
    if not isinstance(call, t.Call) or not isinstance(call.function, t.Name):
        return False
    asked = " ".join(arg.span.text.replace(" ", "") for arg in call.args)
    named = [keyword.name.text for keyword in call.keywords]
    return (call.function.text, asked, named) == ("zero", f"readers({dim})", ["outside"])


def _asked_about(rule: t.Rule, dim: str) -> list[t.Call]:
    """Questions about the features of the dimension: `writers(D)`, `params(D)`."""
    calls = [node for node in t.walk(rule) if isinstance(node, t.Call) and len(node.args) == 1]
    about = [call for call in calls if call.args[0].span.text == dim]
    return [call for call in about if _takes_features(call.function.span.text)]


def _takes_features(name: str) -> bool:
    found = library().extern(name)
    return name == "params" or (found is not None and found.params[0].type.name == "dim")


def _moves(rule: t.Rule) -> Iterator[Diagnostic]:
    """Only weights of matched ops are moved, what these read from outside, and what they give."""
    steps = [step for match in rule.all(t.Match) for step in t.walk(match)]
    ops = [step for step in steps if isinstance(step, t.OpPattern)]
    words = [word for op in ops for part in op.operands for word in t.walk(part)]
    read = {word.text for word in words if isinstance(word, (t.Name, t.Word))}
    inner = {word.text for op in ops for word in op.targets} & read
    for move in moves(rule):
        parts = [part.text for part in move.path.parts] if isinstance(move, t.Assign) else []
        if len(parts) != 2 and not (len(parts) == 1 and parts[0] not in inner):
            message = "only weights of matched ops, and what these read or give, can move"
            yield _refusal(message, move.span, "moved here", "write `c.weight := ...`")


def _builds(rule: t.Rule) -> Iterator[Diagnostic]:
    for step in (s for r in rule.all(t.Rewrite) for s in r.steps):
        if not isinstance(step, _SAID) and not (
            isinstance(step, t.Build) and len(step.targets) == 1
        ):
            message = "this version can only build single values"
            yield _refusal(message, step.span, "built here", "build each with an op of its own")


def unsupported_steps(
    pipeline: t.Pipeline, wide: Container[str], ops: Container[str]
) -> Iterator[Diagnostic]:
    """The parts of a pipeline that have no engine. `ops` are the names of rules that match ops,
    `wide` those of rules over dimensions or parameters.
    """
    for step in (s for stage in pipeline.inside(t.Stage) for s in t.walk(stage)):
        if isinstance(step, t.Fixpoint) and any(r.rule.text in wide for r in step.refs):
            yield from _mixed(step, ops)


def _mixed(step: t.Fixpoint, ops: Container[str]) -> Iterator[Diagnostic]:
    odd = next((ref for ref in step.refs if ref.rule.text in ops), None)
    if odd is not None:
        message = "rules over dimensions or parameters repeat by themselves"
        help = "give it a `fixpoint` of its own"
        yield _refusal(message, odd.rule.span, "this rule matches ops", help)


def check_unsupported(rule: t.Rule, functions: Container[str], report: Messages) -> None:
    """Warns of what the engine is going to refuse; open guards are said elsewhere.

    functions: what the host program gives, or has to: the file declares it itself.
    """
    _warn((d for d in unsupported(rule, functions) if d.code == "R002"), report)


def check_unsupported_steps(
    pipeline: t.Pipeline, rules: Mapping[str, t.Rule], report: Messages
) -> None:
    ops = {name for name, rule in rules.items() if over_ops(rule)}
    _warn(unsupported_steps(pipeline, rules.keys() - ops, ops), report)


def _warn(refusals: Iterable[Diagnostic], report: Messages) -> None:
    """One warning for a rule or pipeline, with the first places that stand in the way."""
    found = list(refusals)
    if found:
        places = tuple(label for refused in found[:SHOWN] for label in refused.labels)
        report.found[replace(found[0], labels=places, severity="warning")] = None


def _refusal(message: str, place: Span, label: str, help: str = "") -> Diagnostic:
    return Diagnostic("R002", message, (Label(place, label),), helps=(help,) if help else ())
