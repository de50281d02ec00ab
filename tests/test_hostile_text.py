"""Text not written in good faith: the answer is a tree or a `LissomError`, within a second."""

from __future__ import annotations

import gc
import json
import random
import re
import time
from pathlib import Path

import pytest

from lissom.grammar.diagnostics import LissomError
from lissom.grammar.fmt.format import format_file, format_text
from lissom.grammar.text.parse import MAX_BYTES, parse, parse_file

SECOND = 1.0
PROGRAMS = [
    path.read_text("utf-8") for path in sorted(Path(__file__).parent.glob("programs/*.lissom"))
]


def refused(text: str, name: str = "<text>") -> LissomError:
    with pytest.raises(LissomError) as caught:
        parse(text, name)
    return caught.value


def code(text: str) -> str:
    return refused(text).diagnostics[0].code


def check(text: str) -> str:
    """A file whose only expression is `text`."""
    return f"test t {{ check {text} }}"


def assert_harmless(error: LissomError) -> None:
    """The report has a code and a message, and nothing in it acts on a terminal or breaks JSON."""
    shown = str(error)
    assert error.diagnostics
    assert all(diagnostic.code and diagnostic.message for diagnostic in error.diagnostics)
    assert all(c.isprintable() for line in shown.split("\n") for c in line)
    assert max(map(len, shown.split("\n"))) < 400
    shown.encode("utf-8")
    json.dumps([diagnostic.as_json() for diagnostic in error.diagnostics]).encode("ascii")


def assert_answered(text: str) -> LissomError | None:
    """Parse and, if it is the language, format: only a `LissomError` may come out, and soon. What
    other tests left behind is not collected meanwhile: that may take longer.
    """
    gc.disable()
    start = time.process_time()
    try:
        tree = parse(text)
    except LissomError as error:
        assert time.process_time() - start < SECOND
        assert_harmless(error)
        return error
    finally:
        gc.enable()
    assert time.process_time() - start < SECOND
    formatted = format_file(tree, text)
    if len(text) < 10_000:
        assert parse(formatted) == tree
        assert format_text(formatted) == formatted
    return None


# -- encodings and characters --------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "\n", "\ufeff", "\ufeff# a\n", "# a", ";;\n;", " \t "])
def test_texts_without_a_statement(text: str) -> None:
    """I01, I02."""
    assert parse(text).statements == ()


def test_crlf_is_a_line_end_and_stays_out_of_frames() -> None:
    """I04."""
    assert len(parse("use a\r\nuse b\r\n").statements) == 2
    assert "\\r" not in str(refused("use a\r\nuse 1\r\nuse b\r\n"))


INVISIBLE = [
    "\0",
    "\x07",
    "\x0c",
    "\x1b",
    "\x7f",
    "\x85",
    "\xad",
    "\u061c",
    "\u200b",
    "\u202e",
    "\u2028",
    "\u2066",
]
INVISIBLE += ["\ufeff", "\ufff9", "\ud800", "\udfff", "\U000e0041", "\r"]


@pytest.mark.parametrize("char", INVISIBLE, ids=ascii)
@pytest.mark.parametrize("place", ["use {}a", "# {}x\nuse a", check('"a{}b"'), "use a {}"])
def test_invisible_characters_are_refused_everywhere(char: str, place: str) -> None:
    """I02, I03, I05, I06."""
    text = place.replace("{}", char)
    error = refused(text)
    assert error.diagnostics[0].code == "E004"
    assert error.diagnostics[0].labels[0].span.text == char
    assert_harmless(error)


def test_letters_of_all_scripts_are_welcome_in_strings_and_comments() -> None:
    text = '# שלום 漢字 é\ntest t { check f("שלום 漢字 é 🙂") }\n'
    assert format_text(text) == text


