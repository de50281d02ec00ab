"""Models that must be refused by name, or captured with a warning."""

from __future__ import annotations

import threading
from collections import UserDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lissom.rewrite.capture.capture import capture

from .captured import Lambda, codes, refusal, same


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# ----------------------------------------------------------------------------------------


def test_training_mode() -> None:
    """S11, H06."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout()))
    assert refusal(model, torch.rand(2, 2)).code == "M001"
    model.eval()
    model[1][0].train()
    found = refusal(model, torch.rand(2, 2))
    assert found.code == "M001"
    assert found.labels[0].where == "1.0"
    assert "Dropout" in found.message


def test_random_numbers() -> None:
    """H19."""
    model = Lambda(lambda self, x: (x, x + torch.rand_like(x))).eval()
    found = refusal(model, torch.rand(2, 2))
    assert found.code == "M002"
    assert "[1] differs in 4 of 4 values" in found.notes[0]


def test_functional_dropout_that_is_always_on() -> None:
    """S11."""
    model = Lambda(lambda self, x: F.dropout(x, 0.5)).eval()
    assert refusal(model, torch.rand(8, 8)).code == "M002"


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * 1.0


def test_python_counter() -> None:
    """S27, H04."""
    model = nn.Sequential(nn.Identity(), Counter()).eval()
    found = refusal(model, torch.rand(2))
    assert found.code == "M003"
    assert found.labels[0].where == "1.calls"
    assert model[1].calls == 0


def test_buffer_written_in_forward() -> None:
    """S27, H04."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        self.total.add_(x.sum())
        return x

    model = Lambda(forward).eval()
    model.register_buffer("total", torch.zeros(()))
    found = refusal(model, torch.rand(2))
    assert found.code == "M003"
    assert "`total`" in found.message
    assert model.total == 0


def test_buffer_replaced_in_forward() -> None:
    """H04."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        self.last = x.detach()
        return x

    model = Lambda(forward).eval()
    model.register_buffer("last", torch.zeros(2))
    assert refusal(model, torch.rand(2)).code == "M003"


def test_a_cache_filled_by_the_first_call_is_reported() -> None:
    """H04."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        if self.cached is None:
            self.cached = torch.arange(3.0)
        return x + self.cached

    captured = capture(Lambda(forward, cached=None).eval(), (torch.rand(2, 3),))
    assert codes(captured) == ["M003"]
    assert captured.notes[0].severity == "warning"


def test_a_model_that_fails_by_itself() -> None:
    found = refusal(nn.Sequential(nn.Linear(3, 3)).eval(), torch.rand(2, 4))
    assert found.code == "M004"
    assert "the model itself fails" in found.message


def test_inputs_that_do_not_fit_the_signature() -> None:
    found = refusal(Counter().eval(), torch.rand(2), torch.rand(2))
    assert found.code == "M004"
    assert "too many positional arguments" in found.message


def test_inputs_that_hide_their_tensors() -> None:
    found = refusal(Counter().eval(), {"x": UserDict(ids=torch.rand(2))})
    assert found.code == "M004"
    assert "`UserDict` object" in found.message
    assert found.labels[0].where == "inputs[0]['x']"


@pytest.mark.parametrize("name", ["class", 'a"b', "a\nb", "a\\"])
def test_names_that_generated_code_cannot_hold(name: str) -> None:
    """I35."""
    model = nn.ModuleDict({name: nn.Linear(2, 2)}).eval()
    found = refusal(nn.Sequential(model), torch.rand(2, 2))
    assert found.code == "M001"
    found = refusal(nn.Sequential(model).eval(), torch.rand(2, 2))
    assert found.code == "M004"
    assert repr(name) in found.message


class Result:
    def __init__(self, value: torch.Tensor) -> None:
        self.value = value


def test_an_output_that_no_graph_can_build() -> None:
    model = Lambda(lambda self, x: Result(x)).eval()
    found = refusal(model, torch.rand(2))
    assert found.code == "M004"
    assert "returns a `Result` object" in found.message
    assert "dataclasses" in found.helps[0]


