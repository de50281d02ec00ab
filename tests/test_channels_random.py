"""Random cuts of models with random wiring are exact, and planted mistakes are found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import fx

from lissom.rewrite.channels import analyse, contraction, cut, fit_sizes, flow, movement
from lissom.rewrite.channels.cut_builder import Work
from lissom.rewrite.channels.labels import Labels, Vectors, chained, joined
from lissom.rewrite.channels.selection import Selection
from lissom.rewrite.channels.units import Units
from lissom.rewrite.proving.choices.source import Replayed, Rolled
from lissom.rewrite.proving.dims.models import drawn
from lissom.rewrite.proving.dims.steps import STEPS

from .channel_graphs import Tried, tape_of, tried, try_graph

SEEDS = 290

pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def all_tried() -> tuple[Tried, ...]:
    return tuple(try_graph(seed) for seed in range(SEEDS))


def counts() -> Counter[str]:
    return sum((found.counts for found in all_tried()), Counter[str]())


def test_random_cuts_are_exact() -> None:
    wrong = {seed: found.wrong for seed, found in enumerate(all_tried()) if found.wrong}
    assert not wrong


def test_most_models_have_something_to_cut_and_most_cuts_show() -> None:
    found = counts()
    assert sum(bool(each.counts["cuts"]) for each in all_tried()) > 0.7 * SEEDS
    assert found["cuts"] > 2 * SEEDS
    assert found["moved"] > 0.9 * found["cuts"]


def test_few_cuts_are_refused_and_for_known_reasons() -> None:
    found = counts()
    refused = [text for each in all_tried() for text in each.refused]
    assert len(refused) < 0.02 * found["cuts"]
    assert {text[:4] for text in refused} <= {"R010", "R011"}


def test_a_cut_reaches_every_kind_of_step() -> None:
    reached = set().union(*(found.steps for found in all_tried()))
    assert STEPS.keys() - reached == set()


def test_a_seed_and_its_tape_are_one_model() -> None:
    for seed in range(5):
        first, second = drawn(Rolled(seed)), drawn(Replayed(tape_of(seed)))
        assert first.module.code == second.module.code
        state = second.module.state_dict()
        assert all(torch.equal(v, state[k]) for k, v in first.module.state_dict().items())
        assert tried(Replayed(tape_of(seed))) == try_graph(seed)


# -- planted mistakes ------------------------------------------------------------------------------


def apart(atoms: Units, present: Any, why: Any) -> Vectors:
    return next((vectors for vectors in present if vectors), ())


def swapped(present: Any, extents: Any) -> Vectors:
    return tuple(v.flip(0) for v in chained(present, extents))


def nothing(*_: Any) -> None:
    pass


def no_sizes(*_: Any) -> dict[str, Any]:
    return {}


def shifted(kept: Selection, tracks: Labels) -> Any:
    found = AXES(kept, tracks)
    return {axis: left.flip(0) if axis == 2 else left for axis, left in found.items()}


def last_only(of: Any, path: str, axes: Any) -> None:
    of.params[of.key(path)] = joined(axes)


def unordered(work: Work, node: fx.Node, region: Any) -> None:
    """A selection of what is left, in the order that it had before."""
    SELECT(work, node, replace(region, order=region.order.sort().values))


AXES, SELECT = Selection.axes, fit_sizes._select

PLANTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "elementwise ops couple nothing": (analyse, "together", apart),
    "cat swaps the features of its parts": (movement, "chained", swapped),
    "cat and stack couple nothing": (movement, "together", apart),
    "groups stay what they were": (cut, "_sized", no_sizes),
    "movements keep their old sizes": (fit_sizes._Job, "fits", lambda *_: True),
    "mixing ops are no barriers": (contraction, "_mixed", nothing),
    "nothing must stay": (Units, "block", nothing),
    "the scale of fused attention is made anew": (cut, "_scaled", nothing),
    "numbers follow the sizes": (cut, "old_numbers", nothing),
    "layers with shared parameters part": (cut, "_pass_on", nothing),
    "the recorded shapes are the old ones": (Work, "describe", nothing),
    "positions of one axis change their order": (Selection, "axes", shifted),
    "one layer is cut for its first call only": (flow.Flow, "give", last_only),
    "shuffles lose their order": (fit_sizes, "_select", unordered),
    "glu gates nothing": (movement, "couple", nothing),
    "what is returned may go": (flow.Flow, "block_inputs", nothing),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_mistake_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, attribute, wrong = PLANTS[name]
    monkeypatch.setattr(owner, attribute, wrong)
    assert any(try_graph(seed).wrong for seed in range(SEEDS))
