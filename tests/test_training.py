"""Training: the best epoch is kept, what rules said of weights holds, and nothing else changes."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.demo import model as digits
from lissom.grammar.diagnostics import LissomError
from lissom.grammar.library.program import program_of
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.graph.digest import model_digest
from lissom.rewrite.pipeline.compile import Options, compile_model
from lissom.rewrite.train.optimizers import known_optimizers, make_optimizer, rate_of
from lissom.rewrite.train.settings import Called

from .learning import DATA, SGD, ends, epochs, net, notes, run, trained, weights

RULES = {
    "mask": "stage s { once prune_weights(ratio = 70%, budget = 100%) }",
    "pattern": "stage s { once prune_n_of_m(budget = 100%) }",
    "grid": "stage s { once grid_weights(bits = 3, budget = 100%) }",
    "signs": "stage s { once binary_weights }",
    "drawn signs": "stage s { once binary_weights(stochastic = true) }",
    "factors": "stage s { once low_rank_linear(rank = 4, least = 8, budget = 100%) }",
}
REFUSED = {"SparseAdam"}
"""Optimisers that take no dense gradient."""
RATES = {"Adadelta": 1.0, "ASGD": 0.05, "SGD": 0.05, "LBFGS": 0.5, "Muon": 0.02}


def test_a_training_keeps_its_best_epoch() -> None:
    result = run(f"recover tune {{ epochs = 6; {SGD} }}")
    scores = [epoch.metrics["accuracy"] for epoch in epochs(result)]
    assert len(scores) == 7
    assert scores[-1] > 0.8 > scores[0]
    (event,) = trained(result)
    assert event.best == scores.index(max(scores))
    found = digits.accuracy(result.model, digits.data("valid"))
    assert found == max(scores)


def test_the_model_that_was_given_is_not_changed() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    run(f"recover tune {{ epochs = 1; {SGD}; teacher = original; loss = kl() + task() }}", model)
    assert all(torch.equal(before[name], held) for name, held in model.state_dict().items())
    assert not model.training
    assert all(weight.grad is None for weight in model.parameters())


# -- what rules say of weights ---------------------------------------------------------------------


def structure(kind: str, layer: nn.Module) -> bool:
    """Whether a layer has the form that a rule gave it; asked without the engine."""
    w: Tensor = layer.weight.detach()  # type: ignore[assignment,union-attr]
    if kind == "mask":
        return int((w == 0).sum()) == int(0.7 * w.numel())
    if kind == "pattern":
        return bool(((w.reshape(-1, 4) != 0).sum(1) <= 2).all())
    if kind == "grid":
        steps = 3 * w / w.abs().amax(1, keepdim=True)
        return bool((steps - steps.round()).abs().max() < 1e-5)
    return len(w.abs().unique()) == 1


@pytest.mark.parametrize("name", sorted(set(known_optimizers()) - REFUSED))
def test_what_rules_made_of_weights_survives_every_optimizer(name: str) -> None:
    rate = RATES.get(name, 0.01)
    settings = f"epochs = 1; batch = 200; optimizer = {name}(lr = {rate})"
    model = net()
    if name == "Muon":  # it takes matrices alone
        model = nn.Sequential(*(without_bias(layer) for layer in model)).eval()
    for kind, stage in RULES.items():
        result = run(f"{stage} recover tune {{ {settings} }}", model)
        (event,) = trained(result)
        assert event.epochs == 1
        assert all(verdict.holds for verdict in event.verdicts)
        made = [m for m in result.model.modules() if isinstance(m, nn.Linear)]
        if kind == "factors":
            assert [tuple(m.weight.shape) for m in made[:2]] == [(4, 64), (40, 4)]
        else:
            assert event.verdicts
            assert all(structure(kind.split()[-1], m) for m in made)


def without_bias(layer: nn.Module) -> nn.Module:
    if not isinstance(layer, nn.Linear):
        return layer
    made = nn.Linear(layer.in_features, layer.out_features, bias=False)
    made.weight = layer.weight
    return made


def test_the_weights_move_though_their_form_stays() -> None:
    """Otherwise all of the above would hold of a training that does nothing."""
    for stage in RULES.values():
        still = run(f"{stage} recover tune {{ epochs = 0 }}")
        moved = run(f"{stage} recover tune {{ epochs = 2; {SGD}; patience = 9 }}")
        pairs = zip(weights(still.model), weights(moved.model), strict=True)
        assert all(not torch.equal(a, b) for a, b in pairs)


def test_an_optimizer_for_sparse_gradients_is_refused() -> None:
    with pytest.raises(LissomError, match=r"F004.*SparseAdam"):
        run("recover tune { epochs = 1; optimizer = SparseAdam(lr = 0.1) }")


class Tied(nn.Module):
    """An encoder whose weight the decoder reads, too."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(64, 64), nn.Linear(64, 64)
        self.two.weight = self.one.weight
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.two(torch.relu(self.one(torch.flatten(x, 1))))))


