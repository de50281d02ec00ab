"""The commands that need no model: check, fmt, explain, new; help, errors and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lissom.__main__ import main
from lissom.cli import COMMANDS
from lissom.grammar.diagnostics import Diagnostic
from lissom.output import exit_code

ROOT = Path(__file__).parent.parent

GOOD = """\
exact rule drop_it {
  doc "Two signs cancel."
  match {
    h = neg(x)
    y = neg(h)
  }
  rewrite { y = x }
}
"""
UNKNOWN = GOOD.replace("neg(h)", "negg(h)")
WARNED = GOOD.replace("  rewrite", '  where { 1 <= 2  else "never" }\n  rewrite')


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one file of each sort; it is the working directory."""
    monkeypatch.chdir(tmp_path)
    for name, text in (("good", GOOD), ("unknown", UNKNOWN), ("warned", WARNED)):
        (tmp_path / f"{name}.lissom").write_text(text)
    (tmp_path / "broken.lissom").write_text("exact rule {")
    return tmp_path


def python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


# -- what is loaded --------------------------------------------------------------------------------

QUIET = "import io, sys, contextlib\nwith contextlib.redirect_stdout(io.StringIO()):\n    code = "


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["plan", "--help"],
        ["apply", "--help"],
        ["check", str(ROOT / "passes" / "tidy.lissom")],
        ["fmt", "--check", str(ROOT / "passes" / "tidy.lissom")],
        ["explain", "fold_bn"],
        ["explain", "E001"],
    ],
)
def test_commands_without_a_model_never_load_torch(arguments: list[str]) -> None:
    call = f"__import__('lissom.__main__').__main__.main({arguments!r})\n"
    loaded = python(f"{QUIET}{call}print(code, sorted({{'torch', 'numpy'}} & set(sys.modules)))")
    assert loaded.split(maxsplit=1)[1].strip() == "[]"


def test_new_never_loads_torch(tmp_path: Path) -> None:
    arguments = ["new", "rule", "mine", "-o", str(tmp_path / "mine.lissom")]
    call = f"__import__('lissom.__main__').__main__.main({arguments!r})\n"
    assert python(f"{QUIET}{call}print(code, 'torch' in sys.modules)").split() == ["0", "False"]


def test_help_imports_no_command_and_no_table_library() -> None:
    call = "__import__('lissom.__main__').__main__.main(['--help'])\n"
    loaded = python(f"{QUIET}{call}print(*sys.modules, sep='\\n')").splitlines()
    assert not [name for name in loaded if name.startswith("lissom.commands.")]
    assert "rich" not in loaded
    assert "lark" not in loaded


# -- help and misuse -------------------------------------------------------------------------------


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help_json_and_quiet(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [name, "rule"] if name == "new" else [name]
    assert main([*command, "-h"]) == 0
    text = capsys.readouterr().out
    # `export` says with --format what it writes.
    assert ("--json " if name == "export" else "--format [text|json") in text
    assert "-q, --quiet" in text


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    streams = capsys.readouterr()
    assert "Commands:" in streams.out + streams.err
    assert "U001" not in streams.err


def test_a_misspelled_command_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["aply"]) == 2
    assert "did you mean `apply`" in capsys.readouterr().err


def test_a_missing_argument_is_a_diagnostic(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan"]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error[U001]: Missing argument 'MODEL'")
    assert "lissom plan --help" in text


