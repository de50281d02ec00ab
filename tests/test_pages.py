"""Rule pages: what they say, that they cannot be stale, and that text in them is only text."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lissom.cli import cli
from lissom.grammar.checks.declared import SymbolTable
from lissom.grammar.library.program import Program, load_program, program_of
from lissom.grammar.tree import clauses
from lissom.grammar.tree import tree as t
from lissom.report.evidence import digest
from lissom.report.page_text import code, code_block, comment_markdown, prose, reason
from lissom.report.rule_picture import picture
from lissom.rewrite.rules.rule import compile_rule

ROOT = Path(__file__).parent.parent
CHECKED_IN = ROOT / "docs" / "rules"
MODELS = 400
"""Generated models that the certificate holds at least for each rule: `make test` tries fewer."""
LIBRARY = sorted(p for p in (ROOT / "passes").glob("*.lissom") if " rule " in p.read_text("utf-8"))

RULES = """\
# Halves: two factors are one. Written for a test, with a <b>tag</b> in it.
#
#     (x / 2) / 2  ->  x / 4
#
# Nobody 2020, arXiv:2001.01234. Not meant:
#
# - a * b * c, which is no list of *words*;
# - `x | y`.

# Only where the
# factors are known.
exact rule halves {
  doc "Two <i>halvings</i> | one. Same values."
  match {
    h = mul(x, 0.5)
    y = mul(h, k)
    x : f[N, C]
  }
  unless { x = (relu | abs)(w) }
  where { constant(k)  else "`{k}` is no <constant> | of {N * C}" }
  rewrite { y = mul(x, k * 0.5) }
}

