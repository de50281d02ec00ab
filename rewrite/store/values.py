"""Names and argument values of a graph as JSON values, and the one spelling every JSON file of an
artifact has.

Scalars are themselves; everything else is an object with one key that says what it is: `{"list":
[..]}`, `{"tuple": [..]}`, `{"dict": [[key, value], ..]}`, `{"node": name}`, `{"slice": [..]}`,
`{"number": "inf"}`, `{"torch": "float32"}`, `{"device": "cpu"}`, `{"size": [..]}`, `{"ellipsis":
true}`.
"""

from __future__ import annotations

import json
import keyword
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.fx import Node
from torch.fx.immutable_collections import immutable_dict, immutable_list

from ...grammar.diagnostics import Label, LissomError, fail

MAX_DEPTH = 64
_INTEGERS = range(-(2**63), 2**63)
_NUMBERS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_DEVICE = re.compile(r"[a-z]{1,16}(:[0-9]{1,3})?")
_TORCH = {
    str(value).removeprefix("torch."): value
    for value in vars(torch).values()
    if isinstance(value, torch.dtype | torch.layout | torch.memory_format)
}

# -- JSON text -------------------------------------------------------------------------------------


def canonical_json(value: object) -> bytes:
    """The one spelling of a JSON value: sorted keys, no spaces, ASCII, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def parse_json(data: bytes, where: str) -> Any:
    """The JSON value `canonical` wrote. Raises A025 for every other spelling.

    Comparing with the canonical spelling refuses, in one step, repeated keys, numbers beyond the
    floats, other encodings, and spaces that could hide a change.
    """
    try:
        value = json.loads(data)
        same = canonical_json(value) == data
    except (ValueError, RecursionError) as error:
        raise malformed(f"is not JSON as lissom writes it ({error})", where) from error
    if not same:
        raise malformed("is not JSON in the one spelling lissom writes", where)
    return value


def parse_header(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object as another writer spells it, without repeated keys. Raises A025."""
    try:
        value = json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise malformed(f"has a header that is not JSON ({error})", where) from error
    if type(value) is not dict:
        raise malformed("has a header that is no object", where)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key is repeated")
    return dict(pairs)


def malformed(what: str, where: str) -> LissomError:
    return fail(
        "A025",
        f"`{where}` {what}",
        Label(None, where=where),
        note="every file matches its hash, so it was made that way and not damaged on its way here",
        help="save the artifact again with `lissom`; do not edit its files by hand",
    )


def fields(value: Any, where: str, **types: type) -> list[Any]:
    """The values of exactly the named fields of a JSON object, type-checked. Raises A025."""
    if type(value) is not dict or value.keys() != types.keys():
        raise malformed(f"needs an object with exactly the fields {', '.join(types)}", where)
    for name, kind in types.items():
        if type(value[name]) is not kind:
            raise malformed(f"needs a {kind.__name__} in field {name}", where)
    return [value[name] for name in types]


# -- names -----------------------------------------------------------------------------------------


def is_name(text: object) -> bool:
    """Whether fx may write `text` into the code it generates: an ASCII identifier, no keyword, no
    dunder.
    """
    plain = type(text) is str and text.isascii() and text.isidentifier()
    return plain and not keyword.iskeyword(text) and not text.startswith("__")


def is_path_part(text: object) -> bool:
    return is_name(text) or (type(text) is str and text.isascii() and text.isdigit())


def require_name(text: object, what: str, where: str) -> str:
    if not is_name(text):
        raise _bad_name(text, what, where)
    return str(text)


def require_local(text: object, what: str, where: str) -> str:
    """A name for a variable of the generated function, where fx takes `self` for the module."""
    if text == "self":
        raise _bad_name(text, what, where)
    return require_name(text, what, where)


def require_path(text: object, what: str, where: str) -> str:
    """A dotted path of names and numbers, such as `layer1.0.conv`. Raises A016."""
    if type(text) is not str or not all(map(is_path_part, text.split("."))):
        raise _bad_name(text, what, where)
    if text.count(".") > MAX_DEPTH:
        raise too_deep(where)
    return text


def _bad_name(text: object, what: str, where: str) -> LissomError:
    return fail(
        "A016",
        f"{what} {text!r} cannot be stored",
        Label(None, where=where),
        note="torch.fx writes names into the Python code it generates, so a name must be an ASCII "
        "identifier that is no keyword, not `self`, and does not begin with two underscores",
        help="rename it in the model, then compress and save again",
    )


# -- values to JSON --------------------------------------------------------------------------------


def encode(value: object, where: str, depth: int = 0) -> Any:
    """JSON for an argument value. Raises A015 for other types, A018 for deep nesting."""
    if depth > MAX_DEPTH:
        raise too_deep(where)
    kind = type(value)
    if value is None or kind in (bool, str) or (kind is int and value in _INTEGERS):
        return value
    encoder = _ENCODERS.get(kind)
    if encoder is None:
        raise _not_storable(value, where)
    return encoder(value, lambda item: encode(item, where, depth + 1))