@pytest.mark.parametrize(
    ("arguments", "command", "message"),
    [
        (["check", "--format", "json"], "check", "Missing argument 'FILES...'"),
        (["check", "x", "--nonsense", "--format=json"], "check", "--nonsense"),
        (["--format", "json", "check", "x"], "lissom", "--format"),
        (["aply", "--format", "json"], "lissom", "did you mean `apply`"),
        (["plan", "m", "--exit", "--format", "json"], "plan", "--exit"),
        (["new", "rule", "--format", "json"], "rule", "Missing argument 'NAME'"),
        (["plan", "m", "p", "-o", ".", "--format", "json"], "plan", "is a directory"),
    ],
)
def test_misuse_is_one_document_with_json(
    arguments: list[str], command: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    streams = capsys.readouterr()
    document = json.loads(streams.out)
    assert (document["command"], document["exit"]) == (command, 2)
    (found,) = document["diagnostics"]
    assert (found["code"], found["severity"]) == ("U001", "error")
    assert message in found["message"]
    assert "--help" in found["helps"][0]
    assert streams.err == ""


@pytest.mark.parametrize("arguments", [["--format", "sarif"], ["--format", "text"], []])
def test_misuse_is_text_without_json(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *arguments]) == 2
    streams = capsys.readouterr()
    assert streams.err.startswith("error[U001]: Missing argument")
    assert streams.out == ""


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("E001", 2),
        ("T003", 2),
        ("V001", 2),
        ("K001", 2),
        ("U002", 2),
        ("M004", 3),
        ("M020", 3),
        ("V101", 1),
        ("V104", 1),
        ("B001", 1),
        ("A021", 1),
        ("U010", 4),
    ],
)
def test_exit_codes_follow_the_family(code: str, expected: int) -> None:
    assert exit_code([Diagnostic("W702", "", severity="warning"), Diagnostic(code, "")]) == expected


def test_warnings_alone_are_no_failure() -> None:
    assert exit_code([Diagnostic("V101", "", severity="warning")]) == 0


# -- check -----------------------------------------------------------------------------------------


def test_check_of_a_good_file(rules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "good.lissom"]) == 0
    streams = capsys.readouterr()
    assert (streams.out, streams.err) == ("1 file: 0 errors, 0 warnings\n", "")


def test_check_shows_place_and_fix(rules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "unknown.lissom"]) == 2
    text = capsys.readouterr().err
    assert "unknown.lissom:5:9" in text
    assert "did you mean `neg`?" in text


def test_check_goes_on_after_a_broken_file(rules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "broken.lissom", "unknown.lissom", "missing.lissom"]) == 2
    text = capsys.readouterr().err
    assert [code in text for code in ("E001", "unknown.lissom:5:9", "E006")] == [True] * 3


def test_check_of_a_folder_finds_all_files(rules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "."]) == 2
    assert capsys.readouterr().out.startswith("4 files: ")


def test_a_folder_without_rules_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(tmp_path)]) == 2
    assert "U002" in capsys.readouterr().err


def test_warnings_fail_only_if_strict(rules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "warned.lissom"]) == 0
    assert main(["check", "--strict", "warned.lissom"]) == 2
    assert "warning[V002]" in capsys.readouterr().err


