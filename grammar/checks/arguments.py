"""Arguments against the declared parameters of extern functions, rules and pipelines."""

from __future__ import annotations

from ..diagnostics import Label
from ..tree import tree as t
from .kind import ANY, Kind, accepts, declared_kind
from .report import Messages


def check_extern(
    report: Messages,
    clause: str,
    call: t.Call,
    extern: t.Extern,
    args: list[Kind],
    keywords: dict[str, Kind],
) -> None:
    """Report too few, too many, unknown or ill-kinded arguments."""
    given = bind_arguments(report, call, extern)
    by_expr = dict(zip(map(id, call.args), args, strict=False))
    by_expr |= {id(k.value): keywords[k.name.text] for k in call.keywords}
    for param, expr in given:
        kind = by_expr.get(id(expr), ANY)
        check_argument(report, param, expr, kind, clause, extern.name.text)


def bind_arguments(
    report: Messages, call: t.Call, extern: t.Extern
) -> list[tuple[t.Param, t.Expr]]:
    """Which argument goes to which parameter of the declaration."""
    bound, missing = pair(extern.params, call.args, call.keywords)
    name, place = extern.name.text, Label(extern.name.span, "declared here")
    for keyword in call.keywords:
        if all(p.name.text != keyword.name.text for p in extern.params):
            names = [p.name.text for p in extern.params]
            label = Label(keyword.name.span, f"known: {', '.join(names)}")
            message = f"`{name}` has no parameter `{keyword.name}`"
            report.unknown("T004", message, label, keyword.name.text, names)
    positional = extern.params
    if len(call.args) > len(positional) and not any(p.variadic for p in positional):
        message = (
            f"`{name}` takes {_count(len(positional), 'argument')}, {len(call.args)} are given"
        )
        report.error("T004", message, Label(call.args[len(positional)].span, "one too many"), place)
    elif missing:
        message = f"`{name}` lacks its argument `{missing[0].name}`"
        report.error("T004", message, Label(call.span, "called here"), place)
    return bound


def pair(
    params: tuple[t.Param, ...], args: tuple[t.Expr, ...], keywords: tuple[t.Keyword, ...]
) -> tuple[list[tuple[t.Param, t.Expr]], list[t.Param]]:
    """(parameter, argument) pairs, and the parameters that have neither argument nor default."""
    named = {k.name.text: k.value for k in keywords}
    bound: list[tuple[t.Param, t.Expr]] = []
    missing, rest = [], list(args)
    for param in params:
        if param.name.text in named:
            bound.append((param, named[param.name.text]))
        elif param.variadic:
            bound += [(param, arg) for arg in rest]
            rest = []
        elif rest:
            bound.append((param, rest.pop(0)))
        elif param.default is None and not param.optional:
            missing.append(param)
    return bound, missing


def check_argument(
    report: Messages, param: t.Param, expr: t.Expr, kind: Kind, clause: str, owner: str
) -> None:
    wanted = declared_kind(param.type)
    if wanted.name == "frac" and not _is_share(report, expr, param.name.text):
        return
    absent = kind.name == "none" and param.default is expr
    if absent or accepts(wanted, kind, clause):
        return
    places = Label(expr.span, f"this is {kind}"), Label(param.span, "declared here")
    report.error("T001", f"`{owner}` takes {wanted} as `{param.name}`", *places)


def _is_share(report: Messages, expr: t.Expr, name: str) -> bool:
    """Whether a literal is a share in 0..1; says how to write it otherwise."""
    if isinstance(expr, t.Number):
        percent = expr.value if expr.value > 1 else expr.value * 100
        help = f"write `{name} = {percent:g}%`"
        label = Label(expr.span, "a plain number")
        report.error("T002", f"`{name}` is a share and needs a percent sign", label, help=help)
        return False
    if isinstance(expr, t.Frac) and expr.value > 1:
        label = Label(expr.span, "more than the whole")
        report.error("T002", f"`{name}` is a share between 0% and 100%", label)
        return False
    return True


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
