"""Tensors over a finite field that torch functions run on unchanged.

A `Field` says it is a floating tensor. torch takes every function apart into its basic operations,
and those are computed on residues: data movement as it is, arithmetic modulo p. What has no meaning
in a field (max, exp, a comparison) is an opaque function: pseudo-random, but the same for the same
arguments on both sides of a rule.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...torch_internals import schema_of, unreported
from .residues import (
    PRIME,
    ROOTS,
    Numbers,
    Track,
    Unexpressible,
    as_residues,
    digest,
    mixed,
    product,
)

CONSTANT = Track()

Arguments = tuple[Any, ...]
Settings = dict[str, Any]
Operation = Callable[..., Any]
"""`operation(world, func, args, settings)`: one of torch's basic operations on residues, or
NotImplemented for settings that residues cannot follow.
"""


class World:
    """The numbers of one trial: what is drawn, and which roots are known. `exact` are the
    operations that are computed; the others are opaque.
    """

    def __init__(self, seed: int, exact: Mapping[str, Operation]) -> None:
        self.exact = exact
        self.generator = torch.Generator().manual_seed(seed)
        self.numbers = Numbers()
        self.key = seed
        self.drawn: list[tuple[Tensor, Tensor]] = []

    def variable(self, shape: Sequence[int], *, free: bool = False) -> Field:
        """Random squares of known roots."""
        return self._squares(shape, torch.zeros((), dtype=torch.float64), free)

    def variance(self, shape: Sequence[int], eps: float) -> Field:
        """Random numbers that are squares of known roots when `eps` is added."""
        shift = torch.tensor(float(self.numbers.residue(eps)), dtype=torch.float64)
        return self._squares(shape, shift, False)

    def _squares(self, shape: Sequence[int], shift: Tensor, free: bool) -> Field:
        drawn = torch.randint(1, ROOTS + 1, tuple(shape), generator=self.generator).double()
        square = product(drawn, drawn)
        self.drawn.append((square.flatten(), drawn.flatten()))
        return Field(torch.remainder(square - shift, PRIME), self, Track(2, free=free))

    def root(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The root of each residue, and where it is known."""
        squares = torch.cat([*(square for square, _ in self.drawn), torch.zeros(1).double()])
        roots = torch.cat([*(root for _, root in self.drawn), torch.zeros(1).double()])
        squares, order = squares.sort()
        at = torch.searchsorted(squares, value.contiguous()).clamp(max=squares.numel() - 1)
        return roots[order][at], squares[at] == value

    def lift(self, value: Any) -> Field:
        """A number or a floating tensor as constants of the field."""
        if isinstance(value, Field):
            return value
        held = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        distinct, places = held.detach().double().unique(return_inverse=True)
        found = [float(self.numbers.residue(number)) for number in distinct.tolist()]
        residues = torch.tensor(found, dtype=torch.float64)[places]
        return Field(residues.reshape(held.shape), self, CONSTANT)


class Field(Tensor):
    """A tensor of residues. `track` bounds the degree of its elements."""

    __torch_function__ = unreported  # type: ignore[assignment]
    residues: Tensor
    world: World
    track: Track

    @staticmethod
    def __new__(
        cls, residues: Tensor, world: World, track: Track, dtype: torch.dtype = torch.float64
    ) -> Field:
        return Tensor._make_wrapper_subclass(cls, residues.shape, dtype=dtype)

    def __init__(
        self, residues: Tensor, world: World, track: Track, dtype: torch.dtype = torch.float64
    ) -> None:
        self.residues, self.world, self.track = residues.contiguous(), world, track

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _dispatch(func, args, kwargs or {})

    def item(self) -> Any:
        """A number of the field stays a tensor without axes."""
        if not self.is_floating_point():
            raise Unexpressible("a whole number or truth value of field elements")
        return self.reshape(())

    def _no_number(self, *_: Any) -> Any:
        raise Unexpressible("the value of a field element has no meaning")

    __float__ = __int__ = __bool__ = __index__ = tolist = numpy = _no_number  # type: ignore[assignment]

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Field({list(self.shape)})"


# -- taking torch functions apart ------------------------------------------------------------------

_REFUSED = {
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.nondeterministic_seeded,
}


def _dispatch(func: Any, args: Arguments, settings: Settings) -> Any:
    name = schema_of(func).name.removeprefix("aten::")
    fields = [leaf for leaf in _leaves((*args, *settings.values())) if isinstance(leaf, Field)]
    real = all(field.is_floating_point() for field in fields)
    if name in _MOVEMENT and (real or (len(fields) == 1 and args[0] is fields[0])):
        return _moved(func, fields, args, settings)
    exact = fields[0].world.exact.get(name)
    if exact is not None and real:
        found = exact(fields[0].world, func, args, settings)
        if found is not NotImplemented:
            return found
    if name in _RESHAPED_IN_PLACE:
        return _in_place(func, name, args)
    if schema_of(func).is_mutable or _REFUSED & set(func.tags):
        raise Unexpressible(f"`{name}` of field elements")
    if func._can_decompose():
        return func.decompose(*args, **settings)
    return _opaque(func, fields, args, settings)


