"""The picture of a diagnostic: carets stand under what they mean, whatever the line holds."""

from __future__ import annotations

import unicodedata

import pytest

from lissom.grammar.diagnostics import Diagnostic, Label, Source, Span, render


def frame(text: str, *marks: tuple[str, str], **fields: tuple[str, ...]) -> str:
    """The rendering of labels on the first occurrence of each marked part."""
    source = Source("a.lissom", text)
    labels = [
        Label(Span(source, text.index(part), text.index(part) + len(part)), note)
        for part, note in marks
    ]
    return render(Diagnostic("T001", "message", tuple(labels), **fields))


def cells(text: str) -> int:
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def test_the_whole_picture() -> None:
    text = "exact rule a {\n  match { y = relu(x) }\n}\n"
    assert frame(
        text, ("relu", "here"), ("exact", "in this rule"), notes=("why",), helps=("fix",)
    ) == (
        "error[T001]: message\n"
        " --> a.lissom:2:15\n"
        "  |\n"
        "1 | exact rule a {\n"
        "  | ----- in this rule\n"
        "2 |   match { y = relu(x) }\n"
        "  |               ^^^^ here\n"
        "   = note: why\n"
        "   = help: fix"
    )


def test_two_marks_on_one_line_share_it() -> None:
    picture = frame("f(a = 1, a2 = 2)", ("a2 = 2", "given again"), ("a = 1", "given here"))
    assert picture.split("\n")[3:] == [
        "1 | f(a = 1, a2 = 2)",
        "  |   -----  ^^^^^^ given again",
        "  |   |",
        "  |   given here",
    ]


def test_the_primary_mark_may_come_first_on_the_line() -> None:
    picture = frame("f(a, b, c)", ("a", "first"), ("c", "third"), ("b", "second"))
    assert picture.split("\n")[4:] == [
        "  |   ^  -  - third",
        "  |   |  |",
        "  |   |  second",
        "  |   first",
    ]


def test_marks_that_overlap_keep_both_texts() -> None:
    picture = frame("f(a + b)", ("a + b", "sum"), ("a", "term"))
    assert picture.split("\n")[4:] == ["  |   ^^^^^ sum", "  |   |", "  |   term"]


def test_a_mark_without_text_needs_no_row() -> None:
    assert frame("f(a, b)", ("b", "x"), ("a", "")).split("\n")[4:] == ["  |   -  ^ x"]


@pytest.mark.parametrize(
    "lead",
    ["\t", "\t \t", "漢字", "é", "e\u0301", "\u202e", "\x1b[31m", "\ud800", "🙂", "a\x00b"],
    ids=ascii,
)
def test_carets_stand_under_the_text_after_odd_characters(lead: str) -> None:
    line, underline = frame(f"{lead}bad = 1", ("bad", "")).split("\n")[3:5]
    before = line[: line.index("bad")]
    assert underline.index("^") == cells(before)
    assert underline.count("^") == 3
    assert all(c.isprintable() for c in line)


def test_carets_cover_what_wide_and_escaped_characters_take() -> None:
    assert frame("a 漢字\t\x07b c", ("漢字\t\x07b", "")).split("\n")[4] == "  |   " + "^" * (
        4 + 4 + 4 + 1
    )


def test_a_span_over_several_lines_is_underlined_to_the_end_of_the_first() -> None:
    picture = frame("let {  \r\n  a = b\r\n}", ("let {  \r\n  a = b\r\n}", "this block"))
    assert picture.split("\n")[3:] == ["1 | let {", "  | ^^^^^ this block"]


@pytest.mark.parametrize("at", [0, 20, 100, 5_000, 9_990])
def test_long_lines_are_cut_around_the_mark(at: int) -> None:
    text = "x" * at + "BAD" + "y" * (10_000 - at)
    line, underline = frame(text, ("BAD", "here")).split("\n")[3:5]
    assert len(line) < 140
    assert line[underline.index("^") :].startswith("BAD")
    assert underline.endswith("^^^ here")
    assert ("…" in line[:5]) == (at > 40)


def test_marks_far_apart_on_a_long_line_are_both_shown() -> None:
    picture = frame("A" + " " * 500 + "B", ("B", "second"), ("A", "first"))
    assert "^ second" in picture
    assert "- first" in picture


def test_a_mark_longer_than_what_is_shown_ends_with_it() -> None:
    line, underline = frame("x" * 1000, ("x" * 1000, "all")).split("\n")[3:5]
    assert len(underline) - len(" all") == len(line)


@pytest.mark.parametrize("text", ["", "\n", "use a", "use a\n", "use a\r\n"])
def test_the_end_of_the_text_can_be_pointed_at(text: str) -> None:
    source = Source("a", text)
    picture = render(
        Diagnostic("E001", "ends", (Label(Span(source, len(text), len(text)), "here"),))
    )
    assert picture.split("\n")[-1].endswith("^ here")


def test_places_in_two_files_and_in_the_model() -> None:
    a, b = Source("a", "one"), Source("b", "\ntwo")
    labels = (
        Label(Span(a, 0, 3), "x"),
        Label(Span(b, 1, 4), "y"),
        Label(None, "z", "layer1 (net.py:3)"),
    )
    picture = render(Diagnostic("O001", "overlap", labels, severity="warning")).split("\n")
    assert picture[0] == "warning[O001]: overlap"
    assert [line.strip() for line in picture if "--> " in line or "::: " in line] == [
        "--> a:1:1",
        "::: b:2:1",
        "--> layer1 (net.py:3): z",
    ]


def test_equal_sources_are_one_place() -> None:
    labels = Label(Span(Source("a", "x y"), 0, 1), "x"), Label(Span(Source("a", "x y"), 2, 3), "y")
    assert render(Diagnostic("N001", "m", labels)).count("x y") == 1


def test_further_lines_of_a_note_are_indented() -> None:
    picture = render(Diagnostic("S001", "m", notes=("counterexample\nN = 2",)))
    assert picture.split("\n")[1:] == ["   = note: counterexample", "           N = 2"]


def test_messages_and_names_cannot_write_to_the_terminal() -> None:
    source = Source("\x1b[2Ja", "x")
    diagnostic = Diagnostic(
        "E001", "m\x07", (Label(Span(source, 0, 1), "t\x9b", "w\u202e"),), ("n\r",), ("h\0",)
    )
    assert all(c.isprintable() for c in render(diagnostic).replace("\n", ""))
