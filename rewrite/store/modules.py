"""The tree of modules under a GraphModule as JSON: plain containers and the layers of torch.nn,
nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from .layers import encode_layer, layer_from_json, layer_tensors, refuse_hooks
from .tensors import Placed
from .values import MAX_DEPTH, fields, is_path_part, malformed, require_path, too_deep

# -- tree to JSON ----------------------------------------------------------------------------------

_MAX_PLACES = 1_000_000


def walk_modules(root: nn.Module) -> Iterator[tuple[str, nn.Module, str | None]]:
    """Parents before children: (path, module, path it was first met at or None). Shared ones are
    not entered again.
    """
    first: dict[int, str] = {}
    stack: list[tuple[str, nn.Module]] = [("", root)]
    while stack:
        path, module = stack.pop()
        known = first.setdefault(id(module), path) if id(module) in first else None
        yield path, module, known
        if known is not None:
            continue
        first[id(module)] = path
        if path.count(".") >= MAX_DEPTH:
            raise too_deep(path)
        prefix = f"{path}." if path else ""
        children = [
            (prefix + name, child) for name, child in module._modules.items() if child is not None
        ]
        stack.extend(reversed(children))


def encode_modules(root: nn.Module) -> list[Any]:
    """JSON for every module under the root. Raises A010 to A012 for what is not rebuilt exactly."""
    specs: list[Any] = []
    for path, module, known in walk_modules(root):
        if not path:
            refuse_hooks(module, path)
            continue
        require_path(path, "the path", path)
        if known is not None:
            specs.append({"path": path, "same_as": known})
            continue
        name, arguments = encode_layer(module, path)
        specs.append({"path": path, "class": name, "args": arguments, "training": module.training})
    return specs


# -- JSON to tree ----------------------------------------------------------------------------------


def build_tree(root: nn.Module, specs: Any, tensors: list[Placed]) -> None:
    """Register modules and tensors under the root. Raises A010, A016, A025 or A027."""
    if type(specs) is not list:
        raise malformed("needs a list of modules", "graph.json")
    slots: dict[str, list[Placed]] = {}
    for placed in tensors:
        slots.setdefault(placed.path.rpartition(".")[0], []).append(placed)
    built: dict[str, nn.Module] = {"": root}
    _fill(root, "", slots.pop("", []))
    for spec in specs:
        path, module = _module_of(spec, built, slots)
        _adopt(built, path, module)
        built[path] = module
    _require_complete(built, slots)


def _module_of(
    spec: Any, built: dict[str, nn.Module], slots: dict[str, list[Placed]]
) -> tuple[str, nn.Module]:
    if type(spec) is dict and "same_as" in spec:
        path, known = fields(spec, "graph.json", path=str, same_as=str)
        if known not in built or not known:
            raise malformed(
                f"shares `{path}` with `{known}`, which is not built before it", "graph.json"
            )
        return path, built[known]
    path, name, arguments, training = fields(
        spec, "graph.json", path=str, **{"class": str}, args=dict, training=bool
    )
    module = layer_from_json(name, arguments, path)
    _fill(module, path, slots.pop(path, []))
    module.training = training
    return path, module


def _adopt(built: dict[str, nn.Module], path: str, module: nn.Module) -> None:
    require_path(path, "the path", "graph.json")
    parent_path, _, name = path.rpartition(".")
    parent = built.get(parent_path)
    if parent is None or path in built:
        raise malformed(f"lists `{path}` twice or before its parent", "graph.json")
    # Taking the constructor's own child out first makes the order of children the stored one.
    parent._modules.pop(name, None)
    _require_free(parent, name, path)
    parent.add_module(name, module)


def _fill(module: nn.Module, path: str, places: list[Placed]) -> None:
    """Give a module its tensors in the stored order, in place of those its constructor made."""
    expected = layer_tensors(module)
    names = [placed.path.rpartition(".")[2] for placed in places]
    if not expected.keys() <= set(names):
        raise malformed(f"leaves out a tensor of `{path}`", "graph.json")
    for name, placed in zip(names, places, strict=True):
        if name in expected and expected[name].shape != placed.tensor.shape:
            raise malformed(
                f"gives `{placed.path}` a shape that does not fit its layer", "graph.json"
            )
        _register(module, name, placed)


def _register(module: nn.Module, name: str, placed: Placed) -> None:
    module._parameters.pop(name, None)
    module._buffers.pop(name, None)
    _require_free(module, name, placed.path)
    if placed.slot == "parameter":
        # Assignment, because recurrent layers keep a second list of their weights in __setattr__.
        setattr(module, name, placed.tensor)
        return
    module.register_buffer(name, placed.tensor, persistent=placed.slot == "buffer")


def _require_free(module: nn.Module, name: str, path: str) -> None:
    if not is_path_part(name) or hasattr(module, name):
        raise malformed(f"registers `{path}`, whose name the module already uses", "graph.json")


def _require_complete(built: dict[str, nn.Module], slots: dict[str, list[Placed]]) -> None:
    if slots:
        raise malformed(f"has tensors of `{next(iter(slots))}`, which is no module", "graph.json")
    _require_bounded(built[""])
    for path, module in built.items():
        if any(tensor.is_meta for tensor in layer_tensors(module).values()):
            raise malformed(f"leaves out a tensor of `{path}`", "graph.json")


def _require_bounded(root: nn.Module) -> None:
    """Refuse trees that sharing makes endless, too deep to recurse over, or too many places to
    visit: a shared module counts at each of its places, as `state_dict` and `eval` visit it there.
    """
    level = [(root, 1)]
    places = 0
    for _ in range(MAX_DEPTH + 1):
        below: dict[int, tuple[nn.Module, int]] = {}
        for child, count in _children(level):
            below[id(child)] = (child, count + below.get(id(child), (child, 0))[1])
        level = list(below.values())
        places += sum(count for _, count in level)
        if not level or places > _MAX_PLACES:
            break
    if level:
        raise malformed("nests or shares its modules without end", "graph.json")


def _children(level: list[tuple[nn.Module, int]]) -> Iterator[tuple[nn.Module, int]]:
    for module, count in level:
        yield from ((child, count) for child in module._modules.values() if child is not None)
