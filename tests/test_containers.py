"""What a model returns or takes keeps its fields, in memory and in an artifact."""

from __future__ import annotations

import dataclasses
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.evidence.artifact import verify_artifact
from lissom.rewrite.store.containers import FieldRecord, container_line, container_of
from lissom.rewrite.store.folder import load, save

from . import fresh

FOLD = "pipeline p { stage clean { fixpoint { fold_bn_linear } } }"


class Pair(NamedTuple):
    mean: Tensor
    rest: Tensor | None


@dataclasses.dataclass
class Scores:
    logits: Tensor
    boxes: Tensor | None = None
    extra: dict[str, Tensor] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Output(OrderedDict):
    """As transformers' ModelOutput: fields by attribute and, unless None, by key and position."""

    loss: Tensor | None = None
    logits: Tensor | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) is not None:
                self[field.name] = getattr(self, field.name)


class Returns(nn.Module):
    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.norm, self.wrap = nn.Linear(4, 6), nn.BatchNorm1d(6), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.norm(self.layer(x)))


def compiled(wrap: Callable[[Tensor], Any], folder: Path) -> tuple[Any, Any, Any]:
    """What the eager model, the compiled one and the loaded one return for another batch."""
    model, x = Returns(wrap).eval(), torch.rand(5, 4)
    result = lissom.compile(model, FOLD, inputs=(torch.rand(2, 4),))
    assert len(result.applied) == 1
    loaded = lissom.load(result.save(folder, check_reload=False))
    with torch.no_grad():
        return model(x), result.model(x), loaded(x)


WRAPS: dict[str, Callable[[Tensor], Any]] = {
    "named tuple": lambda y: Pair(y.mean(), None),
    "ordered dict": lambda y: OrderedDict(out=y, aux=[y.sum()]),
    "return type": lambda y: y.max(1),
    "size": lambda y: y.shape,
}


@pytest.mark.parametrize("kind", WRAPS)
def test_standard_containers_come_back_as_themselves(kind: str, tmp_path: Path) -> None:
    eager, inside, loaded = compiled(WRAPS[kind], tmp_path / "out")
    assert type(eager) is type(inside)
    assert type(loaded).__name__ == type(eager).__name__
    assert isinstance(loaded, tuple | OrderedDict)
    assert getattr(loaded, "_fields", None) == getattr(eager, "_fields", None)
    for one, two in zip(_items(eager), _items(loaded), strict=True):
        torch.testing.assert_close(one, two)


