"""The words of `recover`: settings, terms of a loss, schedules of the learning rate, augmentations.

One table of each: the checker, the engine and `lissom explain` read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

NUMBER, DATA, WORD, CALL, SUM, MODEL, GLOB = (
    "number",
    "data",
    "word",
    "call",
    "sum",
    "model",
    "text",
)
"""What a setting holds: a number or an expression of parameters; a name of `data`; one of some
words; `name(setting = 1)`; such calls with factors, added up; a model; a glob.
"""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a setting holds, and what it means. words: which ones there are."""

    holds: str
    doc: str
    words: tuple[str, ...] = ()


TERMS: Mapping[str, str] = {
    "task": "the loss of the model file, or cross-entropy of classes, or squared error of numbers",
    "cross_entropy": "of classes; `smoothing = 10%` shares that much among all classes",
    "kl": "divergence from the teacher's classes, at `temperature = 4`, times its square",
    "logits": "mean squared error against the teacher's outputs",
    "hint": 'squared error of a value inside against the teacher\'s: `hint(at = "layer2")`',
    "attention": 'of maps of activity inside against the teacher\'s: `attention(at = "layer2")`',
    "norm_scales": "sum of the magnitudes of scales of norms",
    "group_sparsity": "sum of the norms of what belongs to one output or input of a weight",
    "exits": "the loss of the task at each exit, times `weights = [1, 0.5]`",
    "sure": "of scores that are probabilities: whether their exit names the right class",
    "follow_last": "divergence of exits from the outputs, at `temperature = 3`, times its square",
}

SCHEDULES: Mapping[str, str] = {
    "constant": "the same rate all the time",
    "linear": "down to 0 in a line",
    "cosine": "down to 0 along half a cosine",
    "one_cycle": "up to the rate along half a cosine, then down to 0",
    "step": "times `factor = 10%` at each of `at = [50%, 75%]`",
}

AUGMENTS: Mapping[str, str] = {
    "shift": "images move by up to so many pixels, zeros moving in: `shift(2)`",
    "flip": "half of the images are mirrored, left to right",
    "erase": "a square of so many pixels becomes 0: `erase(8)`",
    "noise": "normally distributed numbers of this deviation are added: `noise(0.1)`",
}

TEACHERS: Mapping[str, str] = {
    "original": "the model as it was given",
    "recorded": 'outputs in a file that `lissom record` wrote: `recorded("teacher.safetensors")`',
    "probabilities": "several teachers agree on probabilities, not on logits",
}

SETTINGS: Mapping[str, Setting] = {
    "data": Setting(DATA, "what is trained on; `train` if left out"),
    "valid": Setting(DATA, "what the best epoch is chosen by; `valid` if there is such data"),
    "loss": Setting(SUM, "terms with factors, added up; `task()` if left out", tuple(TERMS)),
    "teacher": Setting(MODEL, "whom `kl`, `logits`, `hint`, `attention` follow", tuple(TEACHERS)),
    "student": Setting(MODEL, "a model that takes the place of this one"),
    "optimizer": Setting(CALL, "a class of torch.optim; `AdamW(lr = 0.001)` if left out"),
    "schedule": Setting(CALL, "how the learning rate goes", tuple(SCHEDULES)),
    "epochs": Setting(NUMBER, "how often all data is seen, at most"),
    "minutes": Setting(NUMBER, "how long it may take"),
    "patience": Setting(NUMBER, "how many epochs without a better one end it"),
    "watch": Setting(WORD, "the metric that says which epoch is best"),
    "keep": Setting(WORD, "the best epoch, or the last", ("best", "last")),
    "batch": Setting(NUMBER, "samples of one step; 128 if left out"),
    "seed": Setting(NUMBER, "of the order of samples and all else that is drawn; 0 if left out"),
    "augment": Setting(SUM, "how samples are changed, each time anew", tuple(AUGMENTS)),
    "disturb": Setting(NUMBER, "the share of labels that are drawn anew in each batch"),
    "clip": Setting(NUMBER, "the largest norm of all gradients together"),
    "constraints": Setting(WORD, "what rules said in `train`", ("kept", "dropped")),
    "norms": Setting(WORD, "batch norms learn from batches, or stay", ("batch", "frozen")),
    "only": Setting(GLOB, "the places whose weights are trained"),
}
