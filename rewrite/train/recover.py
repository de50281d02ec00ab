"""One `recover`: from the working model to a trained one, with what rules promised still there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...grammar.diagnostics import Label, fail
from ...grammar.documents import json_text, sha256
from ..graph.digest import model_digest
from ..graph.exits import exits_of
from ..graph.places import node_at
from ..graph.snapshot import finish
from ..journal import Epoch, Note, Trained, Verdict
from ..measure.compare import Metrics
from ..measure.observing import forget_seen
from ..measure.samples import Samples
from ..rules.constraint import free
from ..rules.state import State
from .checkpoints import CheckpointFile
from .data import TrainingData
from .judging import VALID_LOSS, EpochJudge
from .learner import Learner, Paths, begin, end_broken, go_on_from, with_own_weights
from .loop import Student, Training
from .remarks import remarks
from .settings import Number, Settings
from .streamed import Data, StreamedData
from .structure import Beside, structure_kept, ties
from .taps import InnerPlace, inner_places, name_of_exit, name_of_score, tapped
from .teachers import Places, Teacher, TeacherReader, graphs_of, is_from_file, remembered
from .terms import TAUGHT, Losses, PenalisedWeights, adapter


@dataclass(frozen=True)
class TrainingHost:
    """What a training needs beside the working model. models: graphs that may teach, by name;
    folder: where files are that the program names; checkpoints: where it writes how far it came;
    ends: the condition of `until` on the numbers of an epoch.
    """

    metrics: Metrics
    models: Mapping[str, Callable[[], fx.GraphModule]]
    number: Number
    folder: Path
    checkpoints: Path | None = None
    ends: Callable[[Settings, Mapping[str, float]], bool] = lambda settings, values: False


class Recovery:
    """Trains the working model of a state once."""

    def __init__(self, state: State, settings: Settings, around: TrainingHost, stage: str) -> None:
        self.state, self.settings, self.around, self.stage = state, settings, around, stage
        place = Label(settings.span)
        samples = state.samples
        self.data = _data_of(samples, settings.data, place)
        valid = settings.valid
        self.valid = [] if valid is None else list(samples.batches(valid, place))
        self.judge = EpochJudge(samples, settings, around.metrics, self.valid)

    def run(self, progress: Callable[[str], None]) -> Trained:
        """Trains; the state goes on with the trained model. Raises F1xx, D0xx, U0xx; nothing of the
        state has changed then.
        """
        begun = time.perf_counter()
        self._tell_ended()
        graph = self.graph = with_own_weights(self.state.module)
        kept = begin(self.state, graph) if self.settings.constrained else {}
        training = self._training(graph, kept, progress)
        taught = () if training.teacher is None else graphs_of(training.teacher)
        beside = Beside.of((self.state.module, self.around.metrics.original, *taught))
        best = training.run()
        structure = structure_kept(graph, kept, ties(self.state.module))
        verdicts = (*structure, *beside.changed())
        for code, text in remarks(training, graph, self.judge.watch or VALID_LOSS, best):
            self.state.journal.add(Note(self.stage, code, text))
        seconds = time.perf_counter() - begun
        event = self._event(training, best, verdicts, seconds)
        self._go_on(graph, training.student.learner)
        self.state.journal.add(event)
        return event

    # -- the parts ---------------------------------------------------------------------------------

    def _training(
        self, graph: fx.GraphModule, kept: Mapping[Paths, Any], progress: Callable[[str], None]
    ) -> Training:
        settings = self.settings
        places = tuple(inner_places(settings.loss))
        taps = [(place.at, place.term.span) for place in places]
        count = len(exits_of(graph.graph))
        exits = [name_of(at) for name_of in (name_of_exit, name_of_score) for at in range(count)]
        inner = tapped(graph, taps, "the student") if places or exits else graph
        learner = Learner(inner, kept)
        self._choose(learner)
        losses = Losses(settings.terms(bool(exits)), self.state.samples.loss, self._weights(inner))
        teacher = self._teacher([(place.of, place.term.span) for place in places])
        names = (*(place.name for place in places), *exits)
        student = Student(learner, self._adapters(learner, teacher, places), names)
        return Training(
            self.stage, settings, student, self.data, losses, teacher,
            partial(self.judge, names=names), self.judge.score, self._ends, self._tell,
            progress, self._file(teacher),
        )  # fmt: skip

    def _choose(self, learner: Learner) -> None:
        """Which weights move, and whether batch norms learn from batches."""
        only = self.settings.only
        if only is not None:
            at = {id(w) for n in self._nodes_at(only) for w in self._read(n)}
            for weight in learner.parameters():
                weight.requires_grad_(weight.requires_grad and id(weight) in at)
        if self.settings.frozen_norms:
            norms = nn.modules.batchnorm._NormBase
            learner.frozen = tuple(m for m in learner.modules() if isinstance(m, norms))

    def _nodes_at(self, glob: str) -> list[fx.Node]:
        found = [node for node in self.state.module.graph.nodes if node_at(node, glob)]
        if not found:
            raise fail("U008", f"the model has nothing at `{glob}`", Label(None, where=glob))
        return found

    def _read(self, node: fx.Node) -> Iterator[Tensor]:
        call = self.state.view.call(node)
        paths = () if call is None else (path for path in call.params.values() if path)
        yield from (self.graph.get_parameter(path) for path in paths)

    def _weights(self, graph: fx.GraphModule) -> PenalisedWeights:
        """Scales of norms, and all that has two axes or more, as the optimiser moves them."""
        calls = [self.state.view.call(node) for node in self.state.module.graph.nodes]
        norms = [c for c in calls if c is not None and "normalises" in c.op.traits]
        paths = dict.fromkeys(path for c in norms if (path := c.params.get("weight")))
        held = [weight for weight in graph.parameters() if weight.dim() > 1]
        return PenalisedWeights(lambda: [graph.get_parameter(path) for path in paths], lambda: held)

    # -- teachers ----------------------------------------------------------------------------------

    def _teacher(self, places: Places) -> Teacher | None:
        settings, taught = self.settings, [c for c in self.settings.loss if c.name in TAUGHT]
        if settings.teacher is None:
            if taught:
                hint = "add `teacher = original`, or another one"
                label = Label(taught[0].span, "follows a teacher")
                raise fail("F105", f"`{settings.name}` has no teacher", label, help=hint)
            return None
        if not taught:
            hint = "add `loss = kl(temperature = 4)`, or leave `teacher` out"
            label = Label(settings.teacher.span)
            raise fail("F105", "no term of the loss follows the teacher", label, help=hint)
        around = self.around
        reader = TeacherReader(around.models, around.number, self.data, places, around.folder)
        teacher = reader.read(settings.teacher)
        if settings.augment and is_from_file(settings.teacher):
            text = f"the outputs that `{settings.name}` follows are of samples without `augment`"
            self.state.journal.add(Note(self.stage, "F107", text))
        same = not settings.augment and not places
        return remembered(teacher, self.data) if same else teacher

    def _adapters(
        self, learner: Learner, teacher: Teacher | None, places: Sequence[InnerPlace]
    ) -> nn.ModuleDict:
        """Layers that make values of the student as wide as those of the teacher."""
        adapters = nn.ModuleDict()
        if teacher is None or not places:
            return adapters
        args = self.data.example()
        with torch.no_grad():
            _, values = learner.eval()(*args)
            _, taught = teacher(args, None)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            for place, own in zip(places, values, strict=False):  # behind these are exits
                layer = adapter(own, taught[place.of]) if place.term.name == "hint" else None
                if layer is not None:
                    adapters[place.name] = layer
        return adapters

    def _ends(self, values: dict[str, float]) -> bool:
        return self.settings.until is not None and self.around.ends(self.settings, values)

    def _tell(self, epoch: Epoch) -> None:
        self.state.journal.add(epoch)

    # -- what is left of it ------------------------------------------------------------------------

    def _file(self, teacher: Teacher | None) -> CheckpointFile | None:
        """The file of this training: of this model, this teacher, these settings, this data, these
        versions.
        """
        folder = self.around.checkpoints
        if folder is None:
            return None
        finish(self.state.module)
        parts = {
            "model": model_digest(self.state.module),
            "teacher": _digest_of(teacher),
            "settings": self.settings.as_json(),
            "data": self._digests,
            "versions": _versions(),
            "threads": torch.get_num_threads(),
        }
        key = sha256(json_text(parts, ordered=True))
        return CheckpointFile(folder / f"{self.stage}-{key[:12]}.safetensors", key)

    @property
    def _digests(self) -> dict[str, str]:
        if not hasattr(self, "_known"):
            self._known = {self.settings.data: self.data.digest()}
            if self.valid and self.settings.valid is not None:
                pairs = [self.state.samples.taken.pair(batch) for batch in self.valid]
                found = TrainingData(pairs, Label(self.settings.span)).digest()
                self._known[self.settings.valid] = found
        return self._known

    def _event(
        self, training: Training, best: int, verdicts: tuple[Verdict, ...], seconds: float
    ) -> Trained:
        moved = sum(w.numel() for w in training.student.learner.parameters() if w.requires_grad)
        return Trained(
            self.stage,
            self.settings.as_json(),
            self._digests,
            _digest_of(training.teacher),
            self.data.samples,
            moved,
            _versions(),
            best,
            len(training.history) - 1,
            training.diverged,
            verdicts,
            seconds,
        )

    def _tell_ended(self) -> None:
        """A constraint that its weight fulfils no more is told, and ends."""
        for path, constraint in end_broken(self.state):
            text = f"`{path}` is no more what `{constraint.rule}` made it: it is trained freely"
            self.state.journal.add(Note(self.stage, "F102", text))

    def _go_on(self, graph: fx.GraphModule, learner: Learner) -> None:
        """The trained graph takes the place of the working one; rules may range over it again."""
        graph.eval()
        finish(graph)
        for node in graph.graph.nodes:
            node.meta.pop("rules", None)
            node.meta.pop("moved", None)
        if not self.settings.constrained:
            free(graph.graph)
        forget_seen(graph.graph)
        self.state.reset(graph)
        go_on_from(self.state, learner.moved)
        self.state.samples.forget()


def _data_of(samples: Samples, name: str, place: Label) -> Data:
    """The samples to train on: in memory, or read anew each epoch."""
    taken = samples.taken.pair
    if name in samples.streams:
        return StreamedData(samples.streams[name], taken)
    return TrainingData(list(map(taken, samples.batches(name, place))), place)


def _digest_of(teacher: Teacher | None) -> str:
    return "" if teacher is None else teacher.digest()


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__, "accelerate": version("accelerate")}
