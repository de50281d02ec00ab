"""The loop: epochs of steps over shuffled samples, on one process or many.

All that is drawn in an epoch is drawn from the seed and the number of the epoch: the order of
samples, augmentation, dropout. So an epoch follows from the weights and the state of the optimiser
alone, and a run that was interrupted ends where it would have ended.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...grammar.diagnostics import Label, LissomError, fail
from ..graph.runs import one_line, own_inputs
from ..graph.writes import writes
from ..journal import Epoch
from ..torch_internals import tree_map
from .accelerators import own_accelerator
from .augment import augmented, changes_of, classes_of, disturbed
from .checkpoints import CheckpointFile, TrainingState, put_back, tensors_of
from .data import StepBatch
from .learner import Learner
from .optimizers import make_optimizer, rate_of
from .settings import Settings
from .streamed import Data
from .teachers import Teacher
from .terms import Losses, StepSeen

T = TypeVar("T")

Tell = Callable[[Epoch], None]

_HINTS = {
    "inplace operation": "let the model compute `y = y * 2` where it has `y.mul_(2)`",
    "does not require grad": "the loss follows from no weight that is trained: it may be computed "
    "without gradients, or integer layers behind these weights end them",
    "more than 1 value per channel": "batch norms learn nothing of one sample: another `batch`, so "
    "that the last one has more, or `norms = frozen`",
}
"""What to write instead, by words of torch's message."""


class Diverged(Exception):
    """A number that is none: in which epoch and batch (counted from 1), and where."""

    def __init__(self, epoch: int, batch: int, where: str) -> None:
        super().__init__(f"epoch {epoch}, batch {batch}: {where}")


class Student(nn.Module):
    """The learner, with the layers by which values inside are compared with wider ones: they are
    trained along and belong to no model. They run here, for several processes wait in forward for
    the gradients of all that is trained.
    """

    def __init__(self, learner: Learner, adapters: nn.ModuleDict, names: Sequence[str]) -> None:
        super().__init__()
        self.learner, self.adapters, self.names = learner, adapters, tuple(names)

    def forward(self, *args: Any) -> tuple[Any, dict[str, Tensor]]:
        """Outputs, and the values inside by the names of their places."""
        found = self.learner(*args)
        outputs, values = found if self.names else (found, ())
        named = dict(zip(self.names, values, strict=True))
        for name, layer in self.adapters.items():
            named[name] = layer(named[name])
        return outputs, named


