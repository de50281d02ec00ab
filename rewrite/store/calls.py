"""What the nodes of a graph call, as text and back: only what `allowed.py` lists."""

from __future__ import annotations

import builtins
import operator
import re
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ...grammar.diagnostics import Label, LissomError, did_you_mean, fail
from ..ops.allowed import ATTRIBUTES, functions, methods, names_by_identity, overload
from ..torch_internals import OpOverload
from .containers import container_line, container_of
from .values import is_name, malformed, require_local, require_path


def encode_target(node: Node) -> str:
    """What a node calls or names, as text. Raises A013 or A014 for a callee outside the tables,
    A016 for a name.
    """
    if node.op == "call_function":
        return _function_name(node)
    target = str(node.target)
    return check_target(node.op, target, f"node {node.name}")


def check_target(op: str, target: str, where: str) -> str:
    """The text of a target that is no function, checked. Raises A014, A016 or A025."""
    if op == "placeholder":
        require_local(re.sub(r"^\*{1,2}", "", target), "the input name", where)
    elif op in ("get_attr", "call_module"):
        require_path(target, "the path", where)
    elif op == "call_method" and target not in methods():
        raise _not_callable("A014", f"the method `{target}`", where, methods(), target)
    elif op == "output" and target != "output":
        raise malformed(f"has an output called {target!r}", where)
    return target


def decode_function(name: str, where: str) -> Callable[..., Any]:
    """The function of a stored name. Raises A013 where this torch has none that may be called."""
    found = functions().get(name) or overload(name) or container_of(name)
    if found is None:
        raise _not_callable("A013", f"the function `{name}`", where, functions().keys(), name)
    return found


def check_call(node: Node) -> None:
    """Refuse attribute access beyond `ATTRIBUTES` and fields of inputs (A015), and methods of
    anything but a value (A014).
    """
    where = f"node {node.name}"
    if node.op == "call_method" and not (node.args and isinstance(node.args[0], Node)):
        raise _not_callable("A014", f"the method `{node.target}` of a constant", where, (), "")
    if node.target is not builtins.getattr:
        return
    if (
        node.kwargs
        or len(node.args) != 2
        or not isinstance(node.args[0], Node)
        or not (node.args[1] in ATTRIBUTES or _is_field(node.args[0], node.args[1]))
    ):
        raise fail(
            "A015",
            f"reads the attribute {node.args[1:]!r}, which cannot be stored",
            Label(None, where=where),
            note="stored are fields of inputs, and of tensors " + ", ".join(sorted(ATTRIBUTES)),
            help="read the attribute inside the model's code, before compression; rename a field "
            "that is called like an attribute of tensors",
        )


def _is_field(owner: Node, name: object) -> bool:
    """Whether this may be a field of a dataclass among the inputs: no tensor has the attribute."""
    while owner.target in (builtins.getattr, operator.getitem) and isinstance(owner.args[0], Node):
        owner = owner.args[0]
    plain = isinstance(name, str) and is_name(name) and not hasattr(Tensor, name)
    return owner.op == "placeholder" and plain and not str(name).startswith("_")


def _function_name(node: Node) -> str:
    target: Any = node.target
    if isinstance(target, OpOverload):
        name = f"torch.ops.{target}"
        if overload(name) is target:
            return name
    name = names_by_identity().get(id(target)) or container_line(target)
    if name is None:
        space, own = getattr(target, "__module__", ""), getattr(target, "__qualname__", str(target))
        shown = f"the function `{space}.{own}`"
        keep = KEEP_WHOLE if _importable(space, own, target) else KEEP_STATE
        raise _not_callable("A013", shown, f"node {node.name}", functions().keys(), str(own), keep)
    return name


KEEP_WHOLE = (
    "keep the result with torch.save(result.model, FILE), which imports its code when it is read"
)
KEEP_STATE = (
    "keep the result's numbers with torch.save(result.model.state_dict(), FILE), and compile again "
    "before reading them"
)
"""What can be done with a model that an artifact cannot hold, whose code has a name or has none."""


def _importable(module: str, name: str, target: Any) -> bool:
    return getattr(sys.modules.get(module), name, None) is target


def _not_callable(
    code: str, what: str, where: str, known: Any, name: str, keep: str = ""
) -> LissomError:
    return fail(
        code,
        f"{what} cannot be stored",
        Label(None, where=where),
        note=f"an artifact calls only tensor functions and methods of torch {torch.__version__}, "
        "operator, math and a few builtins, so that reading one never runs anyone's code",
        help="; ".join(
            (
                *did_you_mean(name, known),
                "write it with torch's own functions" + (f", or {keep}" if keep else ""),
            )
        ),
    )
