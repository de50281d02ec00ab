"""The post-lexer: turns the raw tokens into what the LALR grammar reads.

It ends statements (newlines count only outside brackets), retags the words that open a statement or
join its parts, and stops early on text that is too deep or too long. Because it knows the block it
stands in, a word such as `dim` is a keyword where an op item begins and a plain name elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..diagnostics import Label, LissomError, Source, Span, did_you_mean, fail
from .lalr import Token

MAX_DEPTH = 64
MAX_TOKENS = 30_000
MAX_NAME = 100

HARD = {
    "and": "AND", "or": "OR", "not": "NOT", "mod": "MOD", "in": "IN",
    "forall": "FORALL", "exists": "EXISTS", "none": "NONE", "true": "TRUE", "false": "FALSE",
    "pure": "PURE", "as": "_AS", "from": "_FROM", "of": "_OF", "at": "_AT", "on": "_ON",
    "else": "_ELSE", "when": "_WHEN", "by": "_BY", "until": "_UNTIL", "order": "_ORDER",
    "within": "_WITHIN", "because": "_BECAUSE",
}  # fmt: skip
"""Words that are never names, but of an argument: `hint(at = "layer2")`."""

FILE = ("use", "extern", "op", "exact", "approx", "lossless", "observe", "pipeline", "test")
OP = ("param", "attr", "dim", "trait", "mixes", "sums", "cost", "meaning", "spelling")
RULE = (
    "doc", "priority", "recursive", "on_shared", "match", "unless", "where", "let", "perturb",
    "rewrite", "train", "ensure",
)  # fmt: skip
BLOCK = ("stage", "recover", "repeat", "control", "checkpoint", "rewind", "exit")
PIPELINE = ("input", "data", "budget", *BLOCK, "verify", "on_fail", "mode")
STEP = ("once", "fixpoint", "each", "first", "try", "calibrate")
TEST = ("fires", "silent", "check")
ALWAYS = {
    "file": FILE, "op": OP, "rule": RULE, "pipeline": PIPELINE, "block": BLOCK, "step": STEP,
    "test": TEST,
}  # fmt: skip
"""Blocks in which every statement opens with one of these words."""

SOMETIMES = {
    "match": ("shared",),
    "rewrite": ("store", "attach", "exit"),
    "ensure": ("needs", "provides", "invalidates", "forbids"),
}
"""Blocks in which these words open a statement if a name follows them."""

OPENS = {
    "op": "op", "exact": "rule", "approx": "rule", "lossless": "rule", "observe": "rule",
    "match": "match", "unless": "match", "rewrite": "rewrite", "ensure": "ensure",
    "verify": "ensure", "pipeline": "pipeline", "repeat": "block", "control": "block",
    "stage": "step", "first": "step", "try": "step", "test": "test",
}  # fmt: skip
"""The block that a statement's `{` opens; other braces hold expressions."""

SECOND = {
    "extern": ("fn",), "exact": ("rule",), "approx": ("rule",), "lossless": ("rule",),
    "observe": ("rule",), "match": ("dim", "param", "value"), "recursive": ("decreasing",),
}  # fmt: skip
"""Words that may directly follow an opening word."""

SIGNED = ("meaning", "spelling")
"""Statements that hold a signature: `with` joins its parts outside of the brackets."""

KEPT = {
    "exact",
    "approx",
    "lossless",
    "observe",
    "shared",
    "needs",
    "provides",
    "invalidates",
    "forbids",
}
"""Keywords whose text the tree needs; the grammar drops the others, whose names start with `_`."""

OPENERS = {"LPAR": "RPAR", "LSQB": "RSQB"}


@dataclass
class LexState:
    """Where the post-lexer stands: open brackets and blocks, and how the statement opened."""

    source: Source
    brackets: list[Token] = field(default_factory=list)
    braces: list[Token] = field(default_factory=list)
    blocks: list[str] = field(default_factory=lambda: ["file"])
    opening: str = ""
    fresh: bool = True
    second: bool = False
    """Whether the next token directly follows the opening word."""

    def span(self, token: Token) -> Span:
        return Span(self.source, token.start_pos, token.end_pos)


def statements(source: Source, stream: Iterator[Token]) -> Iterator[Token]:
    """The tokens of `source` as the grammar reads them. Raises `LissomError`."""
    state = LexState(source)
    token = None
    for token, following in _with_next(_counted(state, stream)):
        yield from _step(state, token, following)
    _check_closed(state)
    if not state.fresh and token is not None:
        yield token.as_type("_END", "")


def _with_next(tokens: Iterator[Token]) -> Iterator[tuple[Token, Token | None]]:
    """Each token and the one after it, reading no further: the first error is the one reported."""
    token = next(tokens, None)
    while token is not None:
        following = next(tokens, None)
        yield token, following
        token = following


def _counted(state: LexState, stream: Iterator[Token]) -> Iterator[Token]:
    for count, token in enumerate(stream):
        if count >= MAX_TOKENS:
            place = Label(state.span(token), "the limit is reached here")
            raise fail(
                "E002",
                f"the file has more than {MAX_TOKENS} tokens",
                place,
                help="split it and `use` the parts",
            )
        yield token


