"""How good a model is after an epoch: metrics on the validation data, of each exit too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...grammar.diagnostics import Label, LissomError, did_you_mean, fail
from ..graph.runs import innermost, one_line, own_inputs
from ..measure.batches import Pairs, batch_size
from ..measure.compare import Metrics
from ..measure.samples import Samples
from ..torch_internals import tree_map
from .learner import Learner
from .settings import Settings
from .taps import is_exit

VALID_LOSS = "valid_loss"


@dataclass
class EpochJudge:
    """Measures a learner on the validation data. watch: the metric by which an epoch is best, None
    for the loss.
    """

    samples: Samples
    settings: Settings
    metrics: Metrics
    valid: Sequence[Any]
    watch: str | None = field(init=False)

    def __post_init__(self) -> None:
        self.watch = self._watched()

    def _watched(self) -> str | None:
        known, asked = self.metrics.metrics, self.settings.watch
        if asked is not None and asked not in known:
            hint = next(iter(did_you_mean(asked, known)), "")
            message, note = f"no metric is called `{asked}`", f"known: {', '.join(known) or 'none'}"
            raise fail("D004", message, Label(self.settings.span), note=note, help=hint)
        return asked or next(iter(known), None)

    def __call__(self, learner: Learner, names: Sequence[str]) -> dict[str, float]:
        """Metrics of the model as it would be left, and of its exits. names: of what the learner
        gives beside its outputs.
        """
        if not self.valid:
            return {}
        found = self._measured(Deployed(learner, bool(names)).eval(), "")
        for at, name in enumerate(names):
            if is_exit(name):
                found |= self._measured(Deployed(learner, True, at).eval(), f" of {name}")
        return found

    def _measured(self, model: nn.Module, of: str) -> dict[str, float]:
        place, metrics = Label(self.settings.span), self.metrics
        if not metrics.metrics:
            return {f"{name}{of}": value for name, value in self._valid_loss(model).items()}
        names = metrics.metrics
        return {f"{name}{of}": metrics.value(model, name, self.valid, place) for name in names}

    def _valid_loss(self, model: nn.Module) -> dict[str, float]:
        """Nothing where the samples have no labels to judge by."""
        pairs: Pairs = [self.samples.taken.pair(batch) for batch in self.valid]
        pairs = [(args, y) for args, y in pairs if batch_size(args)]
        if not pairs or any(y is None for _, y in pairs):
            return {}
        with torch.no_grad():
            losses = [self._loss_of(model, args, y) * batch_size(args) for args, y in pairs]
        return {VALID_LOSS: sum(losses) / sum(batch_size(args) for args, _ in pairs)}

    def _loss_of(self, model: nn.Module, args: tuple[Any, ...], target: Any) -> float:
        """Of the task, on one batch. Raises D006."""
        try:
            return float(self.samples.loss(model(*own_inputs(args)), target))
        except LissomError:
            raise
        except Exception as error:
            place = Label(self.settings.span, where=innermost(error))
            note = f"{type(error).__name__}: {one_line(error)}"
            raise fail("D006", "the loss cannot be computed", place, note=note) from error

    def score(self, metrics: Mapping[str, float]) -> float | None:
        """The higher the better: the mean over the outputs and all exits."""
        name = self.watch or VALID_LOSS
        found = [v for k, v in metrics.items() if k == name or k.startswith(f"{name} of ")]
        sign = 1 if self.watch else -1
        return sign * sum(found) / len(found) if found else None


class Deployed(nn.Module):
    """A learner as what comes out of it, on whatever device it is: outputs alone, or the value
    inside number `at`. taps: whether it gives values inside.
    """

    def __init__(self, learner: Learner, taps: bool, at: int | None = None) -> None:
        super().__init__()
        self.learner, self.taps, self.at = learner, taps, at

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        place = next((w.device for w in self.learner.parameters()), torch.device("cpu"))
        args, kwargs = tree_map(lambda x: _to(x, place), (args, kwargs))
        found = self.learner(*args, **kwargs)
        if self.taps:
            found = found[0] if self.at is None else found[1][self.at]
        return tree_map(lambda x: _to(x, torch.device("cpu")), found)


def _to(leaf: Any, place: torch.device) -> Any:
    return leaf.to(place) if isinstance(leaf, Tensor) else leaf
