"""Mistakes that are planted into training: each is found, by a verdict or by what is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.graph.snapshot import snapshot
from lissom.rewrite.train import learner, recover, teachers
from lissom.rewrite.train.learner import Learner

from .learning import SGD, run
from .test_training import RULES, Tied

TUNE = f"recover tune {{ epochs = 1; {SGD} }}"
TWO = f"{RULES['mask']} stage g {{ once grid_weights(bits = 3, budget = 100%) }} {TUNE}"

Plant = Callable[[pytest.MonkeyPatch], None]


def forgets_masks(patch: pytest.MonkeyPatch) -> None:
    """The learner trains every weight freely."""
    made = Learner.__init__
    patch.setattr(Learner, "__init__", lambda self, graph, kept: made(self, graph, {}))


def forgets_one(patch: pytest.MonkeyPatch) -> None:
    def init(self: Learner, graph: fx.GraphModule, kept: Any, made: Any = Learner.__init__) -> None:
        made(self, graph, dict(list(kept.items())[1:]))

    patch.setattr(Learner, "__init__", init)


def settles_what_moves(patch: pytest.MonkeyPatch) -> None:
    """The numbers that the optimiser moves are left in the model."""
    patch.setattr(Learner, "settle", lambda self: None)


def composes_backwards(patch: pytest.MonkeyPatch) -> None:
    """The learner applies the newest constraint first, and the oldest last."""

    def weights(self: Learner) -> dict[str, Tensor]:
        found = {}
        for paths, kept in self._kept.items():
            value: Tensor = self.graph.get_parameter(paths[0])
            for one in reversed(kept):
                value = one(value + (0.01 if one is kept[0] else 0), training=self.training)
            found |= dict.fromkeys(paths, value)
        return found

    patch.setattr(Learner, "weights", weights)


def grid_off_by_one(patch: pytest.MonkeyPatch) -> None:
    """Each number is stored one step beyond the one that it stands for."""
    right = Learner.weights

    def weights(self: Learner) -> dict[str, Tensor]:
        found = right(self)
        step = {path: w.abs().amax(1, keepdim=True) / 3 for path, w in found.items()}
        return found if self.training else {path: w + step[path] for path, w in found.items()}

    patch.setattr(Learner, "weights", weights)


def teacher_is_trained(patch: pytest.MonkeyPatch) -> None:
    """What is trained shares its weights with the model that it began from."""
    patch.setattr(recover, "with_own_weights", snapshot)


def teacher_learns_statistics(patch: pytest.MonkeyPatch) -> None:
    """A teacher in training mode: its batch norms learn from what it is shown."""
    asked = teachers.ModelTeacher.__call__

    def learning(self: Any, args: Any, rows: Any) -> Any:
        self.graph.train()
        return asked(self, args, rows)

    patch.setattr(teachers.ModelTeacher, "__call__", learning)


def loses_ties(patch: pytest.MonkeyPatch) -> None:
    """Each layer gets a copy of the weight that they shared."""
    made = learner.with_own_weights

    def apart(module: fx.GraphModule) -> fx.GraphModule:
        graph = made(module)
        for path, weight in list(graph.named_parameters(remove_duplicate=False)):
            owner, _, name = path.rpartition(".")
            setattr(graph.get_submodule(owner), name, nn.Parameter(weight.detach().clone()))
        return graph

    patch.setattr(recover, "with_own_weights", apart)


def broken(body: str, model: nn.Module | None = None) -> None:
    with pytest.raises(LissomError, match=r"V102|F103"):
        run(body, model)


@pytest.mark.parametrize(
    ("plant", "body", "model"),
    [
        (forgets_masks, RULES["mask"] + TUNE, None),
        (forgets_masks, RULES["pattern"] + TUNE, None),
        (forgets_masks, RULES["grid"] + TUNE, None),
        (forgets_masks, RULES["signs"] + TUNE, None),
        (forgets_one, RULES["mask"] + TUNE, None),
        (settles_what_moves, RULES["grid"] + TUNE, None),
        (settles_what_moves, RULES["signs"] + TUNE, None),
        (grid_off_by_one, RULES["grid"] + TUNE, None),
        (composes_backwards, TWO, None),
        (loses_ties, TUNE, Tied),
        (loses_ties, RULES["grid"] + TUNE, Tied),
    ],
)
def test_a_learner_that_breaks_what_was_promised_is_found(
    plant: Plant, body: str, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = None if model is None else model().eval()
    run(body, given)
    plant(monkeypatch)
    broken(body, given)


def normed() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(64, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 10)
    return nn.Sequential(*layers)


TAUGHT = "recover tune { epochs = 1; teacher = original; loss = kl() + task(); augment = shift(1); "
TAUGHT += f"{SGD} }}"


@pytest.mark.parametrize("plant", [teacher_is_trained, teacher_learns_statistics])
def test_a_teacher_that_changes_is_found(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    run(TAUGHT, normed().eval())
    plant(monkeypatch)
    broken(TAUGHT, normed().eval())


def test_in_rounds_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round that breaks a budget is taken back; one that breaks a promise is an error."""
    forgets_masks(monkeypatch)
    broken(f"repeat max 2 {{ {RULES['mask']} {TUNE} }}")