_RESHAPED_IN_PLACE = frozenset({"squeeze_", "unsqueeze_", "transpose_", "t_"})


def _in_place(func: Any, name: str, args: Arguments) -> Field:
    """torch reshapes results of its own so; no number is written."""
    held = args[0]
    changed = getattr(getattr(torch.ops.aten, name[:-1]), func._overloadname)(*args)
    held.data, held.residues = changed, changed.residues
    return held


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, (tuple, list)):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, (tuple, list)):
        return [_each(item, change) for item in value]
    return change(value)


def _joint(fields: Sequence[Field]) -> Track:
    track = fields[0].track
    for field in fields[1:]:
        track = track.beside(field.track)
    return track


# -- data movement ---------------------------------------------------------------------------------

_MOVEMENT = frozenset((
    "alias", "cat", "channel_shuffle", "clone", "constant_pad_nd", "detach", "diag_embed",
    "diagonal", "embedding", "expand", "flip", "gather", "im2col", "index", "index_select",
    "lift_fresh", "native_channel_shuffle", "permute", "pixel_shuffle", "pixel_unshuffle",
    "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "repeat", "replication_pad1d",
    "replication_pad2d", "replication_pad3d", "roll", "select", "slice", "split",
    "split_with_sizes", "squeeze", "stack", "t", "transpose", "tril", "triu", "unbind",
    "unsqueeze", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_unsafe_view",
    "view",
))  # fmt: skip


_JOINING = frozenset({"aten::cat", "aten::stack"})
"""What puts whole numbers beside others; elsewhere they are places."""


def _moved(func: Any, fields: Sequence[Field], args: Arguments, settings: Settings) -> Any:
    world, dtype, track = fields[0].world, fields[0].dtype, _joint(fields)
    joins = schema_of(func).name in _JOINING

    def lower(value: Any) -> Any:
        if isinstance(value, float):
            return float(world.numbers.residue(value))
        number = isinstance(value, Tensor) and (joins or value.is_floating_point())
        return world.lift(value).residues if isinstance(value, Field) or number else value

    found = func(*_each(args, lower), **settings)
    return _each(found, lambda value: Field(value, world, track, dtype))


# -- everything else -------------------------------------------------------------------------------


def _opaque(func: Any, fields: Sequence[Field], args: Arguments, settings: Settings) -> Any:
    world = fields[0].world
    shapes = func(*_each(args, _ones), **{k: _ones(v) for k, v in settings.items()})
    leaves = [leaf for leaf in _leaves((*args, *settings.values())) if isinstance(leaf, Tensor)]
    text = repr((str(func), _each((*args, *settings.items()), lambda v: _text(world, v))))
    key = torch.tensor(zlib.crc32(text.encode()) * 31 + world.key)
    whole = [_whole(world, leaf) for leaf in leaves]
    if torch.Tag.pointwise in func.tags or schema_of(func).name == "aten::_to_copy":
        for leaf in whole:
            key = mixed(key + mixed(leaf))
        return Field(as_residues(key), world, _joint(fields).hidden(), shapes.dtype)
    for leaf in whole:
        key = mixed(key + digest(leaf))
    track = _joint(fields).hidden(sum(field.numel() for field in fields))
    return _filled(shapes, key, world, track)


def _filled(shapes: Any, key: Tensor, world: World, track: Track) -> Any:
    """A different number for every element of every result."""
    if isinstance(shapes, (tuple, list)):
        items = enumerate(shapes)
        return tuple(_filled(item, mixed(key + number), world, track) for number, item in items)
    if not isinstance(shapes, Tensor):
        raise Unexpressible(f"a {type(shapes).__name__} computed from field elements")
    places = torch.arange(shapes.numel()).reshape(shapes.shape)
    return Field(as_residues(mixed(key + mixed(places))), world, track, shapes.dtype)


def _whole(world: World, leaf: Tensor) -> Tensor:
    lifted = isinstance(leaf, Field) or leaf.is_floating_point()
    return (world.lift(leaf).residues if lifted else leaf).long()


def _ones(value: Any) -> Any:
    """Something of the same shape and type: meta tensors would load half of torch for it."""
    return torch.ones(value.shape, dtype=value.dtype) if isinstance(value, Field) else value


def _text(world: World, value: Any) -> str:
    """A setting as it counts: 6 and 6.0 are one number."""
    if isinstance(value, Tensor):
        return "tensor"
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    try:
        return str(world.numbers.fraction(value)) if number else repr(value)
    except Unexpressible:
        return repr(value)