@pytest.mark.parametrize("stage", ["", RULES["grid"], RULES["signs"]])
def test_tied_weights_stay_tied(stage: str) -> None:
    torch.manual_seed(0)
    result = run(f"{stage} recover tune {{ epochs = 2; {SGD} }}", Tied().eval())
    one, two = result.model.one.weight, result.model.two.weight  # type: ignore[union-attr]
    assert one is two
    assert all(verdict.holds for verdict in trained(result)[0].verdicts)


def test_a_constraint_that_something_else_undid_is_told() -> None:
    """A mask holds zeros; numbers on another grid have none of a layer's rows."""
    rules = """
approx rule shifted {
  match param w of linear
  perturb { w := w + 0.01 }
  rewrite { w := w + 0.01 }
  ensure { error(outputs) <= 100% on calib }
}
"""
    stages = f"{RULES['signs']} stage t {{ once shifted }}"
    result = run(f"{stages} recover tune {{ epochs = 1; {SGD} }}", rules=rules)
    assert len(notes(result, "F102")) == 2
    assert trained(result)[0].verdicts == ()


def test_a_mask_lives_on_in_what_is_folded_into_its_layer() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(1, 8, 3, bias=False)
    model = nn.Sequential(convolution, nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 10)).eval()
    stages = "stage s { once prune_weights(ratio = 50%, budget = 100%) } stage t { once fold_bn }"
    result = run(f"{stages} recover tune {{ epochs = 2; {SGD} }}", model)
    (layer,) = (m for m in result.model.modules() if isinstance(m, nn.Conv2d))
    assert int((layer.weight == 0).sum()) == 36
    assert "2 weights" in trained(result)[0].verdicts[0].detail


def test_constraints_may_be_dropped() -> None:
    settings = f"epochs = 2; {SGD}; constraints = dropped"
    result = run(f"{RULES['mask']} recover tune {{ {settings} }}")
    # Some pixels are dark on every scan: what reads them has no gradient.
    assert all(float((w == 0).float().mean()) < 0.15 for w in weights(result.model))
    assert trained(result)[0].verdicts == ()


def test_a_rule_whose_train_clause_says_something_else_is_wrong() -> None:
    rule = """
approx rule halved {
  match param w of linear
  perturb { w := w * 0.5 }
  rewrite { w := w * 0.5 }
  train { w := w * 2 }
  ensure { error(outputs) <= 100% on calib }
}
"""
    with pytest.raises(LissomError, match="F103"):
        run("stage s { once halved }", rules=rule)


# -- the loop --------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_weights() -> None:
    def digest(seed: int) -> str:
        torch.manual_seed(99 + seed)  # what else draws numbers does not matter
        body = f"recover tune {{ epochs = 2; {SGD}; seed = {seed}; augment = shift(1) }}"
        return model_digest(run(body, net(0)).model)

    assert digest(1) == digest(1) != digest(2)


def test_training_draws_from_no_generator_of_the_caller() -> None:
    model = net()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(f"recover tune {{ epochs = 1; {SGD} }}", model)
    assert torch.equal(torch.rand(3), expected)