exact rule untested {
  match {
    h = neg(x)
    y = neg(h)
  }
  rewrite { y = x }
}
"""


def entry(text: str, name: str = "halves", **more: Any) -> dict[str, Any]:
    rule = program_of(text).own_rules[name]
    return {"rule": name, "sha256": digest(rule), "verdict": "verified", **more}


def certificate(*rules: dict[str, Any], **more: Any) -> str:
    return json.dumps({"format": 1, "seed": 0, "rules": list(rules), **more})


def run(folder: Path, text: str, written: str, *options: str) -> Result:
    (folder / "halves.lissom").write_text(text)
    (folder / "proof.json").write_text(written)
    files = [str(folder / "halves.lissom"), "--certificate", str(folder / "proof.json")]
    return CliRunner().invoke(cli, ["pages", *files, "--out", str(folder / "pages"), *options])


@pytest.fixture
def page(tmp_path: Path) -> str:
    found = entry(
        RULES, models=400, fired=1412, mutants=30, killed=29, survivors=["sign: `-x` <i>"],
        near=[{"name": "a", "silent": 5, "equal": 1}, {"name": "b", "silent": 6, "equal": 0}],
        silent={"constant(k)": 40}, refused={"B001": 3},
        algebra={"proved": 7, "sites": 9, "error": 2.6e-25, "open": {"8 of 8; opaque": 2}},
        bit_equal=31, bits=32, ratio=0.0759, weak=[], failures=[], seconds=1.5,
        confidence={"held": 300, "rate_below": 0.0099, "level": 0.95},
    )  # fmt: skip
    result = run(tmp_path, RULES, certificate(found))
    assert result.exit_code == 0, result.output
    return (tmp_path / "pages" / "halves.md").read_text()


# -- what a page says ------------------------------------------------------------------------------


def test_a_page_has_the_comments_the_conditions_and_the_text(page: str) -> None:
    assert page.startswith("# halves\n\n*Written by `lissom pages` from [halves.lissom](../halves")
    assert "```text\n(x / 2) / 2  ->  x / 4\n```" in page
    assert "[arXiv:2001.01234](https://arxiv.org/abs/2001.01234)" in page
    assert "\n\nOnly where the factors are known.\n\n" in page
    assert "*exact rule (values), verified.*" in page
    assert "| `x : f[N, C]` | no match |" in page
    assert "| not `x = (relu \\| abs)(w)` | no match |" in page
    assert RULES[RULES.index("exact rule") : RULES.index("\n\nexact rule untested")] in page


def test_a_page_has_the_evidence(page: str) -> None:
    assert "| fired | 1,412 times" in page
    assert "2 kinds: silent for the right reason at 11; fired with an equal result at 1 |" in page
    assert "| mutants | 29 of 30 noticed |" in page
    assert "| algebra | 7 of 9 sites" in page
    assert "below 3e-25" in page
    assert "| refused | 3 times by the engine, before anything was changed (`B001`) |" in page
    assert "| not for algebra | 2 of 9 sites: opaque |" in page
    assert "| bits | 31 of 32 models" in page
    assert "0.076 of what is allowed" in page
    assert "with 95% confidence fewer than 0.99% of such applications break it" in page
    assert f"SHA-256 `{digest(program_of(RULES).own_rules['halves'])[:12]}`" in page


def test_a_rule_without_evidence_says_so(page: str, tmp_path: Path) -> None:
    assert "No evidence: this rule was not tested." in page
    index = (tmp_path / "pages" / "README.md").read_text()
    assert "[`untested`](halves.md#untested) |  | *exact* | not tested |" in index
    assert "2 rules: 1 verified, 1 not tested." in index


def test_a_guard_that_is_missing_is_shown(tmp_path: Path) -> None:
    text = RULES.replace("where { constant(k)", "where { ? }\n  where { constant(k)")
    assert run(tmp_path, text, certificate()).exit_code == 0
    assert "| `?` | still open" in (tmp_path / "pages" / "halves.md").read_text()


def test_nothing_is_taken_for_markup(page: str) -> None:
    outside = re.sub(r"`[^`\n]+`", "", re.sub(r"^```.*?^```$", "", page, flags=re.M | re.S))
    assert re.findall(r"(?<!\\)<", outside) == []
    assert "a \\* b \\* c, which is no list of \\*words\\*" in page
    assert "| \\``k`\\` is no \\<constant> \\| of `N * C` |" in page
    assert "| mutant that survives | sign: `-x` \\<i> |" in page


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (prose("# no heading"), "\\# no heading"),
        (prose("1. no list"), "1\\. no list"),
        (prose("running_var _so_ `a_b`"), "running_var \\_so\\_ `a_b`"),
        (prose("[a](b) and &lt; $x$"), "\\[a](b) and \\&lt; \\$x\\$"),
        (code("a `b`"), "`` a `b` ``"),
        (code_block("```\nx\n```"), "````\n```\nx\n```\n````"),
        (reason("{c} has {n[0]}*"), "`c` has `n[0]`\\*"),
        (comment_markdown(["a", "b", "", "- c", "  d", "- e"]), "a b\n\n- c d\n- e"),
        (comment_markdown(["a:", "    x < y", "    ", "b"]), "a:\n\n```text\nx < y\n```\n\nb"),
    ],
)
def test_text_stays_text(shown: str, wanted: str) -> None:
    assert shown == wanted


# -- the picture -----------------------------------------------------------------------------------


def chart(text: str, name: str) -> str:
    program = program_of(text)
    return picture(program.own_rules[name], SymbolTable(program.file, program.declarations))


def test_the_picture_of_a_small_rule() -> None:
    assert chart(RULES, "halves").splitlines()[1:] == [
        "  subgraph before",
        "    direction TB",
        '    b1["mul"]',
        '    b2(["x"])',
        "    b2 --> b1",
        '    b3["0.5"]',
        "    b3 -.-> b1",
        '    b4["mul"]',
        '    b1 -->|"h"| b4',
        '    b5(["k"])',
        "    b5 -.-> b4",
        '    b6(["y"])',
        "    b4 --> b6",
        "  end",
        "  subgraph after",
        "    direction TB",
        '    a1["mul"]',
        '    a2(["x"])',
        "    a2 --> a1",
        '    a3["k #42; 0.5"]',
        "    a3 -.-> a1",
        '    a4(["y"])',
        "    a1 --> a4",
        "  end",
        "  before ==> after",
        "  classDef constant stroke-dasharray: 4 4",
        "  class b3,b5,a3 constant",
    ]


def test_what_stays_of_the_left_side_is_drawn_on_the_right() -> None:
    text = """
    exact rule twice {
      match {
        shared h = relu(x)
        y = relu(h)
      }
      rewrite { y = h }
    }
    """
    after = chart(text, "twice").split("subgraph after")[1]
    assert re.findall(r'[a-z]\d\(?\["(\w+)"', after) == ["relu", "x", "y"]


@cache
def program(path: Path) -> Program:
    return load_program(path)


LIBRARY_RULES = [
    pytest.param(path, rule, id=rule.name.text)
    for path in LIBRARY
    for rule in program(path).file.all(t.Rule)
]


@pytest.mark.parametrize(("path", "rule"), LIBRARY_RULES)
def test_the_picture_names_every_op(path: Path, rule: t.Rule) -> None:
    """Every op of each side stands in that side; every arrow leads from a node to a node."""
    shown = picture(rule, SymbolTable(program(path).file, program(path).declarations))
    before, after = shown.split("  subgraph after")
    matched = {p.handle: p for p in clauses.patterns(rule) if isinstance(p, t.OpPattern)}
    for pattern in clauses.patterns(rule):
        if isinstance(pattern, t.OpPattern):
            assert " | ".join(word.text for word in pattern.ops.names) in before
    handles = {str(handle): pattern for handle, pattern in matched.items() if handle}
    for build in clauses.builds(rule):
        for name in _called(build.value):
            ops = handles[name].ops.names if name in handles else (name,)
            assert " | ".join(map(str, ops)) in after
    nodes = re.findall(r"^    (\w+)[\[(]", shown, re.M)
    ends = re.findall(r"^    (\w+) -\S+(?:[^|]*\|)? (\w+)$", shown, re.M)
    assert len(nodes) == len(set(nodes))
    assert {end for arrow in ends for end in arrow} <= set(nodes)
    assert len(ends) == len(re.findall(r"-->|-\.->", shown))


def _called(value: t.Expr) -> Iterator[str]:
    if isinstance(value, t.Call) and isinstance(value.function, t.Name):
        yield value.function.text


def test_labels_hold_no_character_that_acts() -> None:
    found = re.findall(r'"([^"\n]*)"', chart(RULES.replace("mul(x, k * 0.5)", MEAN), "halves"))
    assert any("#34;<br/>" not in label and "#34;" in label for label in found)
    assert all(re.fullmatch(r"(?:[^<>#`*%&@{};]|#\d+;|<br/>)*", label) for label in found)


MEAN = 'mul(x, einsum("<b>`%%`</b>;->&", k))'


# -- what is refused -------------------------------------------------------------------------------


def test_evidence_for_another_text_is_an_error(tmp_path: Path) -> None:
    """Both rules are named, and nothing is written."""
    rules = [entry(RULES), entry(RULES, "untested")]
    changed = RULES.replace("k * 0.5", "0.5 * k").replace("untested {", 'untested {\n  doc "New."')
    result = run(tmp_path, changed, certificate(*rules))
    assert result.exit_code == 1
    assert result.output.count("error[V113]") == 2
    assert "`halves` is not the text that was tested" in result.output
    assert not (tmp_path / "pages").exists()


def test_a_comment_above_a_rule_needs_no_new_test(tmp_path: Path) -> None:
    changed = RULES.replace("# factors are known.", "# factors are constant.")
    assert run(tmp_path, changed, certificate(entry(RULES))).exit_code == 0


@pytest.mark.parametrize(
    "written",
    [
        "", "[]", '{"format": 2, "rules": []}', '{"format": 1}', '{"format": 1, "rules": [{}]}',
        "[" * 100_000, "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    ],
)  # fmt: skip
def test_what_is_no_certificate_is_refused(written: str, tmp_path: Path) -> None:
    result = run(tmp_path, RULES, written)
    assert result.exit_code == 2
    assert "error[U009]" in result.output


def test_a_certificate_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "halves.lissom").write_text(RULES)
    command = ["pages", str(tmp_path), "--certificate", str(tmp_path / "no.json"), "--out", "x"]
    result = CliRunner().invoke(cli, command)
    assert (result.exit_code, "error[U009]" in result.output) == (2, True)


def test_fields_of_other_types_count_as_missing(tmp_path: Path) -> None:
    odd = entry(RULES, models="many", near=3, algebra=[1], bits=True, weak="no", confidence=None)
    assert run(tmp_path, RULES, certificate(odd, environment=[])).exit_code == 0
    page = (tmp_path / "pages" / "halves.md").read_text()
    assert page.count("| verdict | **verified** |\n| text |") == 1


def test_a_file_that_does_not_check_gets_no_page(tmp_path: Path) -> None:
    result = run(tmp_path, RULES.replace("mul(h, k)", "mull(h, k)"), certificate())
    assert result.exit_code == 2
    assert "mull" in result.output


@pytest.mark.parametrize("name", ["other/halves.lissom", "README.lissom"])
def test_two_files_never_share_a_page(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(RULES)
    files = [str(tmp_path / "halves.lissom"), str(tmp_path / name)]
    (tmp_path / "halves.lissom").write_text(RULES)
    (tmp_path / "proof.json").write_text(certificate())
    command = ["pages", *files, "--certificate", str(tmp_path / "proof.json")]
    result = CliRunner().invoke(cli, [*command, "--out", str(tmp_path / "pages")])
    assert (result.exit_code, "error[U005]" in result.output) == (2, True)
    assert not (tmp_path / "pages").exists()


def test_names_of_files_are_only_names(tmp_path: Path) -> None:
    (tmp_path / "a [b] & *c*.lissom").write_text(RULES)
    (tmp_path / "proof.json").write_text(certificate())
    command = ["pages", str(tmp_path), "--certificate", str(tmp_path / "proof.json")]
    assert CliRunner().invoke(cli, [*command, "--out", str(tmp_path / "pages")]).exit_code == 0
    text = (tmp_path / "pages" / "a [b] & *c*.md").read_text()
    assert text.startswith("# a \\[b] \\& \\*c\\*\n")
    assert "(../a%20%5Bb%5D%20%26%20%2Ac%2A.lissom)" in text


# -- the command -----------------------------------------------------------------------------------


def test_check_writes_nothing(tmp_path: Path) -> None:
    written = certificate(entry(RULES))
    result = run(tmp_path, RULES, written, "--check")
    assert (result.exit_code, (tmp_path / "pages").exists()) == (1, False)
    assert run(tmp_path, RULES, written).exit_code == 0
    assert run(tmp_path, RULES, written, "--check").exit_code == 0
    (tmp_path / "pages" / "halves.md").write_text("edited")
    result = run(tmp_path, RULES, written, "--check", "--format", "json")
    assert result.exit_code == 1
    assert [Path(p).name for p in json.loads(result.stdout)["changed"]] == ["halves.md"]


def test_pages_need_no_torch(tmp_path: Path) -> None:
    (tmp_path / "proof.json").write_text(certificate())
    files = [str(ROOT / "passes"), "--certificate", str(tmp_path / "proof.json")]
    arguments = ["pages", *files, "--out", str(tmp_path / "pages"), "-q"]
    call = f"import sys, lissom.__main__ as m; m.main({arguments!r}); print('torch' in sys.modules)"
    command = [sys.executable, "-c", call]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["False"]
    names = {path.name for path in (tmp_path / "pages").iterdir()}
    assert names == {"README.md", *(f"{path.stem}.md" for path in LIBRARY)}


# -- the pages of the library ----------------------------------------------------------------------


@cache
def library_certificate() -> dict[str, Any]:
    return json.loads((CHECKED_IN / "certificate.json").read_text("utf-8"))


def test_the_pages_of_the_library_are_current() -> None:
    files = ["passes", "--certificate", str(CHECKED_IN / "certificate.json")]
    command = ["pages", *files, "--out", "docs/rules", "--check"]
    arguments = [sys.executable, "-m", "lissom", *command]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, f"run `make pages`: {done.stdout}{done.stderr}"
    names = {path.name for path in CHECKED_IN.iterdir()}
    assert names == {"certificate.json", "README.md", *(f"{path.stem}.md" for path in LIBRARY)}


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
def test_every_rule_of_the_library_is_verified_as_it_stands(path: Path) -> None:
    """The digest is that of the engine, whose certificates name rules by it."""
    found = {entry["rule"]: entry for entry in library_certificate()["rules"]}
    for rule in program(path).file.all(t.Rule):
        if clauses.over_images(rule) or rule.kind == "observe":  # as `lissom test` says
            continue
        entry = found[rule.name.text]
        assert entry["sha256"] == compile_rule(rule, {}).digest == digest(rule)
        assert entry["verdict"] == "verified"
        assert (entry["failures"], entry["weak"], entry["survivors"]) == ([], [], [])
        assert entry["models"] >= MODELS
        assert not Path(entry["place"].partition(":")[0]).is_absolute()


def test_every_doc_of_an_exact_rule_says_how_exact_it_is() -> None:
    index = (CHECKED_IN / "README.md").read_text("utf-8")
    assert "*exact*" not in index
    for found in library_certificate()["rules"]:
        (row,) = re.findall(rf"^\| \[`{found['rule']}`\].*$", index, re.M)
        if "| *bits* |" in row:
            assert found["ratio"] == 0.0, found["rule"]


def test_the_certificate_of_the_library_holds_no_times() -> None:
    assert "seconds" not in (CHECKED_IN / "certificate.json").read_text("utf-8")


def test_links_of_the_pages_lead_somewhere() -> None:
    for path in CHECKED_IN.glob("*.md"):
        outside = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.M | re.S)
        for target in re.findall(r"\]\((?!https:)([^)#]+)#?([^)]*)\)", outside):
            found = (path.parent / target[0]).resolve()
            assert found.is_file(), (path.name, target)
            assert not target[1] or f"\n## {target[1]}\n" in found.read_text("utf-8")
