"""The kinds of things that rules name, and which kind may stand where another is declared."""

from __future__ import annotations

from dataclasses import dataclass

from ..tree import tree as t

TENSORS = frozenset("fibt")
"""Classes of types of numbers."""
DTYPES = (
    "float16", "bfloat16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool",
    "complex64", "complex128",
)  # fmt: skip
NUMBERS = frozenset(("int", "float", "frac", "number", "dim"))
ARRAYS = NUMBERS | {"param", "tensor"}
EXTERN_TYPES = frozenset(
    ("any", "node", "param", "value", "dim", "scope", "int", "float", "frac", "number", "bool")
    + ("str", "dtype", "int2", "ints")
)
"""The types of extern functions beside tensors; passes/builtin.lissom says what each takes."""

_NOUNS = {
    "value": "an activation", "values": "activations", "param": "a weight", "tensor": "an array",
    "node": "a node", "int": "an integer", "float": "a number", "frac": "a share",
    "number": "a number", "bool": "a condition", "str": "a string", "dim": "a dimension",
    "word": "a word", "tuple": "a tuple", "list": "a list", "int2": "a pair", "int3": "a triple",
    "ints": "a list of integers", "dtype": "a dtype", "none": "nothing", "scope": "a scope",
    "any": "anything",
}  # fmt: skip
_ACCEPTS = {
    "node": {"node"}, "param": {"param"}, "value": {"value"}, "dim": {"dim"},
    "scope": {"word", "node", "param", "value", "dim"}, "number": NUMBERS, "int": {"int", "dim"},
    "float": NUMBERS, "frac": {"frac", "number", "float"}, "bool": {"bool"}, "str": {"str"},
    "dtype": {"dtype", "word", "str"}, "int2": {"int2", "int", "dim", "tuple"},
    "int3": {"int3", "int", "dim", "tuple"}, "ints": {"list", "tuple", "ints", "int", "dim"},
}  # fmt: skip
ACTIVE = frozenset(("perturb", "exit", "rewrite"))
"""Clauses in which activations may be computed with."""


@dataclass(frozen=True, slots=True)
class Kind:
    """`items` are the parts of a tuple."""

    name: str
    items: tuple[Kind, ...] = ()

    def __str__(self) -> str:
        return _NOUNS.get(self.name, self.name)


ANY, NONE, BOOL, TENSOR, NUMBER, INT = map(Kind, ("any", "none", "bool", "tensor", "number", "int"))


def declared_kind(type_: t.Type) -> Kind:
    """The kind that a declared type stands for."""
    tensor = type_.dims is not None or type_.name in TENSORS
    return TENSOR if tensor else Kind(type_.name or "tensor")


def accepts(wanted: Kind, given: Kind, clause: str) -> bool:
    if "any" in (wanted.name, given.name):
        return True
    if wanted.name == "tensor":
        return given.name in ARRAYS or (given.name == "value" and clause in ACTIVE)
    return given.name in _ACCEPTS.get(wanted.name, {wanted.name})
