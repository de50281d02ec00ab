"""Data that is never held in memory: what is read, when, and what follows from it."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset

import lissom
from lissom.grammar.diagnostics import Label
from lissom.rewrite.graph.digest import model_digest
from lissom.rewrite.measure.source import Stream
from lissom.rewrite.train.recorded import write_recorded
from lissom.rewrite.train.streamed import StreamedData

from .learning import epochs, notes, trained
from .test_training_bad_input import reader, said, small, texts

DATA = 'data train = stream("train")\ndata valid = sample("valid", all)\n'
TUNE = "recover tune { epochs = 3; optimizer = SGD(lr = 0.1) }"

torch.manual_seed(0)
X = torch.randn(46, 6)
Y = (X[:, 0] > 0).long()


def batches(split: str) -> Iterator[tuple[Tensor, Tensor]]:
    for at in range(0, len(X), 8):
        yield X[at : at + 8].clone(), Y[at : at + 8].clone()


class Noisy(Dataset[Any]):
    """Samples with noise from every generator that augmentations draw from."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, at: int) -> tuple[Tensor, Tensor]:
        return X[at] + 0.1 * torch.randn(6) + random.random() + np.random.rand(), Y[at]


def noisy(split: str) -> Any:
    return DataLoader(Noisy(), batch_size=8, shuffle=True) if split == "train" else [(X, Y)]


def tuned(data: Any, body: str = TUNE, model: nn.Module | None = None, **given: Any) -> Any:
    inputs = given.pop("inputs", (X[:2],))
    text = f"pipeline p {{ {given.pop('statements', DATA)} {body} }}"
    return lissom.compile(model or small(), text, inputs=inputs, data=data, **given)


# -- what is read ----------------------------------------------------------------------------------


def test_no_batch_is_asked_for_behind_those_of_a_sample() -> None:
    asked = []

    def counted(split: str) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches(split):
            asked.append(split)
            yield batch

    text = 'pipeline p { data calib = sample("train", 16); budget drift(outputs) <= 1% on calib }'
    lissom.compile(small(), text, inputs=(X[:2],), data=counted)
    assert asked == ["train"] * 2


def test_batches_are_read_anew_each_epoch_and_let_go() -> None:
    held: list[weakref.ref[Tensor]] = []
    most = []

    def watched(split: str) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in batches(split):
            if split == "train":
                gc.collect()
                most.append(sum(ref() is not None for ref in held))
                held.append(weakref.ref(x))
            yield x, y

    tuned(watched)
    assert len(most) == 3 * 6 + 1  # and the first batch, for its SHA-256
    assert max(most) <= 2


def test_a_training_is_what_a_loop_by_hand_gives() -> None:
    result = tuned(batches, "recover tune { epochs = 2; keep = last; optimizer = SGD(lr = 0.1) }")
    model = small().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        for x, y in batches("train"):
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert all(
        torch.equal(a, b)
        for a, b in zip(result.model.parameters(), model.parameters(), strict=True)
    )


def test_a_loader_is_made_once_and_a_generator_each_time() -> None:
    """What a function draws as it makes a loader is which samples are held out."""
    made = []

    def loader(split: str) -> Any:
        made.append(split)
        return noisy(split)

    tuned(loader)
    assert made.count("train") == 1
    with_iterator = tuned(batches)
    assert len(epochs(with_iterator)) == 4


# -- what is drawn ---------------------------------------------------------------------------------


def test_equal_runs_give_equal_bits_and_leave_the_generators_of_the_caller() -> None:
    found, after, model = [], [], small()
    for _ in range(2):
        torch.manual_seed(7), random.seed(7), np.random.seed(7)
        result = tuned(noisy, model=model)
        found.append((model_digest(result.model), [e.loss for e in epochs(result)]))
        after.append((torch.rand(2).tolist(), random.random(), np.random.rand()))
    torch.manual_seed(7), random.seed(7), np.random.seed(7)
    untouched = (torch.rand(2).tolist(), random.random(), np.random.rand())
    assert found[0] == found[1]
    assert after == [untouched, untouched]
    assert tuned(noisy, TUNE.replace("epochs", "seed = 1; epochs")).trainings[0].epochs == 3
    other = tuned(noisy, TUNE.replace("epochs", "seed = 1; epochs"))
    assert [e.loss for e in epochs(other)] != found[0][1]


def test_an_interrupted_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    asked: list[int] = []

    def dies(model: nn.Module, held: Any) -> float:
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return 0.5

    def calm(model: nn.Module, held: Any) -> float:
        return 0.5

    body = TUNE.replace("epochs = 3", "epochs = 4; keep = last")
    with pytest.raises(KeyboardInterrupt):
        tuned(noisy, body, metrics={"m": dies}, checkpoints=tmp_path)
    resumed = tuned(noisy, body, metrics={"m": calm}, checkpoints=tmp_path)
    whole = tuned(noisy, body, metrics={"m": calm})
    assert model_digest(resumed.model) == model_digest(whole.model)
    assert [e.loss for e in epochs(resumed)] == [e.loss for e in epochs(whole)]