def test_a_loss_that_is_no_number_ends_the_training_and_keeps_what_was_best() -> None:
    result = run("recover tune { epochs = 3; optimizer = SGD(lr = 1e30) }")
    (said,) = notes(result, "F101")
    assert "epoch 1, batch 2" in said
    (event,) = trained(result)
    assert event.best == 0
    assert all(torch.isfinite(w).all() for w in weights(result.model))
    assert torch.equal(next(weights(result.model)), next(weights(net())))


def test_until_patience_and_minutes_end_a_training() -> None:
    first = run(f"recover tune {{ epochs = 50; {SGD}; until accuracy >= 80% }}")
    assert epochs(first)[-1].metrics["accuracy"] >= 0.8
    assert all(epoch.metrics["accuracy"] < 0.8 for epoch in epochs(first)[:-1])
    still = run("recover tune { epochs = 50; patience = 2; optimizer = SGD(lr = 1e-9) }")
    assert len(epochs(still)) == 3
    short = run(f"recover tune {{ epochs = 500; {SGD}; minutes = 0.001 }}")
    assert 2 <= len(epochs(short)) < 100


def test_without_validation_data_the_last_epoch_is_kept() -> None:
    program = f"""pipeline p {{
  data train = sample("train", all)
  recover tune {{ epochs = 3; {SGD} }}
}}"""
    given: Any = {"data": digits.data, "metrics": digits.metrics}
    result = lissom.compile(net(), program, inputs=digits.inputs(), **given)
    assert [epoch.metrics for epoch in epochs(result)] == [{}] * 4
    assert trained(result)[0].best == 3


def test_the_last_epoch_may_be_kept() -> None:
    settings = f"epochs = 4; {SGD}; keep = last"
    result = run(f"recover tune {{ {settings.replace('lr = 0.1', 'lr = 2')} }}")
    assert trained(result)[0].best == 4
    found = digits.accuracy(result.model, digits.data("valid"))
    assert found == epochs(result)[-1].metrics["accuracy"]


def test_a_long_training_says_where_it_is() -> None:
    told: list[str] = []
    settings = "epochs = 2; batch = 50; optimizer = SGD(lr = 0.1)"
    program = program_of(f"pipeline p {{ {DATA} recover tune {{ {settings} }} }}", "p", Path())
    options = Options(functions=FUNCTIONS, progress=lambda text, done, total: told.append(text))
    compile_model(net(), program, digits.inputs(), digits.data, digits.metrics, options)
    first = digits.accuracy(net(), digits.data("valid"))
    assert f"tune: epoch 1 of 2 (accuracy {first:.4g}), step 16 of 20" in told
    assert any(text.startswith("tune: epoch 2 of 2 (accuracy 0.") for text in told)


def test_without_a_metric_the_validation_loss_decides() -> None:
    result = run(f"recover tune {{ epochs = 3; {SGD} }}", metrics={})
    losses = [epoch.metrics["valid_loss"] for epoch in epochs(result)]
    assert trained(result)[0].best == losses.index(min(losses))


def test_batch_norms_learn_or_stay() -> None:
    def statistics(norms: str) -> Tensor:
        torch.manual_seed(0)
        layers = nn.Flatten(), nn.Linear(64, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 10)
        body = f"recover tune {{ epochs = 1; {SGD}; norms = {norms} }}"
        result = run(body, nn.Sequential(*layers).eval())
        assert not any(module.training for module in result.model.modules())
        (norm,) = (m for m in result.model.modules() if isinstance(m, nn.BatchNorm1d))
        return norm.running_mean  # type: ignore[return-value]

    assert not torch.equal(statistics("batch"), torch.zeros(20))
    assert torch.equal(statistics("frozen"), torch.zeros(20))


def test_only_trains_what_it_names() -> None:
    result = run(f'recover tune {{ epochs = 1; {SGD}; only = "3" }}')
    old, new = list(weights(net())), list(weights(result.model))
    assert torch.equal(old[0], new[0])
    assert not torch.equal(old[1], new[1])


