"""Training on whatever data, losses and models there are: it ends right or says why not, and leaves
alone what belongs to the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import lissom
from lissom.grammar.diagnostics import LissomError
from lissom.grammar.fmt.format import format_text

from .learning import epochs, notes, trained
from .support import Fn

DATA = 'data train = sample("train", all)\ndata valid = sample("valid", all)\n'
TUNE = "recover tune { epochs = 2; batch = 8; optimizer = SGD(lr = 0.1) }"

torch.manual_seed(0)
X = torch.randn(20, 6)
Y = (X[:, 0] > 0).long()


def small(outputs: int = 2) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, outputs)).eval()


def tuned(
    model: nn.Module | None = None,
    data: Any = None,
    body: str = TUNE,
    inputs: Any = None,
    **given: Any,
) -> lissom.Result:
    data = [(X, Y)] if data is None else data
    inputs = (X[:2],) if inputs is None else inputs
    text = f"pipeline p {{ {DATA} {body} }}"
    return lissom.compile(model or small(), text, inputs=inputs, data=data, **given)


def said(call: Callable[[], object]) -> Any:
    """The one diagnostic that a call raises, which points somewhere or says what to do."""
    with pytest.raises(LissomError) as caught:
        call()
    (found,) = caught.value.diagnostics
    assert found.helps or any(label.span or label.where for label in found.labels)
    return found


# -- what is taken ---------------------------------------------------------------------------------


def texts() -> list[tuple[Tensor, Tensor]]:
    """Batches of words, of several lengths."""
    drawn = torch.Generator().manual_seed(0)
    return [(torch.randint(0, 20, (4, n), generator=drawn), torch.arange(4) % 2) for n in (3, 5, 7)]


def reader(**given: Any) -> nn.Module:
    torch.manual_seed(0)
    layers = {"e": nn.Embedding(20, 8, **given), "l": nn.Linear(8, 2)}
    return Fn(lambda m, x: m.l(m.e(x).mean(1)), **layers).eval()


def three(split: str) -> Any:
    for at in range(0, 20, 7):
        yield X[at : at + 7], Y[at : at + 7]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(lambda s: DataLoader(TensorDataset(X, Y), batch_size=8), id="loader"),
        pytest.param(three, id="generator"),
        pytest.param([(X, Y), (X[:0], Y[:0])], id="empty batch"),
        pytest.param([((X,), Y)], id="tuple"),
        pytest.param([(X.clone().requires_grad_(), Y)], id="gradients"),
    ],
)
def test_samples_however_they_come_are_one_data(data: Any) -> None:
    result = tuned(data=data)
    wanted = tuned()
    losses = [[e.loss for e in epochs(r)] for r in (result, wanted)]
    assert losses[0] == losses[1]
    assert [e.metrics["valid_loss"] for e in epochs(result)] == pytest.approx(
        [e.metrics["valid_loss"] for e in epochs(wanted)]
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_learn_in_their_own_precision(dtype: torch.dtype) -> None:
    body = (
        'recover tune { epochs = 2; teacher = original; loss = task() + hint(at = "0", of = "2") }'
    )
    data = [(X.to(dtype), Y)]
    result = tuned(small().to(dtype), data, body, inputs=(X[:2].to(dtype),))
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    assert epochs(result)[-1].loss is not None


def test_settings_may_be_named_as_words_of_the_language() -> None:
    text = 'pipeline p { recover tune { loss = hint(at = "0", of = "2"); valid = v } }'
    assert 'hint(at = "0", of = "2")' in format_text(text)


def test_words_of_several_lengths_and_sparse_gradients() -> None:
    """What an embedding leaves out of its gradient is zero."""
    dense, sparse = (
        tuned(reader(sparse=s), texts(), inputs=(texts()[0][0],)) for s in (False, True)
    )
    for a, b in zip(dense.model.parameters(), sparse.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert trained(dense)[0].samples == 12


def test_labels_of_batches_of_several_lengths_are_disturbed() -> None:
    """Drawn from all classes, and labels that losses leave out stay."""
    seen: list[Tensor] = []

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        seen.append(labels.clone())
        return functional.cross_entropy(outputs, labels)

    data = [(x, torch.tensor([3, 3, 3, -100])) for x, _ in texts()]
    model = Fn(lambda m, x: m.l(m.e(x).mean(1)), e=nn.Embedding(20, 8), l=nn.Linear(8, 4)).eval()
    body = "recover tune { epochs = 20; disturb = 50% }"
    tuned(model, data, body, inputs=(data[0][0],), loss=loss)
    labels = torch.stack(seen)
    assert set(labels[:, :3].unique().tolist()) == {0, 1, 2, 3}
    assert bool((labels[:, 3] == -100).all())


# -- what is refused -------------------------------------------------------------------------------


def raises(error: Exception) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        raise error

    return call


def late(split: str) -> Any:
    yield X, Y
    raise OSError("disk")


LOSSES = {
    "vector": lambda y, t: functional.cross_entropy(y, t, reduction="none"),
    "float": lambda y, t: 1.0,
    "none": lambda y, t: None,
    "without gradients": lambda y, t: functional.cross_entropy(y, t).detach(),
    "raises": raises(ZeroDivisionError()),
    "no key": lambda y, t: {}["x"],
}
METRIC: Any = {"accuracy": lambda model, batches: 0.5}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_that_is_none_is_named(name: str) -> None:
    assert said(lambda: tuned(loss=LOSSES[name], metrics=METRIC)).code == "F104"


@pytest.mark.parametrize(
    ("given", "code"),
    [
        pytest.param({"data": [(X[:0], Y[:0])]}, "D002", id="no sample"),
        pytest.param({"data": lambda s: []}, "D002", id="no batch"),
        pytest.param({"data": late}, "M023", id="data fails"),
        pytest.param({"data": [X]}, "F104", id="no labels"),
        pytest.param({"data": [(X, Y + 5)]}, "D006", id="labels beyond the outputs"),
        pytest.param({"data": [(X, X[:, :3])]}, "D006", id="labels of another kind"),
        pytest.param({"loss": raises(KeyError("x"))}, "D006", id="loss on validation data"),
        pytest.param({"model": small().requires_grad_(False)}, "F004", id="all is frozen"),
    ],
)
def test_what_is_wrong_with_data_and_losses_is_named(given: dict[str, Any], code: str) -> None:
    assert said(lambda: tuned(**given)).code == code


@pytest.mark.parametrize(
    "setting",
    [
        "disturb = 10%; loss = logits(); teacher = original",
        "schedule = cosine(warmup = x)",
        "schedule = step(at = 50%)",
        "augment = shift(x)",
        "augment = shift(-1)",
        "loss = kl(temperature = 0); teacher = original",
        "loss = norm_scales()",
        'optimizer = SGD(lr = "x")',
        "until valid_loss",
    ],
)
def test_settings_that_mean_nothing_are_named(setting: str) -> None:
    data = [(X, X[:, :2])] if "disturb" in setting else None
    found = said(lambda: tuned(data=data, body=f"recover tune {{ {setting} }}"))
    assert found.code in {"F004", "F104", "T001"}
    assert all(len(text) < 400 for text in (*found.notes, *(label.text for label in found.labels)))


@pytest.mark.parametrize(
    ("build", "code"),
    [
        (raises(ZeroDivisionError()), "M021"),
        (lambda: None, "M021"),
        (lambda: nn.Linear(6, 2).train(), "M001"),
    ],
)
def test_models_that_teach_are_none(build: Callable[[], Any], code: str) -> None:
    body = "recover tune { teacher = big; loss = kl() }"
    found = said(lambda: tuned(body=body, models={"big": build}))
    assert found.code == code
    assert "`big`" in " ".join((found.message, *found.notes))


def test_a_value_that_is_changed_after_a_gradient_needs_it_is_named() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = torch.sigmoid(m.a(x))
        h.mul_(2)
        return m.b(h)

    found = said(lambda: tuned(Fn(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 2)).eval()))
    assert found.code == "F104"
    assert "in place at `mul_`" in found.notes[0]
    assert "y.mul_(2)" in found.helps[0]


def test_batch_norms_learn_nothing_of_one_sample() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).eval()
    found = said(lambda: tuned(model, body="recover tune { epochs = 1; batch = 19 }"))
    assert found.code == "F104"
    assert "norms = frozen" in found.helps[0]
    tuned(model, body="recover tune { epochs = 1; batch = 19; norms = frozen }")


def test_weights_before_an_integer_layer_are_said_not_to_learn() -> None:
    rule = 'once int8_linear(budget = 100%) at "2"'
    stages = f'data calib = sample("train", all)\nstage s {{ once watch; calibrate calib; {rule} }}'
    with pytest.warns(UserWarning, match="nothing before them gets a gradient"):
        found = said(lambda: tuned(small(64), body=f"{stages} {TUNE}"))
    assert found.code == "F104"
    assert "integer layers" in found.helps[0]


def test_functions_that_stay_as_captured_are_told() -> None:
    """Layers follow the mode, functions were asked when the model was captured."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.b(functional.dropout(m.drop(m.a(x)), 0.5, training=m.training))

    layers = {"a": nn.Linear(6, 8), "drop": nn.Dropout(0.9), "b": nn.Linear(8, 2)}
    body = "recover tune { epochs = 1; optimizer = SGD(lr = 1e-9) }"
    result = tuned(Fn(forward, **layers).eval(), body=body)
    (said_of,) = notes(result, "F109")
    assert said_of.startswith("`dropout`:")
    still, moved = epochs(result)[0].metrics["valid_loss"], epochs(result)[1].loss
    assert moved != pytest.approx(still, rel=1e-4)  # the layer drops what it drops
    assert not any(module.training for module in result.model.modules())
    assert notes(tuned(), "F109") == []


