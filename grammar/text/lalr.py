"""Runs the LALR tables: text in, what the callbacks make of its rules out.

Each symbol on the stack has a value and a range of characters. The range of a rule reaches from the
first to the last of its symbols that take up space, those without a value included.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from .tables import Pick, Tables

END = "$END"
Range = tuple[int, int]
"""Half-open, in characters of the text."""

NOWHERE = (0, 0)
"""The range of a rule without symbols."""

Callback = Callable[[Range, list[Any]], Any]
"""Makes the value of a rule from its range and the values of its parts."""


def STANDS(place: Range, parts: list[Any]) -> Any:
    """The callback of a rule whose only part stands for it."""
    return parts[0]


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
        # A rule without a callback is the list of its parts, which the rule around it takes up.
        self._rules = [
            (symbol, size, picks, callbacks.get(name) if name else STANDS)
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
        states = [self._start]
        values: list[Any] = []
        ranges: list[Range | None] = []
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
        ranges: list[Range | None],
        token: Token,
    ) -> None:
        """Reduce by rules until the token can be shifted or the text is complete."""
        rows, rules = self._states, self._rules
        while (action := rows[states[-1]].get(token.type)) is None or action < 0:
            if action is None:
                raise BadToken(token, self._accepts(states))
            symbol, size, picks, callback = rules[~action]
            if callback is STANDS:
                states[-1] = rows[states[-2]][symbol]
                continue
            first = len(values) - size
            del states[first + 1 :]
            states.append(rows[states[-1]][symbol])
            place = _range(ranges[first:])
            parts = _parts(values[first:], picks)
            values[first:] = [parts if callback is None else callback(place or NOWHERE, parts)]
            ranges[first:] = [place]
            if states[-1] == self._end:
                return

    def _accepts(self, states: list[int]) -> frozenset[str]:
        """The terminals that the grammar could go on with."""
        terminals = filter(str.isupper, self._states[states[-1]])
        return frozenset(name for name in terminals if self._can_shift(list(states), name))

    def _can_shift(self, states: list[int], terminal: str) -> bool:
        """Whether the rules that `terminal` completes lead to a state that takes it."""
        while (action := self._states[states[-1]].get(terminal)) is not None and action < 0:
            symbol, size, *_ = self._rules[~action]
            del states[len(states) - size :]
            states.append(self._states[states[-1]][symbol])
            if states[-1] == self._end:
                return True
        return action is not None


def _parts(values: list[Any], picks: list[Pick] | None) -> list[Any]:
    """What a rule takes of the values of its symbols."""
    if picks is None:
        return values
    parts: list[Any] = []
    for pick in picks:
        if not isinstance(pick, list):
            parts.append(None if pick is None else values[pick])
        elif parts:
            parts += values[pick[0]]
        else:
            # A list grows at its end by one rule after the other: copying it each time would take
            # the square of its length. Nobody else holds the list of a part that is taken up.
            parts = values[pick[0]]
    return parts


def _range(ranges: list[Range | None]) -> Range | None:
    """From the first symbol that takes up space to the last one; None if there is none."""
    places = [place for place in ranges if place is not None]
    return (places[0][0], places[-1][1]) if places else None