@pytest.mark.parametrize(
    "text", ["use é", "use а", check("x\xa0y"), check("'a'"), check("a & b"), check("$a")]
)
def test_characters_outside_the_language(text: str) -> None:
    assert code(text) == "E005"
    assert_harmless(refused(text))


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    """I05."""
    for name, data in {
        "latin": b"# \xe9\n",
        "utf16": "use a".encode("utf-16"),
        "cut": b"# \xe2\x82",
    }.items():
        path = tmp_path / f"{name}.lissom"
        path.write_bytes(data)
        with pytest.raises(LissomError) as caught:
            parse_file(path)
        assert caught.value.diagnostics[0].code == "E004"
        assert_harmless(caught.value)


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.lissom", tmp_path / "\x1b[31m"):
        with pytest.raises(LissomError) as caught:
            parse_file(path)
        assert caught.value.diagnostics[0].code == "E006"
        assert_harmless(caught.value)


# -- size and depth ------------------------------------------------------------------------------

LARGE = {
    "round brackets": "(" * 10**6,
    "square brackets": check("[" * 10**6),
    "braces": "exact rule a " + "{" * 10**6,
    "closing brackets": ")" * 10**6,
    "one byte too many": "#" * (MAX_BYTES + 1),
    "wide characters": "# " + "漢" * (MAX_BYTES // 2),
    "rules": "exact rule a {}\n" * 10**5,
    "rules that fit": "use a\n" * 9_000,
    "lines": "\n" * MAX_BYTES,
    "comments": "#\n" * (MAX_BYTES // 2),
    "comments after a statement": "use a\n" + ";# b\n" * 12_000,
    "arguments": check(f"f({'1,' * 14_000})"),
    "keywords": check(f"f({','.join(f'a{i}=1' for i in range(7_000))})"),
    "minus signs": check("-" * 29_000 + "1"),
    "negations": check("not " * 29_000 + "1"),
    "sum": check("1" + " + 1" * 14_000),
    "powers": check("1" + " ^ 1" * 14_000),
    "attributes": check("a" + ".b" * 14_000),
    "calls": check("f" + "()" * 9_000),
    "quantifiers": check("forall a in b: " * 5_000 + "c"),
    "name": "use " + "a" * 10**6,
    "digits": check("1" * 10**6),
    "fraction": check("0." + "1" * 10**6),
    "share": check("1" * 10**6 + "%"),
    "string": check('"' + "a" * 10**6 + '"'),
    "escapes": check('"' + "\\\\" * 500_000 + '"'),
    "open string": check('"' + "\\\\" * 500_000),
    "quotes": '"' * 10**6,
    "error after a long line": check('"' + "a" * 10**6 + '" = 1'),
    "stages": "pipeline p { stage s {" + "try {" * 3_000,
}  # fmt: skip
ACCEPTED = {
    "rules that fit",
    "comments after a statement",
    "arguments",
    "keywords",
    "string",
    "escapes",
}


@pytest.mark.parametrize("name", LARGE)
def test_large_texts_are_answered_soon(name: str) -> None:
    """I07, I10."""
    error = assert_answered(LARGE[name])
    assert (error is None) == (name in ACCEPTED)


@pytest.mark.parametrize("shape", ["({})", "[{}]", "f({})", "-({})", "a[{}]", "not ({})"])
def test_nesting_ends_at_the_limit(shape: str) -> None:
    """I08."""

    def nested(depth: int) -> str:
        return check(shape.split("{}")[0] * depth + "x" + shape.split("{}")[1] * depth)

    deepest = max(depth for depth in range(1, 70) if assert_answered(nested(depth)) is None)
    assert 30 <= deepest <= 64
    assert code(nested(deepest + 1)) == "E002"
    assert code(nested(65)) == "E002"


def test_the_file_limit_is_in_bytes_on_disk(tmp_path: Path) -> None:
    """I09."""
    path = tmp_path / "a.lissom"
    path.write_text("#" * MAX_BYTES)
    assert parse_file(path).statements == ()
    path.write_text("#" * (MAX_BYTES + 1))
    with pytest.raises(LissomError, match="E002"):
        parse_file(path)


# -- numbers and names ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number", ["1" * 19, "1" * 5000, "1e400", "1" * 5000 + "%", "x." + "1" * 5000]
)
def test_numbers_that_nothing_can_compute_with(number: str) -> None:
    """I18, I19."""
    assert code(check(number)) == "E005"


def test_there_is_no_literal_that_is_not_finite() -> None:
    """I20, I21."""
    nan, zero = (parse(check(text)).statements[0].cases[0].condition for text in ("nan", "-0.0"))
    assert type(nan).__name__ == "Name"
    assert (zero.op, zero.operand.value) == ("-", 0.0)


KEYWORDS = ["and", "in", "none", "true", "from", "else", "forall", "pure", "mod", "order"]


@pytest.mark.parametrize("word", KEYWORDS)
def test_a_keyword_is_no_name(word: str) -> None:
    """I16."""
    error = refused(f"exact rule {word} {{}}")
    assert "reserved word" in str(error)


@pytest.mark.parametrize("word", ["dim", "mode", "test", "stage", "match", "rule", "fn", "use"])
def test_a_soft_keyword_is_a_name_in_expressions(word: str) -> None:
    assert assert_answered(check(f"{word}({word}, {word} = {word}.{word})")) is None


@pytest.mark.parametrize(
    "text", [check("x.__class__"), check("__import__(1)"), "use __main__", "use a.__b"]
)
def test_dunder_names_are_refused(text: str) -> None:
    """I17."""
    assert code(text) == "E005"


@pytest.mark.parametrize("place", ["f({})", "a[{}:{}]", "({})", "[{}]"])
def test_what_python_would_run_is_only_a_name_here(place: str) -> None:
    """I63: Nothing of a text is ever evaluated: these are trees, or errors, and have no effect."""
    for call in ('exec("1/0")', 'open("/etc/passwd")', "exit()", '"{x.y!r}"'):
        assert assert_answered(check(place.replace("{}", call))) is None


# -- mutations -----------------------------------------------------------------------------------

_TOKENS = re.compile(r'"(?:\\.|[^"\\\n])*"|#[^\n]*|\w+|\.\.\.|:=|->|[<>=!]=|//|\s+|.')
_BYTES = bytes(range(256))


def mutate_bytes(text: str, rng: random.Random) -> str:
    data = bytearray(text.encode())
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data))
        if rng.random() < 0.5:
            data[at] = rng.choice(_BYTES)
        else:
            data[at : at + rng.randint(0, 30)] = bytes(
                rng.choices(b'(){}[]"#\n;.,:=*-0a', k=rng.randint(0, 3))
            )
    return data.decode("utf-8", "surrogateescape")