def too_deep(where: str) -> LissomError:
    return fail(
        "A018",
        f"nested deeper than {MAX_DEPTH} levels",
        Label(None, where=where),
        help="flatten the nested lists, tuples or modules",
    )


def _not_storable(value: object, where: str) -> LissomError:
    kind = type(value)
    remedy = (
        "register the tensor as a buffer" if isinstance(value, torch.Tensor) else "use one of those"
    )
    return fail(
        "A015",
        f"an argument of type `{kind.__module__}.{kind.__qualname__}` cannot be stored",
        Label(None, where=where),
        note="stored are 64-bit int, float, bool, str, None, lists, tuples, dicts, slices, and "
        "torch's dtypes, devices, layouts, memory formats and sizes, of exactly these types",
        help=remedy,
    )


_Encoder = Callable[[Any, Callable[[object], Any]], Any]


def _items(values: Iterable[object], inner: Callable[[object], Any]) -> list[Any]:
    return [inner(value) for value in values]


_ENCODERS: dict[type, _Encoder] = {
    float: lambda v, inner: v if math.isfinite(v) else {"number": str(v)},
    Node: lambda v, inner: {"node": v.name},
    list: lambda v, inner: {"list": _items(v, inner)},
    immutable_list: lambda v, inner: {"list": _items(v, inner)},
    tuple: lambda v, inner: {"tuple": _items(v, inner)},
    dict: lambda v, inner: {"dict": [_items(pair, inner) for pair in v.items()]},
    immutable_dict: lambda v, inner: {"dict": [_items(pair, inner) for pair in v.items()]},
    slice: lambda v, inner: {"slice": _items((v.start, v.stop, v.step), inner)},
    type(Ellipsis): lambda v, inner: {"ellipsis": True},
    torch.Size: lambda v, inner: {"size": _items(v, inner)},
    torch.device: lambda v, inner: {"device": str(v)},
    torch.dtype: lambda v, inner: {"torch": str(v).removeprefix("torch.")},
    torch.layout: lambda v, inner: {"torch": str(v).removeprefix("torch.")},
    torch.memory_format: lambda v, inner: {"torch": str(v).removeprefix("torch.")},
}

# -- JSON to values --------------------------------------------------------------------------------


def decode(value: Any, where: str, nodes: Mapping[str, Node] | None = None, depth: int = 0) -> Any:
    """The argument value `encode` wrote; node references are looked up in `nodes`. Raises A025."""
    if depth > MAX_DEPTH:
        raise too_deep(where)
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is not dict or len(value) != 1:
        raise malformed("holds a value that is neither a scalar nor an object with one key", where)
    ((tag, content),) = value.items()
    if tag == "node":
        return _node(content, where, nodes or {})
    decoder = _DECODERS.get(tag)
    if decoder is None:
        raise malformed(f"holds a value of the unknown kind {tag!r}", where)
    try:
        return decoder(content, lambda item: decode(item, where, nodes, depth + 1))
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise malformed(f"holds a {tag} that cannot be read ({error})", where) from error


def _node(name: Any, where: str, nodes: Mapping[str, Node]) -> Node:
    if type(name) is not str or name not in nodes:
        raise malformed(f"uses the node {name!r}, which is not defined before it", where)
    return nodes[name]


def _list(content: Any, inner: Callable[[Any], Any]) -> list[Any]:
    if type(content) is not list:
        raise TypeError("a list is needed")
    return [inner(item) for item in content]


def _dict(content: Any, inner: Callable[[Any], Any]) -> dict[Any, Any]:
    pairs = [_list(pair, inner) for pair in _list(content, lambda pair: pair)]
    if any(isinstance(key, Node | slice) for key, _ in pairs):
        raise TypeError("a key is neither a scalar nor a tuple")
    return dict(pairs)


def _device(content: Any, inner: Callable[[Any], Any]) -> torch.device:
    if type(content) is not str or not _DEVICE.fullmatch(content):
        raise ValueError("not a device name")
    return torch.device(content)


_DECODERS: dict[str, Callable[[Any, Callable[[Any], Any]], Any]] = {
    "number": lambda c, inner: _NUMBERS[c],
    "list": _list,
    "tuple": lambda c, inner: tuple(_list(c, inner)),
    "dict": _dict,
    "slice": lambda c, inner: slice(*_list(c, inner)),
    "ellipsis": lambda c, inner: Ellipsis,
    "size": lambda c, inner: torch.Size(_list(c, inner)),
    "device": _device,
    "torch": lambda c, inner: _TORCH[c],
}
