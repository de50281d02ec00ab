"""The formatter: same tree, same comments, nothing left to change the second time."""

from __future__ import annotations

import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lissom.grammar.diagnostics import LissomError, Source, Span
from lissom.grammar.fmt.expr import PLACES
from lissom.grammar.fmt.format import format_file, format_text
from lissom.grammar.fmt.item import item
from lissom.grammar.fmt.layout import WIDTH
from lissom.grammar.text.parse import parse
from lissom.grammar.tree import tree as t

SPAN = Span(Source("<made>", ""), 0, 0)
SOFT = [
    "dim",
    "mode",
    "test",
    "stage",
    "match",
    "needs",
    "shared",
    "with",
    "fn",
    "rule",
    "value",
    "max",
    "store",
]


# -- programs drawn from the grammar -------------------------------------------------------------


def node(kind: Callable[..., Any], *args: Any, **fields: Any) -> st.SearchStrategy[Any]:
    return st.builds(kind, *args, span=st.just(SPAN), **fields)


def many(items: st.SearchStrategy[Any], low: int = 0, high: int = 3) -> st.SearchStrategy[Any]:
    return st.lists(items, min_size=low, max_size=high).map(tuple)


def maybe(items: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | items


def unique_keywords(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    keyword = node(t.Keyword, words, values)
    return st.lists(keyword, max_size=3, unique_by=lambda k: k.name.text).map(tuple)


plain = st.sampled_from(
    ["a", "x", "c", "W", "N", "O2", "_", "a_long_name_for_a_value_that_nobody_would_type_twice"]
)
words = node(t.Word, plain | st.sampled_from(SOFT))
plain_words = node(t.Word, plain)
strings = st.text(alphabet='ab"\\\n\t{}#; é', max_size=12)
counts = st.integers(0, 10**17)
numbers = counts.map(str) | st.sampled_from(["1.5", "1e-5", "0.0", "2E+7"])
atoms = st.one_of(
    node(t.Name, plain | st.sampled_from(SOFT)),
    node(t.Number, numbers),
    node(t.Frac, st.sampled_from(["30", "0.5", "100"])),
    node(t.String, strings),
    node(t.Constant, st.sampled_from([True, False, None])),
)
operators = st.sampled_from(list(PLACES))


def larger(inner: st.SearchStrategy[t.Expr]) -> st.SearchStrategy[t.Expr]:
    slices = node(t.Slice, maybe(inner), maybe(inner))
    return st.one_of(
        node(t.Unary, st.sampled_from(["-", "not"]), inner),
        node(t.Binary, operators, inner, inner),
        node(t.Call, inner, many(inner), unique_keywords(inner)),
        node(t.Attribute, inner, plain | st.sampled_from(["0", "1"])),
        node(t.Subscript, inner, many(inner | slices, 1)),
        node(t.Quantifier, st.sampled_from(["forall", "exists"]), words, inner, inner),
        node(t.Tuple, st.just(()) | many(inner, 2)),
        node(t.List, many(inner)),
    )


exprs_drawn = st.recursive(atoms, larger, max_leaves=9)
exprs = st.deferred(lambda: exprs_drawn)
dims = exprs | node(t.DimRange, exprs, exprs) | node(t.DimRest)
types = st.one_of(node(t.Type, plain, maybe(many(dims))), node(t.Type, st.none(), many(dims)))
params = st.one_of(
    node(t.Param, words, types, maybe(exprs)),
    node(t.Param, words, types, maybe(exprs), optional=st.just(True)),
    node(t.Param, words, types, maybe(exprs), variadic=st.just(True)),
)
targets = many(words, 1, 1) | many(words, 2, 3)
paths = node(t.Path, many(words, 1))
opsets = node(t.OpSet, targets)
bindings = node(t.Binding, targets, exprs)
claims = node(t.Claim, exprs, maybe(exprs), maybe(words))
facts = node(
    t.Fact, st.sampled_from(["needs", "provides", "invalidates", "forbids"]), many(words, 1)
)
ensured = many(claims | facts)
patterns = st.one_of(
    node(
        t.OpPattern,
        targets,
        opsets,
        many(exprs | node(t.Rest, words)),
        unique_keywords(exprs),
        maybe(words),
        st.sampled_from(["", "?", "*"]),
        st.booleans(),
    ),
    node(t.ShapePattern, paths, types),
    node(t.SitePattern, words, strings),
)
assigns = node(t.Assign, paths, exprs)
steps = st.one_of(
    node(t.Build, targets, exprs, maybe(words), maybe(words)),
    assigns,
    node(t.Store, words, exprs),
    node(t.Attach, exprs, words, paths),
    node(t.Exit, words, exprs),
)
clauses = st.one_of(
    node(t.Doc, strings),
    node(t.Priority, st.integers(-99, 99)),
    node(t.Recursive, node(t.Name, plain)),
    node(t.OnShared, words),
    node(t.Match, maybe(plain_words), many(patterns)),
    node(t.Unless, many(patterns)),
    node(t.MatchDim, words, words),
    node(t.MatchParam, words, opsets),
    node(t.MatchValue, words, types, many(strings, 1)),
    node(t.Where, many(node(t.Guard, exprs, maybe(strings)) | node(t.Hole))),
    node(t.Let, many(bindings)),
    node(t.Perturb, many(assigns | node(t.Effect, exprs))),
    node(t.Rewrite, many(steps)),
    node(t.Train, many(words)),
    node(t.Ensure, ensured),
)
rules = node(
    t.Rule,
    st.sampled_from(["exact", "approx", "lossless", "observe"]),
    plain_words,
    many(params),
    many(clauses, 0, 4),
)
slots = st.one_of(
    words.flatmap(lambda word: node(t.Slot, st.just(word), st.just(word), st.booleans())),
    node(t.Slot, words, words, st.booleans()),
)
fixed = st.lists(node(t.Keyword, plain_words, node(t.Binary, operators, atoms, atoms)), max_size=1)
signatures = node(t.Signature, many(plain_words, 1), many(slots), fixed.map(tuple))
axis_words = words | node(t.Word, st.sampled_from(["...", "none"]))
op_items = st.one_of(
    node(t.OpParam, words, st.booleans(), types),
    node(t.OpAttr, words, types, exprs),
    node(t.OpDim, words, exprs),
    node(t.OpTrait, many(words, 1)),
    node(t.OpMixes, many(axis_words, 1)),
    node(t.OpSums, many(axis_words, 1)),
    node(t.OpCost, words, exprs),
    node(t.OpMeaning, signatures),
    node(t.OpSpelling, signatures),
)
refs = node(t.Ref, words, many(exprs), unique_keywords(exprs), maybe(strings))
single_steps = st.one_of(
    node(t.Once, many(refs, 1)),
    node(t.Fixpoint, many(refs), maybe(counts)),
    node(t.Each, refs, maybe(exprs), maybe(exprs)),
    node(t.Calibrate, words),
)
stage_steps = st.recursive(
    single_steps, lambda inner: node(t.First, many(inner)) | node(t.Try, many(inner)), max_leaves=4
)
pipeline_items = st.one_of(
    node(t.Input, words, types),
    node(t.Data, words, exprs),
    node(t.Budget, exprs, maybe(words)),
    node(t.Stage, words, many(stage_steps)),
    node(t.Recover, words, many(bindings)),
    node(t.Verify, ensured),
    node(t.OnFail, words),
    node(t.Mode, words),
)
cases = st.one_of(
    node(t.Fires, words, exprs),
    node(t.Silent, words, exprs, maybe(strings | st.just("O001"))),
    node(t.Check, exprs),
)
results = many(types, 1, 1) | many(types, 2, 3)
statements = st.one_of(
    node(t.Use, many(words, 1), maybe(counts)),
    node(t.Extern, plain_words, many(params), results, st.booleans()),
    node(t.Op, words, many(params), results, many(op_items, 0, 4)),
    rules,
    node(t.Pipeline, words, many(params), many(pipeline_items)),
    node(t.Test, words, many(cases)),
)
files = node(t.File, many(statements, 0, 4))
thorough = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@thorough
@given(files)
def test_any_tree_survives_formatting_and_parsing(file: t.File) -> None:
    text = format_file(file)
    assert parse(text) == file
    assert format_text(text) == text


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@thorough
@given(exprs)
def test_no_pair_of_parentheses_can_go(expr: t.Expr) -> None:
    file = t.File(
        (t.Test(t.Word("t", span=SPAN), (t.Check(expr, span=SPAN),), span=SPAN),), span=SPAN
    )
    text = format_file(file)
    for opening, closing in _parentheses(text):
        shorter = text[:opening] + text[opening + 1 : closing] + text[closing + 1 :]
        assert _tree_or_none(shorter) != file, shorter


def _parentheses(text: str) -> list[tuple[int, int]]:
    """Pairs that group: no call, no tuple, no string, on one line."""
    pairs, stack = [], []
    for found in re.finditer(r'"(?:\\.|[^"\\])*"|[()]', text):
        if found.group() == "(":
            stack.append(found.start())
        if found.group() == ")":
            pairs.append((stack.pop(), found.start()))
    return [pair for pair in pairs if "\n" not in text[pair[0] : pair[1]]]


def _tree_or_none(text: str) -> t.File | None:
    try:
        return parse(text)
    except LissomError:
        return None


def test_every_statement_has_a_form() -> None:
    kinds = [
        k
        for union in (t.Statement, t.Clause, t.Pattern, t.OpItem, t.PipelineItem, t.Step)
        for k in typing.get_args(union)
    ]
    assert len(kinds) > 40
    plain = item.dispatch(object)
    assert [k.__name__ for k in kinds if item.dispatch(k) is plain] == []


# -- comments ------------------------------------------------------------------------------------

COMMENTED = """\
# the algebra

# before the rule
exact rule a {  # why this rule
  match {  # the pattern
    y = relu(x)  # trailing
    # dangling in match
  }  # after match
  where { x > 1 }  # after a short block
  # before let
  let {
    z = f("# not a comment", x)
  }
  # last in rule
}

# the end

# really
"""


def test_comments_stay_where_they_are() -> None:
    text = COMMENTED.replace(
        '  let {\n    z = f("# not a comment", x)\n  }', '  let { z = f("# not a comment", x) }'
    )
    assert format_text(COMMENTED) == text
    assert format_text(text) == text


def test_comments_inside_a_broken_statement_move_before_it() -> None:
    text = "exact rule a { rewrite { y = f(x, # one\n  # two\n  z) # three\n } }"
    assert format_text(text) == (
        "exact rule a {\n  rewrite {\n    # one\n    # two\n    y = f(x, z)  # three\n  }\n}\n"
    )


HOSTS = [
    'exact rule a {@ match {@ y = relu(@x@)@ @}@ where {@ x > 1 else "}"@ @}@ @}@',
    "@pipeline p {@ stage s {@ fixpoint {@ a@; b @}@ @}@ on_fail x@ @}@\n@use a.b@",
    "approx rule a {@ train {@ a@;@ b@ }@ ensure { needs x@;@ b }@ }",
    'op r(@x: f[...]@) -> f[...] {@ attr a: str = "#"@\n meaning torch.relu(@x@)@ @}@',
]


@thorough
@given(st.sampled_from(HOSTS), st.data())
def test_no_comment_is_lost(host: str, data: st.DataObject) -> None:
    """Comments wherever a line may end."""
    text = ""
    for part in host.split("@"):
        notes = data.draw(
            st.lists(st.sampled_from(["# a", "#b {", '# "c', "\n\n# d", "# e\n"]), max_size=2)
        )
        text += part + "".join(f" {note}\n" for note in notes)
    tree = parse(text)
    once = format_text(text)
    assert parse(once) == tree
    assert _comments(once) == _comments(text)
    assert format_text(once) == once


def _comments(text: str) -> list[str]:
    found = re.findall(r'"(?:\\.|[^"\\\n])*"|#[^\n]*', text)
    return sorted(note.rstrip() for note in found if note.startswith("#"))


def test_a_blank_line_after_a_comment_stays() -> None:
    pair = "extern fn svd(w: f[O, I]) -> f[O]\nextern fn qr(w: f[O, I]) -> f[O]\n"
    text = f"# header\n\n# about svd\n{pair}"
    assert format_text(text) == text


PARTED = """\
pipeline p {
  # the first comment
  input x : f[N]

  # settings

  # and why
  data d = a

  # the stages
  stage s {  # what it does
    once a

    # for large layers
    fixpoint { b; c }
    first {
      once d

      # if that failed
      once e

      # last in first
    }
  }

  # last in the pipeline
}

exact rule a {
  doc "text"

  # the pattern
  match { y = relu(x) }
}
"""


def test_one_blank_line_before_a_comment_stays() -> None:
    assert format_text(PARTED) == PARTED
    assert format_text(PARTED.replace("\n\n", "\n \t\n\n\n")) == PARTED


def test_other_blank_lines_in_a_block_go() -> None:
    text = "pipeline p {\n\n  # a\n  mode m\n\n  on_fail x  # b\n\n}\n"
    assert format_text(text) == "pipeline p {\n  # a\n  mode m\n  on_fail x  # b\n}\n"


# -- layout --------------------------------------------------------------------------------------


def test_long_calls_break_under_the_bracket() -> None:
    words = [f"argument_{i} = {i}" for i in range(9)]
    arguments = ", ".join(words)
    text = format_text(f"exact rule a {{ rewrite {{ y = conv2d({arguments}) from c }} }}")
    assert text.splitlines()[2:5] == [
        f"    y = conv2d({', '.join(words[:5])},",
        f"               {', '.join(words[5:])}) from c",
        "  }",
    ]


def test_a_bracket_far_to_the_right_hangs() -> None:
    name = "a_name_of_exactly_fifty_letters_so_that_it_is_long"
    text = format_text(f"exact rule a {{ rewrite {{ y = {name}({name}, {name}) }} }}")
    assert text.splitlines()[2:5] == [f"    y = {name}(", f"        {name},", f"        {name})"]


def test_long_sums_get_parentheses_and_break_before_operators() -> None:
    terms = [f"a_term_with_number_{i}" for i in range(6)]
    text = format_text(f"exact rule a {{ let {{ y = {' + '.join(terms)} }} }}")
    assert text.splitlines()[2:4] == [
        f"    y = ({' + '.join(terms[:4])}",
        f"         + {' + '.join(terms[4:])})",
    ]


def test_lines_with_a_place_to_break_fit() -> None:
    calls = " + ".join(f"call_{i}(alpha, beta, gamma(delta, epsilon))" for i in range(9))
    text = format_text(f"exact rule a {{ let {{ y = f({calls}, {calls}) }} }}")
    assert max(map(len, text.splitlines())) <= WIDTH


def test_messages_of_a_where_block_are_aligned() -> None:
    text = format_text('exact rule a { where { a else "x"; long_name else "y"\n b } }')
    assert text.splitlines()[1:5] == [
        "  where {",
        '    a          else "x"',
        '    long_name  else "y"',
        "    b",
    ]


GOLDEN = {
    "observe rule w{match{y=(a|b)(x)as l};ensure{provides o}}": """\
observe rule w {
  match { y = (a | b)(x) as l }
  ensure { provides o }
}
""",
    "extern fn f(w:f[O,I])->(f[O],f[1..2,...])pure\nuse a.b 2": """\
extern fn f(w: f[O, I]) -> (f[O], f[1..2, ...]) pure

use a.b 2
""",
    "op cat(xs...:t[...])->t[...]{attr dim:int=0;meaning torch.cat(x=xs,dim=dim)with a=1}": """\
op cat(xs...: t[...]) -> t[...] {
  attr dim: int = 0
  meaning torch.cat(x = xs, dim) with a = 1
}
""",
    "op relu(x:f[...])->f[...]{meaning torch.relu(input=x)}": """\
op relu(x: f[...]) -> f[...] { meaning torch.relu(input = x) }
""",
    "pipeline p(t:frac=45%){input x:f[1..64,3];stage s{first{once a;try{once b}}};mode m}": """\
pipeline p(t: frac = 45%) {
  input x : f[1..64, 3]

  stage s {
    first {
      once a
      try { once b }
    }
  }
  mode m
}
""",
    "test t{silent a on m()because O001;check ((a))==-(b^2)}": """\
test t {
  silent a on m() because O001
  check a == -b ^ 2
}
""",
    "exact rule a{}": "exact rule a { }\n",
    "": "",
}


@pytest.mark.parametrize("text", GOLDEN)
def test_golden(text: str) -> None:
    assert format_text(text) == GOLDEN[text]
    assert format_text(GOLDEN[text]) == GOLDEN[text]


EXPRESSIONS = [
    "(a or b) and not (c or d)", "a - (b - c)", "a - b - c", "(a ^ b) ^ c", "a ^ b ^ c",
    "(-a) ^ b", "-a ^ -b", "(a < b) == c", "not a == b", "(not a) == b", "p.0", "(p.0).1", "(1).0",
    "(forall x in y: x) and z", "forall x in y: x and z", "a mod b // c", "f(x)(y)[0].z",
    "(a + b).c", "u[:, :R] @ diag(s[1:])", "- -a",
]  # fmt: skip


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_parentheses_that_mean_something_stay(text: str) -> None:
    assert (
        format_text(f"test t {{ check {text} }}")
        == f"test t {{ check {text.replace('- -', '--')} }}\n"
    )


PROGRAMS = sorted(Path(__file__).parent.glob("programs/*.lissom"))


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_the_programs_are_canonical_and_found_again(path: Path) -> None:
    """Neither indentation nor spare space, `;` or parentheses change what comes out."""
    text = path.read_text("utf-8")
    assert format_text(text) == text
    ragged = re.sub(r"^ *", "\t", text, flags=re.M).replace(" = ", "=").replace("\n\n", "\n;;\n")
    assert format_text(ragged) == text


def test_crlf_and_byte_order_mark_are_normalised() -> None:
    text = "\ufeff# a\r\nexact rule a {\r\n  match { y = relu(x) } # b\r\n}\r\n"
    assert format_text(text) == "# a\nexact rule a {\n  match { y = relu(x) }  # b\n}\n"


def test_empty_brackets_past_the_margin_stay_whole() -> None:
    """Found among 100,000 mutated files: the closing one was lost."""
    name = "s" * 95
    text = f"op a(x: t[...]) -> t {{\n  attr {name}: ints = ()\n  meaning torch.b(x)\n}}\n"
    assert parse(format_text(text)) == parse(text)
