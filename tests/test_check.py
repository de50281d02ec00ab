"""The checker on whole programs: what is accepted, what is proved, that it never fails itself."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lissom.grammar.checks.check import MAX_FILE, check, check_program, methods
from lissom.grammar.codes import codes, explain
from lissom.grammar.diagnostics import Diagnostic, LissomError, Source
from lissom.grammar.library.program import load_program
from lissom.grammar.library.vocabulary import Declarations, library, library_sources
from lissom.grammar.text.parse import parse, parse_file
from lissom.grammar.tree import tree as t

HERE = Path(__file__).parent
PROGRAMS = sorted(p for p in (HERE / "programs").glob("*.lissom") if p.stem != "declarations")
LIBRARY = [s for s in library_sources() if "rule " in s.text]


@pytest.fixture(scope="module")
def small() -> Declarations:
    """The vocabulary of the planted mistakes."""
    functions = ("passes/builtin.lissom", "passes/later.lissom")
    builtin = [s for s in library_sources() if s.name in functions]
    ops = Source("ops.lissom", (HERE / "errors/ops.vocabulary").read_text("utf-8"))
    return Declarations([*builtin, ops])


def errors(found: list[Diagnostic]) -> list[str]:
    return [str(d) for d in found if d.severity == "error"]


def codes_of(text: str, known: Declarations) -> list[str]:
    return [d.code for d in check(parse(text), known)]


# -- programs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_programs_of_the_language_check(path: Path) -> None:
    """`small_vit` uses the rules of the others and a file of its own, which stands in here."""
    files = {p: parse_file(p) for p in PROGRAMS}
    own = {rule.name.text for rule in files[path].all(t.Rule)}
    rules = [r for f in files.values() for r in f.all(t.Rule) if r.name.text not in own]
    assert errors(check(files[path], library(), rules, used=["mylab.ops"])) == []


def test_unresolved_use_is_the_only_error_of_a_lone_program() -> None:
    file = parse("use mylab.ops\nuse other\n")
    assert [d.code for d in check(file, library(), used=["other"])] == ["N007"]


@pytest.mark.parametrize("source", LIBRARY, ids=lambda source: source.name)
def test_library_rules_check(source: Source) -> None:
    assert errors(check(parse(source.text, source.name), library())) == []


def test_stride_composition_is_proved_not_sampled() -> None:
    """((H - 1) // s) // t == (H - 1) // (s * t) needs more than polynomial arithmetic."""
    found = methods(parse_file(HERE / "programs/small_vit.lissom"), library())
    assert found["merge_pointwise"] == "proved"
    assert methods(parse_file(HERE / "programs/separable_conv.lissom"), library()) == {
        "separable_conv": "proved"
    }


def test_what_the_normal_form_leaves_open_is_sampled(small: Declarations) -> None:
    """2 * (H // 2) is H only for even H; the guard says so, and only drawing sizes sees it."""
    text = """
exact rule a {{
  match {{ h = linear(x) as l
          y = relu(h)
          l.weight : [O, 2 * I] }}
  where {{ O mod 2 == {rest} }}
  rewrite {{ y = linear(x, weight = zeros(2 * (O // 2), 2 * I)) }}
}}
"""
    assert codes_of(text.format(rest=0), small) == []
    assert methods(parse(text.format(rest=0)), small) == {"a": "sampled"}
    assert "S001" in codes_of(text.format(rest=1), small)


# -- semantics -----------------------------------------------------------------------------------


def test_clone_takes_over_attributes_and_weights(small: Declarations) -> None:
    clone = "exact rule a { match { h = relu(x); y = conv2d(h) as c } rewrite { y = c(x) } }"
    fresh = clone.replace("c(x)", "conv2d(x, weight = c.weight)")
    assert codes_of(clone, small) == []
    assert "S002" in codes_of(fresh, small) or "S001" in codes_of(fresh, small)


def test_positional_attributes_follow_the_inputs(small: Declarations) -> None:
    rule = "exact rule a { match { y = relu(x) ; x : f[N, C, H, W] } rewrite { z = PLACE; y = x } }"
    assert codes_of(rule.replace("PLACE", "flatten(adaptive_avg_pool2d(x, 1), 1)"), small) == []
    found = codes_of(rule.replace("PLACE", "adaptive_avg_pool2d(x, 1, 2)"), small)
    assert found == ["T004"]


def test_dimensions_unify_across_the_rule(small: Declarations) -> None:
    text = """
exact rule a {{
  match {{ h = linear(x) as a
          y = linear(h) as b
          a.weight : [M, I]
          b.weight : [O, {inner}] }}
  rewrite {{ y = linear(x, weight = b.weight @ a.weight) }}
}}
"""
    assert codes_of(text.format(inner="M"), small) == []
    assert codes_of(text.format(inner="J"), small) == []


def test_shared_inner_value_may_be_read(small: Declarations) -> None:
    text = "exact rule a { match { SHARED h = relu(x); y = relu(h) } rewrite { y = h } }"
    assert codes_of(text.replace("SHARED", "shared"), small) == []
    assert "N005" in codes_of(text.replace("SHARED", ""), small)


def test_disjoint_guards_do_not_overlap(small: Declarations) -> None:
    text = (HERE / "errors/o001_overlap.lissom").read_text("utf-8")
    pairs = [d.message for d in check(parse(text), small) if d.code == "O001"]
    assert len(pairs) == 2
    assert not any("`b` and `c`" in message for message in pairs)


def test_priority_settles_an_overlap(small: Declarations) -> None:
    text = (HERE / "errors/o001_overlap.lissom").read_text("utf-8")
    settled = text.replace("approx rule a {", "approx rule a {\n  priority 1")
    assert "O001" not in codes_of(settled, small)


def test_specific_rule_first_is_reachable(small: Declarations) -> None:
    text = (HERE / "errors/o002_unreachable.lissom").read_text("utf-8")
    assert "O002" in codes_of(text, small)
    swapped = text.replace("drop_identity; drop_dropout", "drop_dropout; drop_identity")
    assert "O002" not in codes_of(swapped, small)


def test_guard_over_weights_is_never_called_endless(small: Declarations) -> None:
    """Whether a low-rank rule applies to its own product depends on the weights: no error."""
    file = parse_file(HERE / "programs/low_rank_linear.lissom")
    assert "L001" not in {d.code for d in check(file, small)}


def test_an_op_that_only_moves_down_ends(small: Declarations) -> None:
    """Two rules that push neg behind relu and gelu keep every count, and still come to an end."""
    rule = "exact rule {0} {{ match {{ h = neg(x); y = {0}(h) }}"
    rule += " rewrite {{ g = {0}(x); y = neg(g) }} }}"
    back = "exact rule up { match { h = relu(x); y = neg(h) } rewrite { g = neg(x); y = relu(g) } }"
    down = f"{rule.format('relu')}\n{rule.format('gelu')}\n"
    assert "L002" not in codes_of(
        down + "pipeline p { stage s { fixpoint { relu; gelu } } }", small
    )
    both = f"{down}{back}\npipeline p {{ stage s {{ fixpoint {{ relu; gelu; up }} }} }}"
    assert "L002" in codes_of(both, small)


def test_negative_axes_are_possible(small: Declarations) -> None:
    """An attribute is no size: `end_dim == -1` can hold, and `start_dim >= 0` can fail."""
    text = """
exact rule a {
  match { y = flatten(x, start_dim = s, end_dim = e) }
  where { e == -1; s >= 0; s * s + 1 > 0 }
  rewrite { y = flatten(x, start_dim = s) as f }
}
"""
    assert not {"V001", "V002"} & set(codes_of(text, small))


def test_claim_that_follows_from_the_guards_is_silent(small: Declarations) -> None:
    text = (HERE / "errors/c001_not_implied.lissom").read_text("utf-8")
    assert "C001" in codes_of(text, small)
    guarded = text.replace("K * L > 1;", "K * L > 1; M * (K * L + O) < O * K * L;")
    assert "C001" not in codes_of(guarded, small)


def test_break_even_is_derived(small: Declarations) -> None:
    text = (HERE / "errors/c001_not_implied.lissom").read_text("utf-8")
    (found,) = [d for d in check(parse(text), small) if d.code == "C001"]
    assert "M < K*L*O/(K*L + O)" in found.helps[0]


def test_what_an_optional_op_holds_is_an_array_where_it_is_there(small: Declarations) -> None:
    """`n and n.weight` is no condition, while `n and 1 < 2` is."""
    text = """
approx rule thin {
  match {
    h = linear(x) as l
    y = linear?(h) as n
  }
  let { g = n and n.bias or 1 }
  perturb { l.weight := l.weight * GAIN }
  ensure { error(y) <= 5% on calib }
}
"""
    assert codes_of(text.replace("GAIN", "mean(g)"), small) == []
    wrong = text.replace("GAIN", "mean(g)").replace("n.bias or 1", "1 < 2")
    assert "T001" in codes_of(wrong, small)


def test_recover_clears_what_is_owed(small: Declarations) -> None:
    text = """
approx rule thin {
  match { y = linear(x) as l }
  perturb { l.weight := l.weight * 0.5 }
  ensure { error(y) <= 5% on calib; needs recover }
}
pipeline p {
  data calib = sample("train", 64)
  stage a { once thin }
  RECOVER
}
"""
    assert codes_of(text.replace("RECOVER", ""), small) == ["F001"]
    assert (
        codes_of(text.replace("RECOVER", "recover tune { data = calib; epochs = 1 }"), small) == []
    )


PLAIN = """
exact rule a {
  match { y = batch_norm(x) as n }
  where { GUARD }
  rewrite { h = n(x, bias = BIAS)
            y = gelu(h) }
}
"""


@pytest.mark.parametrize(
    ("guard", "bias", "found"),
    [
        ("known(n.bias)", "none", []),
        ("n.bias", "none", []),
        ("not known(n.bias)", "none", ["L001"]),
        ("known(n.bias)", "n.bias", ["L001"]),
        ("known(n.running_mean)", "none", ["L001"]),
        ("all_zero(n.bias)", "n.bias + 1", []),
        ("owned(n.bias)", "n.bias + 1", ["L001"]),
    ],
)
def test_what_the_new_op_lacks_ends_a_rule(
    small: Declarations, guard: str, bias: str, found: list[str]
) -> None:
    """A guard that fails for the new op, or that its new numbers decide, keeps it from a loop."""
    assert codes_of(PLAIN.replace("GUARD", guard).replace("BIAS", bias), small) == found


@pytest.mark.parametrize(
    ("guard", "found"), [("known(c.bias)", []), ("calls(c) == 1", ["L003", "C001"])]
)
def test_costs_know_which_weights_are_there(
    small: Declarations, guard: str, found: list[str]
) -> None:
    """The mean is no parameter: what moves into it is saved, where there is something to move."""
    text = """
exact rule a {
  match { h = linear(x) as c
          y = batch_norm(h) as n
          x : f[N, I] }
  where { GUARD }
  recursive decreasing params(c)
  rewrite { k = c(x, bias = none)
            y = n(k, running_mean = n.running_mean - (c.bias or 0)) }
  ensure { params(after) < params(before) }
}
"""
    assert codes_of(text.replace("GUARD", guard), small) == found


@pytest.mark.parametrize(
    ("guard", "found"),
    [("H > 0", []), ("N * H >= 0", ["V002"]), ("H + 1 > 0", ["V002"]), ("I > 0", ["V002"])],
)
def test_an_image_may_be_empty_and_a_weight_is_not(
    small: Declarations, guard: str, found: list[str]
) -> None:
    text = """
exact rule a {
  match { h = conv2d(x, groups = 1) as c
          y = relu(h)
          x : f[N, I, H, W] }
  where { GUARD }
  rewrite { k = c(x)
            y = gelu(k) }
}
"""
    assert codes_of(text.replace("GUARD", guard), small) == found


def test_ops_that_torch_calls_otherwise_are_named() -> None:
    found = check(parse("exact rule a { match { y = ReLU6(x) } rewrite { y = x } }"), library())
    assert found[0].helps == (
        "torch's `ReLU6` is `hardtanh(x, min_val = 0.0, max_val = 6.0)` here",
    )


@pytest.mark.parametrize("data", ['sample("test", all)', 'sample("valid", 64)'])
def test_a_missing_budget_is_never_asked_of_the_test_split(small: Declarations, data: str) -> None:
    text = """
approx rule a { match { y = linear(x) as l } perturb { l.weight := l.weight * 0.5 } }
pipeline p { data d = DATA; stage s { once a } }
"""
    found = check(parse(text.replace("DATA", data)), small)
    (help,) = next(d for d in found if d.severity == "error").helps
    assert "budget drift(outputs) <= 5%" in help
    assert ("on d`" in help) == ("valid" in data)


@pytest.mark.parametrize(("bias", "found"), [("none", []), ("c.bias - c.bias", ["L003"])])
def test_a_measure_of_parameters_is_compared(
    small: Declarations, bias: str, found: list[str]
) -> None:
    text = """
exact rule a {
  match { h = linear(x) as c
          y = relu(h)
          x : f[N, I] }
  where { known(c.bias) }
  recursive decreasing params(c)
  rewrite { k = c(x, bias = BIAS)
            y = relu(k) }
}
"""
    assert codes_of(text.replace("BIAS", bias), small) == found


SIZES = """
exact rule a {
  match { MATCH }
  where { GUARD }
  rewrite { REWRITE }
}
"""
SQUARE = "h = linear(x) as a; y = linear(h) as b; a.weight : [M, I]; b.weight : [O, M]"


@pytest.mark.parametrize(
    ("match", "guard", "rewrite", "found"),
    [
        (SQUARE, "O == I", "y = relu(x)", []),
        (SQUARE, "M > 1 and I == O", "y = relu(x)", []),
        (SQUARE, "O == M", "y = relu(x)", ["S001"]),
        ("y = conv2d(x, stride = s, padding = 1, groups = 1) as c; c.weight : [O, O, 3, 3]",
         "s == 1 and c.dilation == 1", "y = relu(x)", []),
        ("y = matmul(x, w); x : f[N, L, C]; w : f[C, M]", "C == M", "y = relu(x)", []),
        ("y = matmul(x, w); x : f[N, L, C]; w : f[C, M]", "L == M", "y = relu(x)", ["S001"]),
        ("y = matmul(x, w); x : f[B, L, C]; w : f[B, C, M]", "C == M", "y = relu(x)", []),
        ("y = mul(x, k); x : f[N, C]", "rank(k) == 0", "y = relu(x)", []),
        ("h = conv2d(x) as c; r = relu?(h); y = batch_norm(r) as n", "mode(n) == eval", "y = c(x)",
         []),
        ("h = conv2d(x) as c; r = relu?(h); y = batch_norm(r) as n", "mode(n) == eval",
         "y = relu(x)", ["S001"]),
    ],
)  # fmt: skip
def test_what_a_rule_says_of_sizes_is_known(
    match: str, guard: str, rewrite: str, found: list[str]
) -> None:
    """Guards that ask for equal sizes, batches that broadcast, numbers, ops that may be absent."""
    text = SIZES.replace("MATCH", match).replace("GUARD", guard).replace("REWRITE", rewrite)
    seen = [d.code for d in check(parse(text), library()) if d.severity == "error"]
    assert seen == found
    assert "V002" not in {d.code for d in check(parse(text), library())}


def test_a_number_of_the_rule_has_no_axes() -> None:
    text = "exact rule a(s: float = 2) { match { y = relu(x); x : f[N, C] } rewrite { BUILD } }"
    fine, odd = "h = mul(x, s); y = abs(h)", "h = mul(s, s); y = abs(h)"
    assert codes_of(text.replace("BUILD", fine), library()) == []
    assert "S001" in codes_of(text.replace("BUILD", odd), library())


@pytest.mark.parametrize(
    ("match", "more", "found"),
    [
        ("y = add(x, z)", "rewrite { y = sub(x, neg(z)) }", ["T006"]),
        ("y = add(x, z, alpha = 1)", "rewrite { y = sub(x, neg(z)) }", []),
        ("y = add(x, z, alpha = a)", "rewrite { y = sub(x, mul(neg(z), a)) }", []),
        ("y = add(x, z) as n", "where { n.alpha == 1 } rewrite { y = sub(x, neg(z)) }", []),
        ("y = sub(x, 0)", "rewrite { y = x }", []),
        ("y = dropout(x)", "rewrite { y = x }", ["T006"]),
        ("y = dropout(x) as d", "where { mode(d) == eval } rewrite { y = x }", []),
        ("y = cast(x)", "rewrite { y = x }", ["T006"]),
        ("y = cast(x)", 'where { dtype(y) == dtype(x) } rewrite { y = x }', []),
        ("h = neg(x); y = gelu(h)", "rewrite { k = gelu(x); y = neg(k) }", ["T006"]),
    ],
)  # fmt: skip
def test_a_setting_that_the_rewrite_drops_is_said(match: str, more: str, found: list[str]) -> None:
    text = f"exact rule a {{ match {{ {match} }} {more} }}"
    seen = [d.code for d in check(parse(text), library()) if d.code == "T006"]
    assert seen == found


@pytest.mark.parametrize("source", LIBRARY, ids=lambda source: source.name)
def test_the_library_has_no_warnings(source: Source) -> None:
    assert check(parse(source.text, source.name), library()) == []


# -- codes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("info", [i for i in codes().values() if i.static], ids=lambda i: i.code)
def test_example_of_a_code_triggers_it(info: object, small: Declarations) -> None:
    try:
        found = [d.code for d in check(parse(info.example), small)]  # type: ignore[attr-defined]
    except LissomError as error:
        found = [d.code for d in error.diagnostics]
    assert info.code in found  # type: ignore[attr-defined]


def test_a_code_has_one_meaning() -> None:
    page = (Path(sys.modules["lissom.grammar.codes"].__file__).parent / "codes.md").read_text()  # type: ignore[arg-type]
    assert len(re.findall(r"^## [A-Z]\d{3} ", page, re.M)) == len(codes())


def test_every_code_is_explained() -> None:
    for code, info in codes().items():
        assert info.title
        assert info.explanation
        assert info.fix
        assert explain(code).startswith(f"{code}: ")


def test_every_code_of_the_grammar_has_a_page() -> None:
    folder = Path(sys.modules["lissom.grammar.checks.check"].__file__ or "").resolve().parent
    used = {c for p in folder.glob("*.py") for c in re.findall(r'"([A-Z]\d{3})"', p.read_text())}
    assert used - set(codes()) == set()


def test_unknown_code_is_a_diagnostic() -> None:
    with pytest.raises(LissomError, match="there is no code"):
        explain("Z999")


# -- robustness ----------------------------------------------------------------------------------


def test_never_raises_on_mutated_programs(small: Declarations) -> None:
    """Names of real programs exchanged at random: what still parses is checked without a crash."""
    texts = [p.read_text("utf-8") for p in PROGRAMS]
    texts += [p.read_text("utf-8") for p in sorted((HERE / "errors").glob("[a-df-z]*.lissom"))]
    source, checked = random.Random(7), 0
    for _ in range(400):
        words = re.split(r"(\b[A-Za-z_]+\b)", source.choice(texts))
        for _ in range(source.randint(1, 2)):
            place = 2 * source.randrange(len(words) // 2) + 1
            words[place] = source.choice((source.choice(words[1::2]), "x", "c.weight", "O", "7"))
        try:
            file = parse("".join(words))
        except LissomError:
            continue
        checked += 1
        for found in check(file, small):
            assert found.code in codes()
            assert str(found)
    assert checked > 60


def test_broken_library_statement_is_reported_not_raised() -> None:
    text = "op relu(x: f[...]) -> f[...] { trat elementwise }"
    known = Declarations([Source("lib.lissom", text)])
    found = check(parse("exact rule a { match { y = relu(x) } rewrite { y = x } }"), known)
    assert "E003" in {d.code for d in found}


def test_sorted_by_place(small: Declarations) -> None:
    text = (HERE / "errors/t004_arity.lissom").read_text("utf-8")
    starts = [d.labels[0].span.start for d in check(parse(text), small)]  # type: ignore[union-attr]
    assert starts == sorted(starts)


def test_a_long_file_is_checked_in_part_and_says_so(small: Declarations) -> None:
    rule = "exact rule r{} {{ match {{ h = relu(x); y = neg(h) }} rewrite {{ y = x }} }}"
    text = "\n".join(map(rule.format, range(MAX_FILE + 20)))
    assert "V003" in codes_of(text, small)


def test_checking_needs_no_torch() -> None:
    code = (
        "import sys; from lissom.grammar.checks.check import check;"
        "from lissom.grammar.text.parse import parse;"
        "from lissom.grammar.library.vocabulary import library;"
        "check(parse('exact rule a { match { y = relu(x) } rewrite { y = x } }'), library());"
        "assert not {'torch', 'sympy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- what is no mistake --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        """exact rule halves {
          match { (a, b) = chunk(x, chunks = 2, dim = 1); u = relu(a); v = relu(b) }
          rewrite { r = relu(x); (u, v) = chunk(r, chunks = 2, dim = 1) }
          ensure { ops(after) < ops(before) }
        }""",
        """exact rule first {
          match { (a, _) = chunk(x, chunks = 2, dim = 1); y = relu(a) }
          rewrite { r = relu(x); (y, _) = chunk(r, chunks = 2, dim = 1) }
        }""",
        """exact rule thirds {
          match { (_, b, _) = split(x, split_size_or_sections = 2); y = relu(b) }
          rewrite { b = split(x, split_size_or_sections = 2); y = relu(x) }
        }""",
        """exact rule halve {
          recursive decreasing k
          match { y = mul(x, k) }
          where { constant(k)
                  k > 2 else "done" }
          rewrite { h = mul(x, 2)
                    y = mul(h, k / 2) }
        }""",
    ],
)
def test_rules_that_run_are_not_refused(text: str) -> None:
    assert errors(check(parse(text), library())) == []


def test_an_activation_is_no_number_without_a_guard_that_says_so() -> None:
    text = "exact rule a { match { y = mul(x, k) } where { k > 2 } rewrite { y = x } }"
    assert "T001" in codes_of(text, library())


def test_a_library_file_checks_as_a_file_of_its_own(tmp_path: Path) -> None:
    """Its declarations are those of the library, in the same words."""
    for source in library_sources():
        path = tmp_path / source.name.removeprefix("passes/")
        path.write_text(source.text, "utf-8")
        assert errors(check_program(load_program(path))) == []


def test_the_cost_of_a_product_is_that_of_its_result() -> None:
    text = """exact rule a {{
      match {{ y = matmul(x, z)
              x : [{0}, M, K]
              z : [{1}, K, N] }}
      rewrite {{ y = matmul(x, add(z, 0)) }}
      ensure {{ macs(after) {2} macs(before) }}
    }}"""
    assert "C002" in codes_of(text.format("B", "B", "<"), library())
    assert "C002" not in codes_of(text.format("B", "B", "=="), library())