def _step(state: LexState, token: Token, following: Token | None) -> Iterator[Token]:
    if token.type == "_NEWLINE":
        yield from _newline(state, token)
    elif token.type == "LBRACE":
        yield _open_block(state, token)
    elif token.type == "RBRACE":
        yield from _close_block(state, token, following)
    else:
        yield _word(state, token, following) if token.type == "NAME" else _bracket(state, token)
        state.second, state.fresh = state.fresh, False


def _newline(state: LexState, token: Token) -> Iterator[Token]:
    if state.brackets or state.fresh:
        return
    state.fresh, state.opening = True, ""
    yield token.as_type("_END")


def _open_block(state: LexState, token: Token) -> Token:
    state.blocks.append(OPENS.get(state.opening, "expr"))
    state.braces.append(token)
    _check_depth(state, token)
    state.fresh, state.opening = True, ""
    return token


def _close_block(state: LexState, token: Token, following: Token | None) -> Iterator[Token]:
    if state.brackets:
        raise _never_closed(
            state, state.brackets[-1], Label(state.span(token), "the block ends here")
        )
    if len(state.blocks) == 1:
        raise fail("E001", "`}` closes nothing", Label(state.span(token)))
    state.blocks.pop()
    state.braces.pop()
    if not state.fresh:
        yield token.as_type("_END", "")
    yield token
    state.fresh, state.opening = following is None or following != "until", ""
    if state.fresh:
        yield token.as_type("_END", "")


def _bracket(state: LexState, token: Token) -> Token:
    if token.type in OPENERS:
        state.brackets.append(token)
        _check_depth(state, token)
    elif token.type in OPENERS.values():
        if not state.brackets or OPENERS[state.brackets[-1].type] != token.type:
            raise fail("E001", f"`{token}` closes nothing", Label(state.span(token)))
        state.brackets.pop()
    return token


def _word(state: LexState, token: Token, following: Token | None) -> Token:
    _check_name(state, token)
    block = state.blocks[-1]
    if state.fresh and not state.brackets:
        return _first_word(state, token, following, block)
    kind = HARD.get(token)
    if kind and not _names_argument(state, following):
        return token.as_type(kind)
    return _keyword(token) if _joins(state, token, following) else token


def _names_argument(state: LexState, following: Token | None) -> bool:
    """`hint(at = "layer2")`: in brackets, what stands in front of `=` can be nothing but a name."""
    return bool(state.brackets) and following is not None and following.type == "EQUAL"


def _joins(state: LexState, token: Token, following: Token | None) -> bool:
    """A second keyword of its statement: `match dim D` has one, `match dim {` names the pattern."""
    if state.opening in SIGNED:
        return token == "with" and not state.brackets
    if not state.second or token not in SECOND.get(state.opening, ()):
        return False
    return state.opening != "match" or (following is not None and following.type == "NAME")


def _first_word(state: LexState, token: Token, following: Token | None, block: str) -> Token:
    word = token
    if word in ALWAYS.get(block, ()):
        state.opening = word
        return _keyword(token)
    if block in ALWAYS:
        raise _unknown_statement(state, token, block)
    if (
        word in SOMETIMES.get(block, ())
        and following is not None
        and following.type in ("NAME", "LPAR")
    ):
        return _keyword(token)
    return token.as_type(HARD[word]) if word in HARD else token


def _keyword(token: Token) -> Token:
    name = token.upper()
    return token.as_type(name if token in KEPT else f"_{name}")


# -- what can be wrong before the grammar sees it ------------------------------------------------


def _check_depth(state: LexState, token: Token) -> None:
    if len(state.brackets) + len(state.braces) > MAX_DEPTH:
        place = Label(state.span(token), "one bracket too many")
        raise fail(
            "E002",
            f"brackets are nested deeper than {MAX_DEPTH}",
            place,
            help="name parts of it in `let`",
        )


def _check_name(state: LexState, token: Token) -> None:
    if len(token) > MAX_NAME:
        message = f"a name has at most {MAX_NAME} characters, this one has {len(token)}"
        raise fail("E005", message, Label(state.span(token)))
    if token.startswith("__"):
        hint = "names of attributes and parameters are those of the op's declaration"
        raise fail("E005", "a name may not begin with `__`", Label(state.span(token)), help=hint)


def _check_closed(state: LexState) -> None:
    if state.brackets:
        raise _never_closed(state, state.brackets[-1])
    if state.braces:
        raise _never_closed(state, state.braces[-1])


def _never_closed(state: LexState, token: Token, *more: Label) -> LissomError:
    return fail(
        "E001", f"`{token}` is never closed", Label(state.span(token), "opened here"), *more
    )


def _unknown_statement(state: LexState, token: Token, block: str) -> LissomError:
    words = ALWAYS[block]
    home = next((name for name, known in ALWAYS.items() if token in known), None)
    where = "at the top of a file" if block == "file" else f"in a {_SHOWN.get(block, block)}"
    note = f"`{token}` belongs in a {_SHOWN.get(home, home)}" if home and home != "file" else ""
    hint = next(iter(did_you_mean(token, words)), f"one of {', '.join(words)}")
    return fail(
        "E003",
        f"no statement starts with `{token}` {where}",
        Label(state.span(token)),
        note=note,
        help=hint,
    )


_SHOWN = {"op": "op declaration", "step": "stage", "file": "file"}
