"""Where batches come from: a function of the split, in the host program."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ...grammar.diagnostics import Label, LissomError, fail
from ..graph.runs import innermost, one_line

Source = Callable[[str], Iterable[Any]]
"""The batches of a split."""


class Stream:
    """Batches that are read anew each time, one after another, and never held together. A loader is
    made once, for what it draws as it is made may be what is held out; only of a generator, which
    yields its batches once, another one is asked for.
    """

    def __init__(self, source: Source, split: str, place: Label) -> None:
        self.source, self.split, self.place = source, split, place
        self.loader: Iterable[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        """Raises D001 where there is no such split, M023 where the data fails."""
        return asked(self._made, self.split, self.place)

    def __len__(self) -> int:
        """How many batches there are. Raises D001 and M023, and TypeError where the loader does not
        know.
        """
        with _failures(self.split, self.place):
            loader = self._made(self.split)
        return len(loader)  # type: ignore[arg-type]

    def _made(self, split: str) -> Iterable[Any]:
        if self.loader == () or isinstance(self.loader, Iterator):
            self.loader = self.source(split)
        return self.loader


def asked(source: Source, split: str, place: Label) -> Iterator[Any]:
    """The batches of a split. Raises D001 where there is none, M023 where the data fails."""
    with _failures(split, place):
        yield from source(split)


@contextmanager
def _failures(split: str, place: Label) -> Iterator[None]:
    """What goes wrong in the data of the host program, as a diagnostic."""
    try:
        yield
    except LissomError:
        raise
    except (ValueError, KeyError) as error:
        message = f"there is no data split `{split}`"
        raise fail("D001", message, place, note=str(error)) from None
    except Exception as error:
        where = replace(place, where=innermost(error))
        note = f"{type(error).__name__}: {one_line(error)}"
        raise fail("M023", f'`data("{split}")` failed', where, note=note) from error


def no_data(place: Label | None = None) -> Exception:
    hint = "pass `data=` to lissom.compile, or define data(split) in the model file"
    return fail("D002", "this needs data, and none was given", place or Label(None), help=hint)
