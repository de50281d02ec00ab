"""Model files: what is loaded, and how the mistakes of users are told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from lissom.grammar.diagnostics import Diagnostic, LissomError
from lissom.model_file import ModelFile, load_model
from tests.cli_models import MODEL

BUILD = "def build():\n    from torch import nn\n    return nn.Linear(2, 2).eval()\n"


def load(folder: Path, text: str, name: str = "build") -> ModelFile:
    path = folder / "net.py"
    path.write_text(text)
    return load_model(f"{path}:{name}")


def failure(folder: Path, text: str, name: str = "build") -> Diagnostic:
    with pytest.raises(LissomError) as caught:
        load(folder, text, name)
    (found,) = caught.value.diagnostics
    return found


def test_a_whole_model_file(tmp_path: Path) -> None:
    file = load(tmp_path, MODEL)
    assert isinstance(file.model, nn.Module)
    assert isinstance(file.inputs, tuple)
    assert file.inputs[0].shape == (2, 3, 6, 6)
    assert file.data is not None
    assert len(list(file.data("train"))) == 3
    assert 0 <= file.metrics["share"](file.model, file.data("test")) <= 1


def test_build_alone_is_enough_and_is_the_default(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(BUILD)
    file = load_model(str(path))
    assert (file.inputs, file.data, dict(file.metrics)) == (None, None, {})


def test_the_name_may_be_a_model_itself(tmp_path: Path) -> None:
    text = "from torch import nn\nmodel = nn.ReLU().eval()\n"
    assert isinstance(load(tmp_path, text, "model").model, nn.ReLU)


def test_a_package_is_found_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "my_nets_of_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "small.py").write_text(BUILD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    assert isinstance(load_model("my_nets_of_test.small:build").model, nn.Linear)


def test_a_file_may_import_what_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    (tmp_path / "beside_it_for_test.py").write_text("WIDTH = 3\n")
    text = "import beside_it_for_test as b\nfrom torch import nn\n"
    assert load(tmp_path, f"{text}model = nn.Linear(b.WIDTH, 1)\n", "model").model.in_features == 3


def test_inputs_may_be_a_list_or_a_dict(tmp_path: Path) -> None:
    assert load(tmp_path, f"{BUILD}def inputs():\n    return [1]\n").inputs == (1,)
    assert load(tmp_path, f"{BUILD}inputs = {{'a': 1}}\n").inputs == {"a": 1}


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("nowhere.py:build", "file.py:build"),
        ("nowhere_at_all:build", "end it in .py"),
        ("a-b:build", "package.module:build"),
    ],
)
def test_names_that_lead_nowhere(name: str, hint: str) -> None:
    with pytest.raises(LissomError) as caught:
        load_model(name)
    (found,) = caught.value.diagnostics
    assert found.code == "U002"
    assert hint in found.helps[0]


def test_a_misspelled_file_is_guessed(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(BUILD)
    with pytest.raises(LissomError) as caught:
        load_model(f"{tmp_path / 'modle.py'}:build")
    assert "model.py`?" in caught.value.diagnostics[0].helps[0]


def test_a_misspelled_function_is_guessed(tmp_path: Path) -> None:
    found = failure(tmp_path, BUILD, "biuld")
    assert (found.code, found.helps) == ("U003", ("did you mean `build`?",))


@pytest.mark.parametrize(
    ("text", "code", "line", "said"),
    [
        ("x = 1\ny = x / 0\n", "M020", 2, "ZeroDivisionError"),
        ("def build(:\n", "M020", 1, "SyntaxError"),
        ("import not_there_for_test\n", "M020", 1, "ModuleNotFoundError"),
        ("def build():\n    return {}['a']\n", "M021", 2, "KeyError"),
        ("raise SystemExit('no data')\n", "M020", 1, "no data"),
        (f"{BUILD}def inputs():\n    raise OSError('gone')\n", "M022", 5, "gone"),
    ],
)
def test_the_users_line_is_named(
    text: str, code: str, line: int, said: str, tmp_path: Path
) -> None:
    found = failure(tmp_path, text)
    assert found.code == code
    assert found.labels[0].where == f"{tmp_path / 'net.py'}:{line}"
    assert said in found.notes[0]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("def build():\n    return 3\n", "M021"),
        (f"{BUILD}inputs = 3\n", "M022"),
        (f"{BUILD}data = 3\n", "M023"),
        (f"{BUILD}metrics = [1]\n", "M024"),
        (f"{BUILD}metrics = {{'a': 1}}\n", "M024"),
    ],
)
def test_values_of_the_wrong_sort(text: str, code: str, tmp_path: Path) -> None:
    assert failure(tmp_path, text).code == code


def test_errors_of_data_and_metrics_come_when_they_are_used(tmp_path: Path) -> None:
    text = (
        f"{BUILD}def data(split):\n    if split == 'x':\n        raise KeyError(split)\n"
        "    raise OSError('disk')\nmetrics = {'bad': lambda model, batches: 1 / 0}\n"
    )
    file = load(tmp_path, text)
    assert file.data is not None
    with pytest.raises(KeyError):
        file.data("x")
    with pytest.raises(LissomError, match="M023"):
        file.data("train")
    with pytest.raises(LissomError, match="M024"):
        file.metrics["bad"](file.model, [torch.zeros(1)])