def test_branch_on_data() -> None:
    """H14."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x * 2
        return x - 1

    x = torch.rand(2, 3)
    found = refusal(Lambda(forward).eval(), x, second=(-x,))
    assert found.code == "M006"
    assert found.labels[0].where.startswith("test_capture_hard.py:")
    assert "branch on data" in found.notes[0]


def test_a_branch_on_data_that_no_second_example_contradicts_is_reported() -> None:
    """H14."""

    def forward(self: Any, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return x if mask.all() else x.masked_fill(~mask, 0.0)

    captured = capture(Lambda(forward).eval(), (torch.rand(2, 3), torch.ones(2, 3).bool()))
    assert codes(captured) == ["M006", "M006"]
    assert "not for zeros" in captured.notes[1].message
    with pytest.raises(AssertionError, match="holds other values than in the example"):
        captured.module(torch.rand(2, 3), torch.tensor([[True, True, False]] * 2))
    assert "bool(all(getitem(_inputs, 1))) is True" in captured.notes[0].notes[0]
    assert captured.notes[0].labels[0].where.startswith("test_capture_hard.py:")


def test_number_read_out_of_a_tensor_follows_the_input() -> None:
    model = Lambda(lambda self, x: x * x.max().item()).eval()
    captured = capture(model, (torch.rand(2, 3),))
    assert same(captured, model, torch.rand(4, 3))


def test_silent_specialisation_is_refused() -> None:
    # An index reads a size without telling anyone, so only the second example can find it.
    """H14."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return x * [0.0, 1.0, 4.0, 9.0, 16.0][x.shape[0]]

    found = refusal(Lambda(forward).eval(), torch.rand(2, 3))
    assert found.code == "M005"
    assert "batch 4" in found.message


def test_a_size_forced_by_int_is_named() -> None:
    """H14."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(int(x.shape[0] * 1.0), -1)

    found = refusal(Lambda(forward).eval(), torch.rand(2, 3, 4))
    assert found.code == "M006"
    assert "read by int()" in found.notes[0]


def test_a_result_that_escapes_the_record_is_refused() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.Tensor([[value * 2 for value in row] for row in x.tolist()])

    assert refusal(Lambda(forward).eval(), torch.rand(2, 3)).code in ("M005", "M006")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.rand(2, 2, device="meta"), "meta"),
        (torch.eye(2).to_sparse(), "sparse"),
        (torch.rand(2, 2, dtype=torch.complex64), "complex"),
    ],
)
def test_unfit_parameters(value: torch.Tensor, reason: str) -> None:
    """H10, I39, I40, I41."""
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].weight = nn.Parameter(value)
    found = refusal(model.eval(), torch.rand(2, 2))
    assert found.code == "M008"
    assert found.labels[0].where == "0.weight"
    assert reason in found.message


def test_lazy_parameters() -> None:
    """H17."""
    assert refusal(nn.Sequential(nn.LazyLinear(3)).eval(), torch.rand(2, 2)).code == "M008"


def test_a_model_that_cannot_be_copied() -> None:
    model = nn.Linear(2, 2).eval()
    model.lock = threading.Lock()
    assert "cannot be copied" in refusal(model, torch.rand(2, 2)).message


def test_a_fixed_batch_size_is_reported() -> None:
    model = Lambda(lambda self, x: x.view(2, 12) + 1).eval()
    captured = capture(model, (torch.rand(2, 3, 4),))
    assert codes(captured) == ["M009"]
    assert captured.proved == ("the example",)


def test_inputs_without_a_tensor() -> None:
    model = Lambda(lambda self, n: self.linear.weight * n, linear=nn.Linear(2, 2)).eval()
    captured = capture(model, (3,))
    assert codes(captured) == ["M009"]
    with torch.no_grad():
        assert torch.equal(captured.module(5), model(5))


def test_a_fixed_image_size_is_reported() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return x * float(x.shape[-1])

    captured = capture(Lambda(forward).eval(), (torch.rand(2, 3, 8, 8),))
    assert codes(captured) == ["M006"]
    assert "for the example's size only" in captured.notes[0].message
    assert captured.proved[:2] == ("the example", "batch 4")
    (about,) = [guard for guard in captured.guards if guard.axis is not None]
    assert (about.input, about.axis, about.value) == ("inputs[0]", 3, 8)


def test_a_contradicted_branch_without_consequence_is_reported() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.shape[0] < 3 else 1 + x

    captured = capture(Lambda(forward).eval(), (torch.rand(2, 3),))
    assert codes(captured) == ["M006"]
    assert "yet the outputs are equal" in captured.notes[0].message


# ----------------------------------------------------------------------------------------