def test_weight_decay_is_for_matrices_alone() -> None:
    linear, norm = nn.Linear(3, 2), nn.BatchNorm1d(2)
    held = [linear.weight, linear.bias, norm.weight]
    given = Called("SGD", (), {"lr": 0.1, "weight_decay": 0.5}, None)  # type: ignore[arg-type]
    groups = make_optimizer(given, held).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(1, 0.5), (2, 0)]


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("constant", {}, (1, 1, 1)),
        ("linear", {}, (1, 0.5, 0)),
        ("cosine", {}, (1, 0.5, 0)),
        ("one_cycle", {"rise": 0.5}, (0.04, 1, 0)),
        ("step", {"at": (0.5,), "factor": 0.1}, (1, 0.1, 0.1)),
        ("constant", {"warmup": 0.5}, (0, 1, 1)),
    ],
)
def test_the_learning_rate_follows_its_schedule(name: str, given: Any, expected: Any) -> None:
    rate = rate_of(Called(name, (), given, None))  # type: ignore[arg-type]
    assert [rate(done) for done in (0, 0.5, 1)] == pytest.approx(expected)


# -- rounds, controls ------------------------------------------------------------------------------

PRUNE = "stage prune { once prune_weights(ratio = SHARE, budget = 100%) }"


def test_rounds_end_where_a_budget_breaks_and_the_last_good_one_is_kept() -> None:
    stage = PRUNE.replace("SHARE", "share")
    body = f"""
  budget drop(accuracy) <= 3% on valid
  recover dense {{ epochs = 5; {SGD} }}
  repeat share in [50%, 80%, 99.9%, 20%] {{
    {stage}
    recover tune {{ epochs = 2; {SGD} }}
  }}
"""
    model = run(f"recover dense {{ epochs = 5; {SGD} }}").model
    result = run(body, model.eval())
    kept = {end.stage: end.kept for end in ends(result)}
    assert kept == {
        "dense": True, "prune 1": True, "tune 1": True, "prune 2": True, "tune 2": True,
        "prune 3": False, "tune 3": False,
    }  # fmt: skip
    assert len(notes(result, "W707")) == 1
    assert all(0.79 < float((w == 0).float().mean()) < 0.81 for w in weights(result.model))
    assert result.compiled.verified


def test_rounds_end_when_enough_is_reached() -> None:
    rounds = f"repeat max 5 {{ {PRUNE} recover tune {{ epochs = 1; {SGD} }} }}"
    result = run(rounds.replace("SHARE", "60%") + " until sparsity(model) >= 50%")
    assert [end.stage for end in ends(result)] == ["prune 1", "tune 1"]
    assert notes(result, "W707") == []


def test_rounds_that_change_nothing_end() -> None:
    rounds = f"repeat max 5 {{ {PRUNE} recover tune {{ epochs = 1; {SGD} }} }}"
    result = run(rounds.replace("SHARE", "60%"))
    assert "no rule changed anything in round 2" in notes(result, "W707")[0]


def test_a_ticket_begins_where_the_dense_network_began() -> None:
    body = f"""
  checkpoint start
  recover dense {{ epochs = 3; {SGD} }}
  {PRUNE.replace("SHARE", "75%")}
  rewind start
"""
    result = run(body)
    for old, new in zip(weights(net()), weights(result.model), strict=True):
        assert int((new == 0).sum()) == int(0.75 * new.numel())
        assert torch.equal(new[new != 0], old[new != 0])


def test_weights_may_be_drawn_anew_under_the_same_mask() -> None:
    body = f"recover dense {{ epochs = 1; {SGD} }} {PRUNE.replace('SHARE', '75%')}"
    kept = run(body)
    drawn, again, other = (run(f"{body} rewind drawn(seed = {s})") for s in (1, 1, 2))
    for a, b, c, d in zip(*(weights(r.model) for r in (kept, drawn, again, other)), strict=True):
        assert torch.equal(a == 0, b == 0)
        assert torch.equal(b, c)
        assert not torch.equal(b, d)
        assert not torch.equal(a, b)


def test_a_control_leaves_nothing_behind() -> None:
    tune = f"recover tune {{ epochs = 1; {SGD} }}"
    alone = run(tune)
    beside = run(
        f"control other {{ rewind drawn(seed = 1); recover big {{ epochs = 2; {SGD} }} }} {tune}"
    )
    assert model_digest(alone.model) == model_digest(beside.model)
    assert [epoch.stage for epoch in epochs(beside)] == ["big other"] * 3 + ["tune"] * 2
    assert [(e.stage, e.kept) for e in ends(beside)] == [("big other", False), ("tune", True)]
    (control,) = beside.controls.values()
    best = max(epoch.metrics["accuracy"] for epoch in epochs(beside, "big other"))
    assert digits.accuracy(control, digits.data("valid")) == best