# -- numbers that are none -------------------------------------------------------------------------


def test_an_epoch_whose_metric_is_no_number_is_never_best() -> None:
    for values, best in (
        ([float("nan"), 0.5, 0.7, 0.6], 2),
        ([0.5, 0.7, float("nan"), 0.6], 1),
        ([float("nan")] * 4, 3),
    ):
        given = iter(values)
        metrics: Any = {"m": lambda model, batches, given=given: next(given)}
        result = tuned(body="recover tune { epochs = 3; batch = 8 }", metrics=metrics)
        assert trained(result)[0].best == best
        assert len(notes(result, "F108")) == 1


def test_weights_that_end_as_no_numbers_are_not_kept() -> None:
    """Nothing judges the last step where there is no validation data."""
    text = 'pipeline p { data train = sample("train", all)\nrecover tune { epochs = 1; BATCH } }'
    text = text.replace("BATCH", "batch = 20; optimizer = SGD(lr = 1e38)")

    def steep(outputs: Tensor, labels: Tensor) -> Tensor:
        return 1e4 * functional.cross_entropy(outputs, labels)

    result = lissom.compile(small(), text, inputs=(X[:2],), data=[(X, Y)], loss=steep)
    (event,) = trained(result)
    assert (event.best, event.epochs) == (0, 0)
    assert "holds numbers that are none" in event.stopped
    assert all(torch.isfinite(p).all() for p in result.model.parameters())