def mutate_tokens(text: str, rng: random.Random) -> str:
    tokens = _TOKENS.findall(text)
    for _ in range(rng.randint(1, 3)):
        at, other = rng.randrange(len(tokens)), rng.randrange(len(tokens))
        change = rng.choice(["swap", "copy", "drop", "repeat"])
        if change == "swap":
            tokens[at], tokens[other] = tokens[other], tokens[at]
        if change == "copy":
            tokens[at] = tokens[other]
        if change == "drop":
            tokens[at] = ""
        if change == "repeat":
            tokens[at] = tokens[at] * rng.randint(2, 40)
    return "".join(tokens)


@pytest.mark.parametrize("mutate", [mutate_bytes, mutate_tokens], ids=lambda f: f.__name__)
@pytest.mark.parametrize("seed", range(4))
def test_mutated_programs(mutate: object, seed: int) -> None:
    rng = random.Random(seed)
    outcomes = [assert_answered(mutate(rng.choice(PROGRAMS), rng)) for _ in range(250)]
    codes = {error.diagnostics[0].code for error in outcomes if error}
    assert codes >= {"E001"}, "the mutations hit nothing"
    assert None in outcomes, "no mutation left a program whole"


def test_truncated_programs() -> None:
    text = max(PROGRAMS, key=len)
    for end in range(0, len(text), 7):
        assert_answered(text[:end])