def test_check_as_json(rules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--format", "json", "unknown.lissom"]) == 2
    streams = capsys.readouterr()
    document = json.loads(streams.out)
    assert (document["command"], document["exit"], streams.err) == ("check", 2, "")
    (found,) = document["diagnostics"]
    assert found["labels"][0]["line"] == 5


def test_check_as_sarif(rules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--format", "sarif", "unknown.lissom"]) == 2
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    (result,) = run["results"]
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "unknown.lissom"
    assert place["region"] == {"startLine": 5, "startColumn": 9, "endLine": 5, "endColumn": 13}
    assert run["tool"]["driver"]["rules"] == [{"id": result["ruleId"]}]


def test_check_for_github(rules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--format", "github", "unknown.lissom"]) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("::error file=unknown.lissom,line=5,col=9,title=")
    assert "%0A" in line


def test_a_pipeline_may_name_rules_of_the_library_and_of_used_files(
    rules: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "use good\npipeline p { stage s { fixpoint { drop_it; fold_bn } } }\n"
    (rules / "program.lissom").write_text(text)
    assert main(["check", "program.lissom"]) == 0
    (rules / "program.lissom").write_text(text.replace("fold_bn", "fold_bnn"))
    assert main(["check", "program.lissom"]) == 2
    assert "fold_bnn" in capsys.readouterr().err


# -- fmt -------------------------------------------------------------------------------------------

UGLY = 'exact rule a {\n doc   "x"\n  match { h = neg(x)\n y = neg(h) }\n rewrite { y = x } }\n'


def test_fmt_writes_and_then_has_nothing_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.lissom"
    path.write_text(UGLY)
    path.chmod(0o600)
    assert main(["fmt", str(path)]) == 0
    assert path.read_text() != UGLY
    assert path.stat().st_mode & 0o777 == 0o600
    assert "1 checked, 1 changed" in capsys.readouterr().out
    assert main(["fmt", "--check", str(path)]) == 0
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("option", ["--check", "--diff"])
def test_fmt_can_only_look(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.lissom"
    path.write_text(UGLY)
    assert main(["fmt", option, str(path)]) == 1
    assert path.read_text() == UGLY
    shown = capsys.readouterr().out
    assert ('- doc   "x"' in shown) == (option == "--diff")


def test_fmt_of_what_is_not_the_language(rules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fmt", "broken.lissom"]) == 2
    assert "E001" in capsys.readouterr().err


# -- explain ---------------------------------------------------------------------------------------


def test_explain_a_code_in_any_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "u004"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("U004: ")
    assert "\nFix: " in text


def test_explain_a_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "fold_bn", "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "exact"
    assert document["text"].startswith("exact rule fold_bn {")
    assert document["doc"]


@pytest.mark.parametrize("name", ["fold_bnn", "V119"])
def test_explain_what_is_not_there(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", name]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_explain_lists_rules_and_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain"]) == 0
    text = capsys.readouterr().out
    assert "separable_conv" in text
    assert "V101" in text


# -- new -------------------------------------------------------------------------------------------


def test_a_new_rule_checks_and_is_formatted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", "rule", "fold_mine"]) == 0
    assert main(["check", "--strict", "fold_mine.lissom"]) == 0
    assert main(["fmt", "--check", "fold_mine.lissom"]) == 0
    text = (tmp_path / "fold_mine.lissom").read_text()
    assert "exact rule fold_mine {" in text
    assert capsys.readouterr().err == ""


def test_new_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.lissom"
    path.write_text("# mine\n")
    assert main(["new", "rule", "mine", "-o", str(path)]) == 2
    assert path.read_text() == "# mine\n"
    assert "U005" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["Fold", "2x", "../evil", "a b"])
def test_new_wants_a_rule_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "rule", name]) == 2
    assert "U007" in capsys.readouterr().err


# -- doctor ----------------------------------------------------------------------------------------


def test_doctor_says_what_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["found"]["torch"].startswith("2.")
    assert "no weights" in document["privacy"]
    assert str(Path.home()) not in json.dumps(document["found"])


# -- lissom's own failures -------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [True, False])
def test_tracebacks_are_shown_on_demand_only(
    wanted: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def planted(code: str) -> str:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr("lissom.grammar.codes.explain", planted)
    monkeypatch.setenv("LISSOM_TRACEBACK", "1" if wanted else "0")
    assert main(["explain", "E001"]) == 2
    text = capsys.readouterr().err
    assert ("Traceback" in text) == wanted
    assert "error[U099]" in text
    assert "ZeroDivisionError: planted" in text


def test_a_missing_package_is_exit_code_four(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["doctor"]) == 4
    assert "pip install torch" in capsys.readouterr().err


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
def test_pipes_get_no_colour(term: str) -> None:
    command = [sys.executable, "-m", "lissom", "check", "missing.lissom"]
    env = {"TERM": term, "PATH": "/usr/bin"}
    run = subprocess.run(command, capture_output=True, env=env, check=False)
    assert run.returncode == 2
    assert b"\x1b" not in run.stderr + run.stdout