def test_bits_go_down_step_by_step() -> None:
    stage = "stage grid { once grid_weights(bits = bits, budget = 100%) }"
    result = run(f"""
  recover dense {{ epochs = 2; {SGD} }}
  repeat bits in [8, 4, 2] {{ {stage} recover tune {{ epochs = 2; {SGD} }} }}
""")
    assert [end.stage for end in ends(result)][1:] == [
        "grid 1", "tune 1", "grid 2", "tune 2", "grid 3", "tune 3",
    ]  # fmt: skip
    assert all(len(row.unique()) <= 3 for w in weights(result.model) for row in w)
    assert trained(result)[-1].verdicts[0].holds


def test_dense_sparse_dense() -> None:
    body = f"""
  recover dense {{ epochs = 2; {SGD} }}
  {PRUNE.replace("SHARE", "50%")}
  recover sparse {{ epochs = 2; {SGD} }}
  recover again {{ epochs = 2; {SGD}; constraints = dropped }}
"""
    result = run(body)
    sparse = trained(result)[1]
    assert sparse.verdicts[0].holds
    assert all(float((w == 0).float().mean()) < 0.15 for w in weights(result.model))


# -- bad programs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("recover tune { epoch = 1 }", "F004"),
        ("recover tune { epochs = 1; epochs = 2 }", "F004"),
        ("recover tune { epochs = 1.5 }", "F004"),
        ("recover tune { disturb = 2 }", "F004"),
        ("recover tune { optimizer = Sgd(lr = 0.1) }", "F004"),
        ("recover tune { optimizer = SGD(rate = 0.1) }", "F004"),
        ("recover tune { schedule = cosin() }", "F004"),
        ("recover tune { loss = mse() }", "F004"),
        ("recover tune { augment = crop(2) }", "F004"),
        ('recover tune { only = "nowhere" }', "U008"),
        ("recover tune { watch = top5 }", "D004"),
        ("recover tune { data = nowhere }", "N001"),
        ("recover tune { loss = kl() }", "F105"),
        ("recover tune { teacher = original }", "F105"),
        ("recover tune { teacher = nobody; loss = kl() }", "F105"),
        ("recover tune { student = nobody }", "F105"),
        ('data t = sample("test", all); recover tune { data = t }', "F003"),
        ('data t = sample("test", all); recover tune { valid = t }', "F003"),
        ("rewind start", "N001"),
        ("control c { rewind drawn(seed = nothing) }", "N001"),
    ],
)
def test_what_cannot_be_trained_is_named(body: str, code: str) -> None:
    with pytest.raises(LissomError) as caught:
        run(body)
    assert caught.value.diagnostics[0].code == code


def test_a_wrong_setting_is_said_before_anything_is_trained() -> None:
    body = f"recover a {{ epochs = 1; {SGD} }} repeat max 2 {{ recover b {{ optimizer = Sdg() }} }}"
    asked: list[str] = []

    def data(split: str) -> Any:
        asked.append(split)
        return digits.data(split)

    def never(model: nn.Module, batches: Any) -> float:
        raise AssertionError

    with pytest.raises(LissomError, match="F004"):
        run(body, data=data, metrics={"accuracy": never})


def test_labels_that_are_missing_are_named() -> None:
    def unlabelled(split: str) -> Any:
        return [x for x, _ in digits.data(split)]

    with pytest.raises(LissomError, match="F104"):
        run(
            f"recover tune {{ epochs = 1; {SGD}; loss = cross_entropy() }}",
            data=unlabelled,
            metrics={},
        )


def test_divergence_is_no_number_in_the_result() -> None:
    result = run("recover tune { epochs = 2; optimizer = SGD(lr = 1e12); clip = 1 }")
    assert all(math.isfinite(float(w.abs().max())) for w in weights(result.model))
