"""Runs the LALR tables: text in, what the callbacks make of its rules out.

Each symbol on the stack has a value and a range of characters. The range of a rule reaches from the
first to the last of its symbols that take up space, those without a value included.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from .tables import Tables

END = "$END"
Callback = Callable[[tuple[int, int], list[Any]], Any]
"""Makes the value of a rule from its range of characters and the values of its parts."""


class Token(str):
    """A word of the text: what it is for the grammar, and where it stands."""

    __slots__ = ("end_pos", "start_pos", "type")
    type: str
    start_pos: int
    end_pos: int

    def __new__(cls, type: str, text: str, start: int, end: int) -> Token:
        token = super().__new__(cls, text)
        token.type, token.start_pos, token.end_pos = type, start, end
        return token

    def as_type(self, type: str, text: str | None = None) -> Token:
        """The same place under another type, and with another text if one is given."""
        return Token(type, self if text is None else text, self.start_pos, self.end_pos)


class BadCharacter(Exception):
    """No terminal fits the text at `offset`."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"no token starts at {offset}")
        self.offset = offset


class BadToken(Exception):
    """The grammar cannot go on with `token`; with one of the terminals `accepts` it could."""

    def __init__(self, token: Token, accepts: frozenset[str]) -> None:
        super().__init__(f"unexpected {token.type}")
        self.token, self.accepts = token, accepts


class Parser:
    """The lexer and the parser of one grammar. It keeps nothing between texts."""

    def __init__(self, tables: Tables, callbacks: Mapping[str, Callback]) -> None:
        self._states = tables.states
        self._start, self._end = tables.start, tables.end
        self._ignored = frozenset(tables.ignored)
        self._pattern = re.compile("|".join(f"(?P<{name}>{p})" for name, p in tables.terminals))
        # A rule without a callback is its list of parts, which the rule around it takes up.
        self._rules = [
            (symbol, size, picks, callbacks.get(name), not name)
            for symbol, name, size, picks in tables.rules
        ]

    def tokens(self, text: str, start: int, end: int) -> Iterator[Token]:
        """The tokens of `text[start:end]`, one at a time. Raises BadCharacter."""
        match, ignored = self._pattern.match, self._ignored
        while start < end:
            found = match(text, start, end)
            if found is None:
                raise BadCharacter(start)
            kind, stop = found.lastgroup or "", found.end()
            if kind not in ignored:
                yield Token(kind, found[0], start, stop)
            start = stop

    def parse(self, tokens: Iterable[Token]) -> Any:
        """The value of the text. Raises BadToken, and what the callbacks raise."""
        states, values, ranges = [self._start], [], []
        token = Token("", "", 0, 1)
        for token in tokens:
            self._reduce(states, values, ranges, token)
            states.append(self._states[states[-1]][token.type])
            values.append(token)
            ranges.append((token.start_pos, token.end_pos))
        self._reduce(states, values, ranges, token.as_type(END, ""))
        return values[-1]

    def _reduce(
        self,
        states: list[int],
        values: list[Any],
        ranges: list[tuple[int, int] | None],
        token: Token,
    ) -> None:
        """Reduce by rules until the token can be shifted or the text is complete."""
        rows, rules = self._states, self._rules
        while (action := rows[states[-1]].get(token.type)) is None or action < 0:
            if action is None:
                raise BadToken(token, self._accepts(states))
            symbol, size, picks, callback, stands = rules[~action]
            first = len(values) - size
            if not stands or size != 1:
                parts = _parts(values[first:], picks)
                place = _range(ranges[first:])
                values[first:] = [_value(callback, stands, place, parts)]
                ranges[first:] = [place]
                del states[first + 1 :]
            else:
                states.pop()
            states.append(rows[states[-1]][symbol])
            if states[-1] == self._end:
                return