@pytest.mark.parametrize("constrained", [False, True])
def test_a_metric_may_call_the_model_by_names(constrained: bool) -> None:
    """Also while a constraint holds, when the graph runs with other weights than its own."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.net = small()

        def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
            return self.net(x)

    def metric(model: nn.Module, batches: Any) -> float:
        return float(sum((model(x=x).argmax(1) == y).float().sum() for x, y in batches)) / len(Y)

    stage = 'data calib = sample("train", all)\n'
    stage += "stage s { once prune_weights(ratio = 50%, budget = 100%) }" if constrained else ""
    result = tuned(Named().eval(), body=f"{stage} {TUNE}", metrics={"accuracy": metric})
    assert len(epochs(result)) == 3


# -- what belongs to the caller --------------------------------------------------------------------


def writes_input(m: Any, x: Tensor) -> Tensor:
    x.mul_(2)
    return m.a(x)


def test_samples_stay_as_they_are_whatever_the_model_writes() -> None:
    """Batches that are taken as they were given are seen again in the next epoch."""
    data = [(X[:4, :, None].repeat(1, 1, n), Y[:4]) for n in (1, 2, 3)]
    kept = [x.clone() for x, _ in data]
    model = Fn(lambda m, x: writes_input(m, x.mean(2)), a=nn.Linear(6, 2)).eval()
    written = Fn(lambda m, x: m.a(x.mul_(2).mean(2)), a=nn.Linear(6, 2)).eval()
    written.load_state_dict(model.state_dict())
    body = "recover tune { epochs = 2; teacher = original; loss = task() + kl() }"
    result = tuned(written, data, body, inputs=(data[1][0][:2].clone(),))
    assert all(torch.equal(x, before) for (x, _), before in zip(data, kept, strict=True))
    wanted = tuned(model, data, body, inputs=(data[1][0][:2].clone(),))
    losses = [[e.loss for e in epochs(r)][1:] for r in (result, wanted)]
    assert losses[0] == pytest.approx(losses[1])


def test_gradients_of_the_callers_tensors_are_his_own() -> None:
    x = X.clone().requires_grad_()
    model = small()
    tuned(model, [(x, Y)])
    assert x.grad is None
    assert all(p.grad is None for p in model.parameters())


def test_modes_and_generators_of_the_caller_stay() -> None:
    model, threads = small(), torch.get_num_threads()

    def loader(split: str) -> Any:
        return DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True)

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    for grad in (True, False):
        with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype=torch.bfloat16):
            tuned(model, loader)
            assert torch.is_grad_enabled() is grad
            assert torch.is_autocast_enabled("cpu")
    assert torch.equal(torch.rand(3), expected)
    assert not model.training
    assert torch.get_default_dtype() is torch.float32
    assert torch.get_num_threads() == threads


def test_training_inside_of_inference_mode() -> None:
    with torch.inference_mode():
        inside = tuned()
        assert torch.is_inference_mode_enabled()
    outside = tuned()
    for a, b in zip(inside.model.parameters(), outside.model.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not a.is_inference()


def test_the_host_keeps_its_own_accelerator() -> None:
    """All of them share one state, and a new one writes its settings there."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    tuned()
    assert AcceleratorState._shared_state == {}
    assert GradientState._shared_state == {}
    own = Accelerator(cpu=True, gradient_accumulation_steps=4, mixed_precision="bf16")
    try:
        result = tuned()
        assert own.gradient_accumulation_steps == 4
        assert own.gradient_state.num_steps == 4
        assert own.mixed_precision == "bf16"
        layer, optimizer = own.prepare(
            layer := nn.Linear(1, 1), torch.optim.SGD(layer.parameters())
        )
        seen = set()
        for _ in range(8):
            with own.accumulate(layer):
                own.backward(layer(torch.ones(1, 1)).sum())
                optimizer.step()
                optimizer.zero_grad()
            seen.add(float(layer.weight.detach()))
        assert len(seen) == 3
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    assert all(
        torch.equal(a, b)
        for a, b in zip(result.model.parameters(), tuned().model.parameters(), strict=True)
    )