@dataclass
class Training:
    """One training, `stage` in the journal. judge: metrics of a model on the validation data, by
    name; score: of these, what is better the higher it is, None without such data. ends: whether
    an epoch is good enough.
    """

    stage: str
    settings: Settings
    student: Student
    data: Data
    losses: Losses
    teacher: Teacher | None
    judge: Callable[[nn.Module], dict[str, float]]
    score: Callable[[Mapping[str, float]], float | None]
    ends: Callable[[dict[str, float]], bool]
    tell: Tell
    progress: Callable[[str], None]
    file: CheckpointFile | None
    clock: Callable[[], float] = time.perf_counter
    history: list[Epoch] = field(default_factory=list)
    diverged: str = ""

    def run(self) -> int:
        """Trains, and leaves the learner with the weights of the best epoch, settled. Returns the
        number of that epoch, 0 for the weights as they came.
        """
        self.moving = [w for w in self.student.parameters() if w.requires_grad]
        if not self.moving:
            hint = "`only` may leave all out, a model may have frozen all, and codes do not train"
            raise fail("F004", "no weight is to be trained", Label(self.settings.span), help=hint)
        self.classes = classes_of(self.data.targets, self.settings)
        graph = self.student.learner.graph
        self.own = own_inputs if any(writes(n, graph) for n in graph.graph.nodes) else _itself
        self.rate, self.changes = rate_of(self.settings.schedule), changes_of(self.settings.augment)
        with own_accelerator() as self.accelerator, torch.random.fork_rng(devices=[]):
            self.model = self.accelerator.prepare(self.student)
            self.optimizer = make_optimizer(self.settings.optimizer, self.moving)
            self.rates = [group["lr"] for group in self.optimizer.param_groups]
            with torch.enable_grad():
                self._epochs()
            self.student.cpu()
        put_back(self.student, self.standing.best)
        self.student.learner.settle()
        return self.best

    # -- epochs ------------------------------------------------------------------------------------

    def _epochs(self) -> None:
        found = self._of_first(None if self.file is None else self.file.read())
        self.standing = self._begin() if found is None else self._resume(found)
        while not self.standing.done:
            try:
                self._epoch(len(self.history))
            except Diverged as error:
                self.diverged = str(error)
                return

    def _begin(self) -> TrainingState:
        weights = tensors_of(self.student)
        self._written(Epoch(self.stage, 0, None, self.judge(self.student.learner), 0.0, 0.0))
        done = self.settings.epochs == 0 or self._enough()
        history = [epoch.as_json() for epoch in self.history]
        return self._kept(TrainingState(weights, weights, {}, history, done))

    def _kept(self, state: TrainingState) -> TrainingState:
        """In the file, from the start: a place that cannot be written costs no epoch."""
        if self.file is not None and self.accelerator.is_main_process:
            self.file.write(state)
        return state

    def _resume(self, found: TrainingState) -> TrainingState:
        """Goes on where the file stands."""
        put_back(self.student, found.weights)
        if found.optimizer:
            self.optimizer.load_state_dict(found.optimizer)
        for entry in found.history:
            self._written(Epoch(**entry))
        return found

    def _epoch(self, number: int) -> None:
        begun = self.clock()
        loss = self._steps(number)
        metrics = self.judge(self.student.learner)
        lasted = self.clock() - begun
        rate = self.optimizer.param_groups[0]["lr"]
        before = self.best
        self._written(Epoch(self.stage, number, loss, metrics, rate, lasted))
        weights = tensors_of(self.student)
        best = weights if self.best != before else self.standing.best
        done = number >= self.settings.epochs or self._enough() or self._no_better()
        state = self.optimizer.state_dict()
        history = [epoch.as_json() for epoch in self.history]
        self.standing = self._kept(TrainingState(weights, best, state, history, done))

    def _written(self, epoch: Epoch) -> None:
        self.history.append(epoch)
        self.tell(epoch)

    @property
    def best(self) -> int:
        """The epoch with the best score, the first of equal ones; the last one where that is asked
        for, or there are no scores.
        """
        if self.settings.keeps_last:
            return len(self.history) - 1
        scores = [self.score(epoch.metrics) for epoch in self.history]
        known = [(s, -at) for at, s in enumerate(scores) if s is not None and not math.isnan(s)]
        return -max(known)[1] if known else len(self.history) - 1

    def _enough(self) -> bool:
        last = self.history[-1]
        values = {**last.metrics, "epoch": last.number, "loss": last.loss or math.inf}
        spent = sum(epoch.seconds for epoch in self.history) / 60
        limit = self.settings.minutes
        # Clocks of processes differ, and all have to end together.
        return self._of_first(self.ends(values) or (limit is not None and spent >= limit))

    def _no_better(self) -> bool:
        patience = self.settings.patience
        return patience is not None and len(self.history) - 1 - self.best >= patience

    # -- steps -------------------------------------------------------------------------------------

    def _steps(self, number: int) -> float:
        """One pass over the data; the mean loss of its samples."""
        torch.manual_seed(_seed(self.settings.seed, number, self.accelerator.process_index))
        generator = torch.Generator().manual_seed(_seed(self.settings.seed, number))
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        steps, losses = self.data.steps(self.settings.batch), []
        self.model.train()
        for step, batch in enumerate(self.data.epoch(self.settings.batch, generator, rank, world)):
            # Where nobody knows how long an epoch is the rate stays until it ends.
            self._set_rate(number - 1 + (min(step / steps, 1) if steps else 0))
            losses.append(self._step(batch, number, step + 1, generator))
            if step % 16 == 15:
                of = f" of {steps}" if steps else ""
                self.progress(f"{self._place(number)}, step {step + 1}{of}")
        wrong = next(self._not_finite(lambda w: w.detach()), "")
        if wrong:
            raise Diverged(number, len(losses), f"`{wrong}` holds numbers that are none")
        return sum(losses) / len(losses)

    def _place(self, number: int) -> str:
        """Where a training is, and what the epoch before came to."""
        found = ", ".join(f"{k} {v:.4g}" for k, v in self.history[-1].metrics.items())
        return f"epoch {number} of {self.settings.epochs}{f' ({found})' if found else ''}"

    def _set_rate(self, epochs: float) -> None:
        share = self.rate(epochs / self.settings.epochs)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * share

    def _step(self, batch: StepBatch, epoch: int, number: int, generator: torch.Generator) -> float:
        args = augmented(batch.args, self.changes, generator)
        target = disturbed(batch.target, self.settings.disturb, generator, self.classes)
        args, target = self._placed((args, target))
        taught = None if self.teacher is None else self._placed(self.teacher(args, batch.rows))
        # Processes average their gradients: each counts by its share of the batch.
        weight = batch.share * self.accelerator.num_processes
        found: list[float] = []

        def closure() -> float:
            self.optimizer.zero_grad()
            loss = self._loss(self.own(args), target, taught)
            value = self._finite(self._of_all(loss.detach() * batch.share), epoch, number)
            (loss if weight == 1 else loss * weight).backward()
            self._check_gradients(epoch, number)
            found.append(value)
            return value

        try:
            self.optimizer.step(closure)
        except (LissomError, Diverged):
            raise
        except Exception as error:
            raise self._stepless(error, bool(found)) from error
        return found[0]

    def _stepless(self, error: Exception, computed: bool) -> Exception:
        """The optimiser does not take the gradients, or there are none to take."""
        call, said = self.settings.optimizer, one_line(error)
        note = f"{type(error).__name__}: {said}"
        if computed:
            return fail("F004", f"`{call.name}` cannot step", Label(call.span), note=note)
        hint = next((hint for words, hint in _HINTS.items() if words in said), "")
        if "inplace" in said:
            graph = self.student.learner.graph
            places = ", ".join(f"`{n.name}`" for n in graph.graph.nodes if writes(n, graph))
            note = f"it computes in place at {places}; {note}"
        message = "the model cannot be trained on a batch of the data"
        return fail("F104", message, Label(self.settings.span), note=note, help=hint)

    # -- processes ---------------------------------------------------------------------------------

    def _of_all(self, part: Tensor) -> Tensor:
        """The sum over all processes: all go on, or end, at the same number."""
        alone = self.accelerator.num_processes == 1
        return part if alone else self.accelerator.reduce(part)  # type: ignore[return-value]

    def _of_first(self, value: T) -> T:
        """What the first process found."""
        if self.accelerator.num_processes == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def _placed(self, value: Any) -> Any:
        """Nested tensors where the model is."""
        place = self.accelerator.device
        if place.type == "cpu":
            return value
        return tree_map(lambda leaf: leaf.to(place) if isinstance(leaf, Tensor) else leaf, value)

    def _loss(self, args: tuple[Any, ...], target: Any, taught: Any) -> Tensor:
        outputs, values = self.model(*args)
        seen = StepSeen(outputs, target, inside=values)
        if taught is not None:
            seen.taught, seen.taught_inside = taught
        return self.losses(seen)

    # -- numbers that are none ---------------------------------------------------------------------

    def _finite(self, loss: Tensor, epoch: int, batch: int) -> float:
        value = float(loss)
        if not math.isfinite(value):
            wrong = next(self._not_finite(lambda w: w.detach()), "")
            where = f"`{wrong}` holds numbers that are none" if wrong else "the loss is no number"
            raise Diverged(epoch, batch, f"{where} ({value:g})")
        return value

    def _check_gradients(self, epoch: int, batch: int) -> None:
        """One sum for all: where it is finite, they are."""
        held = [w.grad for w in self.moving if w.grad is not None]
        if any(grad.is_sparse for grad in held):  # of an embedding; what is left out is 0
            held = list(self._dense())
        if not math.isfinite(sum(grad.sum() for grad in held)):
            wrong = next(self._not_finite(lambda w: w.grad), "")
            if wrong:
                raise Diverged(epoch, batch, f"the gradient of `{wrong}` is no number")
        if self.settings.clip is not None:
            norm = torch.nn.utils.get_total_norm(held)
            if not torch.isfinite(norm):
                raise Diverged(epoch, batch, "the norm of all gradients is no number")
            torch.nn.utils.clip_grads_with_norm_(self.moving, self.settings.clip, norm)

    def _dense(self) -> Iterator[Tensor]:
        for weight in self.moving:
            if weight.grad is not None:
                weight.grad = weight.grad.to_dense() if weight.grad.is_sparse else weight.grad
                yield weight.grad

    def _not_finite(self, of: Callable[[Tensor], Tensor | None]) -> Iterator[str]:
        for path, weight in self.student.named_parameters():
            found = of(weight)
            if found is not None and not torch.isfinite(found).all():
                yield path.removeprefix("learner.graph.")


def _itself(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return args


def _seed(*parts: int) -> int:
    """One number of several, far from those of the neighbours."""
    mixed = 0
    for part in parts:
        mixed = (mixed * 6364136223846793005 + part + 1442695040888963407) % (1 << 63)
    return mixed