def _items(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else list(value)


def test_a_dataclass_comes_back_with_its_fields(tmp_path: Path) -> None:
    eager, inside, loaded = compiled(
        lambda y: Scores(y, extra={"mean": y.mean()}), tmp_path / "out"
    )
    assert type(inside) is Scores
    assert type(loaded) is not Scores  # nothing is imported for an artifact
    assert type(loaded).__name__ == "Scores"
    assert [f.name for f in dataclasses.fields(loaded)] == ["logits", "boxes", "extra"]
    assert loaded.boxes is None
    torch.testing.assert_close(loaded.logits, eager.logits)
    torch.testing.assert_close(loaded.extra["mean"], eager.extra["mean"])


def test_a_mapping_with_attributes_comes_back_as_one(tmp_path: Path) -> None:
    eager, inside, loaded = compiled(lambda y: Output(logits=y), tmp_path / "out")
    assert type(inside) is Output
    assert isinstance(loaded, FieldRecord)
    assert list(loaded) == list(eager) == ["logits"]
    assert loaded.loss is None
    assert torch.equal(loaded.logits, inside.logits)
    assert loaded["logits"] is loaded[0] is loaded.logits
    assert loaded.to_tuple() == (loaded.logits,)
    assert list(container_of("record Output(loss, logits)")(logits=1, loss=2)) == ["loss", "logits"]
    with pytest.raises(AttributeError, match="no field `losses`"):
        _ = loaded.losses
    with pytest.raises(KeyError):
        _ = loaded["loss"]


def test_a_loaded_model_is_saved_again_byte_by_byte(tmp_path: Path) -> None:
    model = Returns(lambda y: (Scores(y), Output(logits=y), Pair(y, y))).eval()
    result = lissom.compile(model, FOLD, inputs=(torch.rand(2, 4),))
    result.save(tmp_path / "one")
    save(load(tmp_path / "one").module, tmp_path / "two")
    graphs = [(tmp_path / name / "graph.json").read_bytes() for name in ("one", "two")]
    assert graphs[0] == graphs[1]


def test_reading_never_imports_the_class(tmp_path: Path) -> None:
    result = lissom.compile(Returns(lambda y: Scores(y)).eval(), FOLD, inputs=(torch.rand(2, 4),))
    folder = result.save(tmp_path / "out", check_reload=False)
    code = (
        f"import lissom, sys; lissom.load({str(folder)!r}); print('test_containers' in sys.modules)"
    )
    ran = fresh.run([sys.executable, "-c", code], check=True)
    assert ran.stdout.strip() == "False"


@pytest.mark.parametrize(
    "line",
    [
        "dataclass Out(logits, logits)",
        "dataclass Out(__class__)",
        "dataclass Out(logits):",
        "dataclass class(a)",
        "namedtuple Out(_a)",
        "namedtuple Out(a, import)",
        "record Out(a b)",
        "torch.return_types.__doc__",
        "torch.return_types.open",
        "object",
        "dict",
    ],
)
def test_a_line_that_no_container_has_is_refused(line: str) -> None:
    assert container_of(line) is None


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (Pair, "namedtuple Pair(mean, rest)"),
        (Scores, "dataclass Scores(logits, boxes, extra)"),
        (Output, "record Output(loss, logits)"),
        (torch.return_types.max, "torch.return_types.max"),
        (OrderedDict, "ordered_dict"),
        (defaultdict, "record defaultdict()"),
        (nn.Linear, None),
        (len, None),
    ],
)
def test_how_a_container_is_stored(kind: Any, line: str | None) -> None:
    assert container_line(kind) == line
    if line is not None:
        again = container_of(line)
        assert container_line(again) == line
        assert container_of(line) is again


# -- inputs ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Words:
    table: Tensor
    scales: Any = None


class Takes(Returns):
    def forward(self, x: Any) -> Tensor:
        y = self.norm(self.layer(x.table))
        return y if x.scales is None else y * x.scales["first"]


class Named(NamedTuple):
    table: Tensor
    scales: Any = None


@pytest.mark.parametrize("kind", [Words, Named])
@pytest.mark.parametrize("scaled", [False, True], ids=["one field", "nested"])
def test_inputs_of_a_class_of_its_own_are_read_and_recorded_by_field(
    kind: type, scaled: bool, tmp_path: Path
) -> None:
    def given(count: int) -> Any:
        scales = OrderedDict(first=torch.rand(count, 1)) if scaled else None
        return kind(torch.randn(count, 4), scales)

    model = Takes(lambda y: y).eval()
    result = lissom.compile(model, FOLD, inputs=(given(3),))
    assert len(result.applied) == 1
    result.save(tmp_path / "model")
    x = given(5)
    for module in (result.model, lissom.load(tmp_path / "model")):
        torch.testing.assert_close(module(x), model(x))
        with pytest.raises(AssertionError, match=r"`x(\.scales|\[1\])` is (given|missing)"):
            module(kind(x.table, None if scaled else {"first": x.table}))
    reloaded = verify_artifact(tmp_path / "model")[1]
    assert all(verdict.holds and verdict.how != "not checked" for verdict in reloaded)


@pytest.mark.parametrize("name", ["__class__", "_fields", "backward", "register_hook"])
def test_no_other_attribute_of_an_input_is_stored(name: str, tmp_path: Path) -> None:
    graph = torch.fx.Graph()
    graph.output(graph.call_function(getattr, (graph.placeholder("x"), name)))
    with pytest.raises(LissomError, match="A015"):
        save(torch.fx.GraphModule(nn.Module(), graph), tmp_path / "a")


def test_no_attribute_of_a_result_is_stored(tmp_path: Path) -> None:
    graph = torch.fx.Graph()
    made = graph.call_function(torch.relu, (graph.placeholder("x"),))
    graph.output(graph.call_function(getattr, (made, "table")))
    with pytest.raises(LissomError, match="A015"):
        save(torch.fx.GraphModule(nn.Module(), graph), tmp_path / "a")