def test_settings_of_a_launcher_do_not_change_what_is_learned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = tuned()
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    found = tuned()
    for a, b in zip(wanted.model.parameters(), found.model.parameters(), strict=True):
        assert torch.equal(a, b)


# -- files -----------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_costs_no_epoch(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    trained_on: list[bool] = []

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        trained_on.append(outputs.requires_grad)
        return functional.cross_entropy(outputs, labels)

    found = said(lambda: tuned(checkpoints=tmp_path / "file" / "under", loss=loss))
    assert found.code == "U005"
    assert not any(trained_on)


def test_a_training_that_is_interrupted_leaves_everything_and_goes_on(tmp_path: Path) -> None:
    asked: list[int] = []

    def interrupted(model: nn.Module, batches: Any) -> float:
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return 0.5

    torch.manual_seed(3)
    expected = torch.rand(2)
    model, body = small(), TUNE.replace("epochs = 2", "epochs = 4")
    torch.manual_seed(3)
    with pytest.raises(KeyboardInterrupt):
        tuned(model, body=body, metrics={"m": interrupted}, checkpoints=tmp_path)
    assert torch.equal(torch.rand(2), expected)
    assert torch.is_grad_enabled()
    again = tuned(model, body=body, metrics={"m": lambda *_: 0.5}, checkpoints=tmp_path)
    assert [e.number for e in epochs(again)] == [0, 1, 2, 3, 4]
    assert len(asked) == 3


def test_equal_runs_have_equal_certificates() -> None:
    one, two = tuned().certificate, tuned().certificate
    assert one["trainings"] == two["trainings"]
    assert one["model"] == two["model"]
