"""Networks with exits in other runtimes: parts, and a driver that needs nothing of lissom."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import lissom
from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.runtime.exits import EarlyExit

from .test_exits import AT_ONE, RULE, TUNE, Named, X, alone, compiled

TWO = 'stage exits { once exit_head at "one"; once exit_head at "two" }' + TUNE
PATIENT = f'stage s {{ once leave at "one"; once leave at "two" }} {TUNE}'


def halved(result: lissom.Result, folder: Path) -> tuple[EarlyExit, Path]:
    """The network with thresholds at which some samples leave, and its artifact."""
    model = result.model
    assert isinstance(model, EarlyExit)
    with torch.no_grad():
        _, scores = model.everywhere(X)
    model.thresholds = [float(score.median()) for score in scores]
    return model, result.save(folder / "out", check_reload=False)


def driver(folder: Path, name: str) -> Any:
    """The module beside the parts, as a file that anybody may import."""
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("body", [f"{AT_ONE} {TUNE}", TWO, PATIENT])
def test_parts_in_onnx_runtime_let_the_same_samples_leave(body: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    rules = RULE.replace("CONDITION", "agreement(e) >= 2") if body == PATIENT else ""
    model, path = halved(compiled(body, rules=rules), tmp_path)
    verdicts = lissom.export(path, tmp_path / "small-one.onnx")
    assert all(verdict.holds for verdict in verdicts)
    assert {verdict.claim.split(":")[0] for verdict in verdicts} >= {"body1", "head1", "body2"}
    run = driver(tmp_path, "small_one_exits").ExitNetwork(tmp_path / "small-one.onnx.json")
    for one, threshold in zip(run.exits, model.thresholds, strict=True):
        one["limit"] = threshold
    found, exits = run(X.numpy())
    with torch.no_grad():
        wanted, also = model(X, return_exit=True)
        torch.testing.assert_close(alone(model, X)[0], wanted)
    assert exits.tolist() == also.tolist()
    torch.testing.assert_close(torch.from_numpy(found), wanted)
    assert run(X[:0].numpy())[0].shape == (0, 2)
    assert run(X[:1].numpy())[1].tolist() == also[:1].tolist()


def test_parts_for_torch_export(tmp_path: Path) -> None:
    model, path = halved(compiled(f"{AT_ONE} {TUNE}"), tmp_path)
    assert all(verdict.holds for verdict in lissom.export(path, tmp_path / "m.pt2"))
    said = json.loads((tmp_path / "m.pt2.json").read_text())
    assert said["bodies"] == ["m.body1.pt2", "m.body2.pt2"]
    (one,) = said["exits"]
    assert (one["test"], one["head"], one["by_row"]) == (">", "m.head1.pt2", [True])
    part = torch.export.load(tmp_path / "m.body1.pt2").module()
    with torch.no_grad():
        (value,) = part(X[:8])
        torch.testing.assert_close(value, model.bodies[0](X[:8])[0])


def test_outputs_that_are_no_tensor_are_refused(tmp_path: Path) -> None:
    body = 'stage exits { once exit_head at "net.one" } recover tune { epochs = 0 }'
    metric = {"accuracy": lambda model, batches: 0.5}
    result = compiled(body, Named().eval(), metrics=metric, loss=lambda out, y: out["logits"].sum())
    path = result.save(tmp_path / "out", check_reload=False)
    with pytest.raises(LissomError, match="A040") as caught:
        lissom.export(path, tmp_path / "m.pt2")
    assert "one tensor" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