# -- several processes -----------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_processes_together_see_each_batch_once(world: int) -> None:
    """They draw alike; one that has no sample of a batch weighs nothing."""
    parts = []
    for rank in range(world):
        data = StreamedData(
            Stream(noisy, "train", Label(None)), lambda batch: ((batch[0],), batch[1])
        )
        torch.manual_seed(rank)
        parts.append(list(data.epoch(0, torch.Generator().manual_seed(3), rank, world)))
        assert data.samples == len(X)
    for together in zip(*parts, strict=True):
        assert sum(part.share for part in together) == pytest.approx(1)
        rows = torch.cat([part.rows for part in together if part.share])
        assert len(rows.unique()) == len(rows)
        x = torch.cat([part.args[0] for part in together if part.share])
        y = torch.cat([part.target for part in together if part.share])
        assert len(x) == len(y) == len(rows)
        assert all(part.share == len(part.rows) / len(rows) or not part.share for part in together)
    seen = [batch.args[0] for batch in zip(*parts, strict=True) for batch in batch if batch.share]
    alone = StreamedData(Stream(noisy, "train", Label(None)), lambda batch: ((batch[0],), batch[1]))
    whole = [b.args[0] for b in alone.epoch(0, torch.Generator().manual_seed(3))]
    assert torch.equal(torch.cat(seen).sort(0).values, torch.cat(whole).sort(0).values)


# -- what is said ----------------------------------------------------------------------------------


def test_the_journal_says_what_was_read() -> None:
    (event,) = trained(tuned(batches))
    assert event.samples == len(X)
    assert event.data["train"].startswith("first batch ")
    assert len(event.data["valid"]) == 64


def test_a_batch_that_is_not_heard_is_told() -> None:
    asked = TUNE.replace("epochs", "batch = 4; epochs")
    assert notes(tuned(batches, asked), "F110")
    assert not notes(tuned(batches), "F110")
    held = DATA.replace('stream("train")', 'sample("train", all)')
    assert not notes(tuned(batches, asked, statements=held), "F110")
    words = texts()
    given = {"model": reader(), "inputs": (words[0][0][:2],), "statements": held}
    assert notes(tuned(words, asked, **given), "F110")


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(list(zip(X, Y, strict=True)))


def test_a_loader_that_knows_no_length_steps_its_rate_by_epochs() -> None:
    body = "recover tune { epochs = 4; schedule = linear(); optimizer = SGD(lr = 0.1) }"
    rates = [e.rate for e in epochs(tuned(lambda split: DataLoader(Endless(), batch_size=8), body))]
    assert rates[1:] == pytest.approx([0.1, 0.075, 0.05, 0.025])


# -- what cannot be --------------------------------------------------------------------------------


def test_an_iterator_that_ended_is_no_stream() -> None:
    given = iter(list(batches("train")))
    list(given)
    held = 'data train = stream("train")\n'
    found = said(lambda: tuned(given, statements=held))
    assert (found.code, found.helps[0].split(":")[0]) == (
        "D002",
        "an iterator yields its batches only once",
    )


def test_a_loader_that_fails_in_a_later_epoch_is_named() -> None:
    opened: list[str] = []

    def fails(split: str) -> Iterator[Any]:
        opened.append(split)
        yield from batches(split)
        if opened.count("train") == 3:
            raise OSError("the disk is gone")

    found = said(lambda: tuned(fails))
    assert found.code == "M023"
    assert "the disk is gone" in found.notes[0]


def test_a_split_that_is_not_there_is_named() -> None:
    def none(split: str) -> Any:
        if split == "train":
            raise KeyError(split)
        return [(X, Y)]

    assert said(lambda: tuned(none)).code == "D001"


def test_labels_are_not_drawn_anew_in_a_stream() -> None:
    assert (
        said(lambda: tuned(batches, TUNE.replace("epochs", "disturb = 10%; epochs"))).code == "F104"
    )


def test_a_file_of_outputs_needs_an_order(tmp_path: Path) -> None:
    path = write_recorded(tmp_path / "t.safetensors", torch.zeros(len(X), 2), {"data": ""})
    body = f'recover tune {{ teacher = recorded("{path}"); loss = kl() }}'
    assert said(lambda: tuned(batches, body)).code == "F105"


def test_a_teacher_that_looks_inside_follows_a_stream() -> None:
    body = """
      recover tune {
        teacher = original
        loss = kl(temperature = 2) + 0.1 * hint(at = "0", of = "0")
        epochs = 1
      }
    """
    assert tuned(noisy, body).trainings[0].epochs == 1


def test_empty_batches_of_a_stream_are_no_step() -> None:
    def gaps(split: str) -> Iterator[Any]:
        for x, y in batches(split):
            yield x[:0], y[:0]
            yield x, y

    first, second = tuned(gaps), tuned(batches)
    assert model_digest(first.model) == model_digest(second.model)
