"""Writing an op through a signature: which value goes where in the arguments of a torch
callable.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from ...grammar.tree import tree as t
from .callables import is_module, resolve
from .dims import compiled


class CallWriter:
    """A torch callable, and where in its arguments each declared name goes.

    Tensors, and all arguments of an operator, go by position; settings go by name. Of a module
    class, only what its `forward` takes is an argument; the rest is in the module.
    """

    def __init__(
        self,
        signature: t.Signature,
        role: Mapping[str, str],
        defaults: Mapping[str, Any],
        own: Mapping[str, Any],
    ) -> None:
        self.function = resolve(signature.dotted, own, signature.span)
        self.is_module = is_module(self.function)
        self.is_method = signature.dotted.startswith("Tensor.")
        self.name = signature.function[-1].text
        slots = [slot for slot in signature.slots if self._is_argument(slot)]
        lead = _positional(slots, role, everything=signature.dotted.startswith("operator."))
        written = [slot for slot in slots if slot.ours.text != "_"]
        self._args = tuple((slot.ours.text, slot.variadic) for slot in written[:lead])
        self._kwargs = tuple((slot.theirs.text, slot.ours.text) for slot in written[lead:])
        fixed = {k.name.text: compiled(k.value)({}) for k in signature.fixed}
        self._fixed = {} if self.is_module else {k: v for k, v in fixed.items() if v is not None}
        self._defaults = defaults

    def _is_argument(self, slot: t.Slot) -> bool:
        return not self.is_module or slot.theirs.text in forward_names(self.function)

    def arguments(self, values: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments, from values by declared name.

        What goes by name is left out if it is None or the declared default, which is torch's own.
        """
        args: list[Any] = []
        for ours, spread in self._args:
            args.extend(values[ours]) if spread else args.append(values[ours])
        while args and args[-1] is None:
            args.pop()
        kwargs = {
            theirs: values[ours]
            for theirs, ours in self._kwargs
            if values[ours] is not None and not self._is_default(ours, values[ours])
        }
        return tuple(args), kwargs | self._fixed

    def _is_default(self, ours: str, value: Any) -> bool:
        known = self._defaults.get(ours, self._defaults)
        return type(known) is type(value) and bool(known == value)


def _positional(slots: list[t.Slot], role: Mapping[str, str], everything: bool) -> int:
    """How many slots go by position: up to the last tensor, but none after a skipped argument."""
    lead = 0
    for count, slot in enumerate(slots, start=1):
        if slot.ours.text == "_":
            break
        if everything or slot.variadic or role.get(slot.ours.text) != "attr":
            lead = count
    return lead


@functools.cache
def forward_names(kind: type[Any]) -> tuple[str, ...]:
    """The parameters of a module's `forward`, without `self`."""
    return tuple(inspect.signature(kind.forward).parameters)[1:]
