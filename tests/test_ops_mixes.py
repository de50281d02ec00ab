"""`mixes` and `sums`: how they are written, what is refused, and that each op of the library does
along its axes what it declares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from lissom.grammar.checks.check import check
from lissom.grammar.diagnostics import Diagnostic, LissomError
from lissom.grammar.fmt.format import format_text
from lissom.grammar.library.vocabulary import library
from lissom.grammar.text.parse import parse
from lissom.grammar.tree import tree as t
from lissom.rewrite.ops.declaration import op_spec
from lissom.rewrite.ops.dims import ShapeSpec
from lissom.rewrite.ops.vocabulary import OpSpec, Vocabulary

LIBRARY = Vocabulary.library()


# -- text ----------------------------------------------------------------------------------------

HEAD = "op shrink(x: f[N, C, ...], y: f[C, E]) -> f[N, E] {"
TAIL = "attr dim: int = 1; attr eps: float = 0.5; meaning torch.mm(input = x, mat2 = y) }"


def declared(items: str) -> OpSpec:
    return Vocabulary.from_files([parse(f"{HEAD} {items}; {TAIL}", "shrink.lissom")])["shrink"]


def found(items: str) -> list[Diagnostic]:
    return check(parse(f"{HEAD}\n{items}\n{TAIL}", "shrink.lissom"), library())


@pytest.mark.parametrize(
    ("items", "mixes", "sums"),
    [
        ("mixes dim", ("dim",), set()),
        ("mixes N, ...", ("N", "..."), set()),
        ("mixes none", (), set()),
        ("mixes ...; mixes N; mixes ...", ("...", "N"), set()),
        ("sums C", None, {"C"}),
        ("sums C, ...; mixes N", ("N",), {"C", "..."}),
        ("trait elementwise", None, set()),
    ],
)
def test_what_a_declaration_says(items: str, mixes: tuple[str, ...] | None, sums: set[str]) -> None:
    op = declared(items)
    assert op.mixes == mixes
    assert op.sums == sums
    assert found(items) == []


def test_the_layout_is_kept() -> None:
    text = "op f(x: f[..., C]) -> f[..., C] {\n  mixes   C,...\n\n  sums E ,F;mixes none\n}\n"
    want = "op f(x: f[..., C]) -> f[..., C] {\n  mixes C, ...\n  sums E, F\n  mixes none\n}\n"
    assert format_text(text) == format_text(want) == want
    mixes, sums, none = parse(want).statements[0].items  # type: ignore[union-attr]
    assert isinstance(mixes, t.OpMixes)
    assert isinstance(sums, t.OpSums)
    assert [[word.text for word in each.names] for each in (mixes, sums, none)] == [
        ["C", "..."],
        ["E", "F"],
        ["none"],
    ]
    assert [str(word.span) for word in mixes.names] == ["<text>:2:9", "<text>:2:12"]


def test_the_words_stay_free_elsewhere() -> None:
    text = "exact rule mixes { match { sums = relu(mixes) }; rewrite { sums = relu(mixes) } }"
    assert "sums = relu(mixes)" in format_text(text)


@pytest.mark.parametrize("items", ["mixes", "mixes C D", "mixes 1", "sums", "sums C,", "sums -C"])
def test_what_is_no_list_of_axes_is_refused(items: str) -> None:
    with pytest.raises(LissomError, match="E001"):
        parse(f"{HEAD}\n{items}\n{TAIL}")


@pytest.mark.parametrize(
    ("items", "wrong", "code", "words"),
    [
        ("mixes din", "din", "T003", "did you mean `dim`"),
        ("mixes N, eps", "eps", "T003", "known: ..., C, E, N, dim"),
        ("mixes x", "x", "T003", "known: ..., C, E, N, dim"),
        ("mixes none, N", "none", "T004", "`none` stands alone"),
        ("mixes N; mixes none", "none", "T004", "`none` stands alone"),
        ("sums CC, C", "CC", "T003", "did you mean `C`"),
        ("sums dim", "dim", "T003", "known: ..., C"),
        ("sums none", "none", "T003", "known: ..., C"),
        ("sums E", "E", "T001", "`mixes E`"),
    ],
)
def test_mistakes_are_named(items: str, wrong: str, code: str, words: str) -> None:
    (diagnostic,) = found(items)
    assert diagnostic.code == code
    assert words in str(LissomError(diagnostic))
    assert diagnostic.labels[0].span is not None
    assert diagnostic.labels[0].span.text == wrong


# -- what ops do ---------------------------------------------------------------------------------

KEPT = torch.tensor([0, 2])
"""Of the three positions that every axis has; the one between is changed or left out."""
GONE = 1


@dataclass(frozen=True)
class Case:
    """How an op is called: what `...` stands for, settings, dimensions that are not 3."""

    rank: int = 1
    attrs: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)


EVAL = {"training": False}
ALONG = Case(3, {"dim": 1})
CASES: dict[str, Case] = {
    "prelu": Case(2, sizes={"C": 1}),
    "softmax": ALONG,
    "log_softmax": ALONG,
    "softmin": Case(3, {"dim": -2}),
    "normalize": Case(3, {"dim": (0, 2)}),
    "cumsum": ALONG,
    "sort": ALONG,
    # A scale of none is 1 / sqrt(E): the sum leaves zeros out, the scale does not.
    "scaled_dot_product_attention": Case(2, {"scale": 0.5, "is_causal": True}),
    "grouped_query_attention": Case(1, {"scale": 0.5, "is_causal": True}),
    "baddbmm": Case(),
    "addmm": Case(),
    "tril": Case(),
    "triu": Case(),
    "dropout1d": Case(3, EVAL),
    "dropout2d": Case(4, EVAL),
    "dropout3d": Case(4, EVAL),
    "feature_alpha_dropout": Case(3, EVAL),
    "batch_norm": Case(2, EVAL),
    "instance_norm": Case(2),
    "layer_norm": Case(2),
    "rms_norm": Case(2),
    "group_norm": Case(1),
    "local_response_norm": Case(1, {"size": 2}),
    "lstm": Case(2),
    "lstm_bidirectional": Case(2),
    "gru": Case(2, {"batch_first": True}),
    "rnn": Case(1),
    "confidence": Case(),
    "entropy": Case(),
    "margin": Case(),
    "row_scale": Case(2),
    "fake_quantize_rows": Case(2),
    "int8_lstm": Case(2),
}
Axes = list[list[str]]
"""The dimensions that each axis is a product of; those of `...` are numbered."""


@dataclass
class Trial:
    """One op on drawn numbers."""

    op: OpSpec
    case: Case

    def __post_init__(self) -> None:
        names = {n for spec in self._specs() for n in spec.names} - {"..."}
        self.sizes = {name: self.case.sizes.get(name, 3) for name in names}
        rest = {f"...{i}": 3 for i in range(self.case.rank)}
        self.sizes |= rest
        generator = torch.Generator().manual_seed(7)
        scope: dict[str, Any] = {**self.sizes, "...": tuple(rest.values())}
        self.tensors: dict[str, Tensor] = {}
        for spec in self._declared():
            shape = spec.shape.evaluate(scope) if spec.shape else ()
            drawn = torch.rand(shape, generator=generator) + 0.2
            signed = torch.randn(shape, generator=generator)
            self.tensors[spec.name] = drawn if spec.name == "running_var" else signed
        self.axes = {s.name: self._axes(s.shape) for s in self._declared() if s.shape}
        self.results = [self._axes(spec) for spec in self.op.outputs if spec]

    def _declared(self) -> list[Any]:
        given = [spec for spec in self.op.inputs if not spec.optional]
        return [*given, *self.op.params]

    def _specs(self) -> list[ShapeSpec]:
        return [spec.shape for spec in self._declared() if spec.shape is not None]

    def _axes(self, spec: ShapeSpec) -> Axes:
        rest = [[f"...{i}"] for i in range(self.case.rank)] if spec.rest else []
        before, after = ([_factors(a.expr) for a in axes] for axes in (spec.before, spec.after))
        return [*before, *rest, *after]

    @property
    def names(self) -> list[str]:
        """Every dimension that an axis of an input has."""
        axes = [axis for spec in self.op.inputs for axis in self.axes.get(spec.name, [])]
        return sorted({name for axis in axes for name in axis if not name.isdigit()})

    def run(self, tensors: Mapping[str, Tensor], sizes: Mapping[str, int]) -> list[Tensor]:
        """The results whose axes are declared."""
        inputs = {spec.name: tensors.get(spec.name) for spec in self.op.inputs}
        params = {spec.name: tensors[spec.name] for spec in self.op.params}
        tied = {n: sizes[a.dim] for n, a in self.op.attrs.items() if a.dim is not None}
        wide = {n: (v,) if self.op.attrs[n].type == "ints" else v for n, v in tied.items()}
        attrs = self.op.fill({**wide, **self.case.attrs}, tensors)
        with torch.no_grad():
            results = self.op.run(inputs, params, attrs)
        several = results if isinstance(results, tuple) else (results,)
        return list(several[: len(self.results)])

    def plain(self) -> list[Tensor]:
        return self.run(self.tensors, self.sizes)

    def shorter(self, name: str) -> list[Tensor]:
        """The results on what is left without one position of a dimension."""
        tensors = dict(self.tensors)
        for key, axes in self.axes.items():
            tensors[key] = self.without(tensors[key], axes, name)
        return self.run(tensors, {**self.sizes, name: len(KEPT)})

    def without(self, tensor: Tensor, axes: Axes, name: str) -> Tensor:
        whole = tensor.reshape([self.size(factor) for axis in axes for factor in axis])
        factors = [factor for axis in axes for factor in axis]
        for axis in (i for i, factor in enumerate(factors) if factor == name):
            whole = whole.index_select(axis, KEPT)
        sizes = [[len(KEPT) if f == name else self.size(f) for f in axis] for axis in axes]
        return whole.reshape([torch.Size(axis).numel() for axis in sizes])

    def size(self, factor: str) -> int:
        return int(factor) if factor.isdigit() else self.sizes[factor]

    def changed(self, keys: Sequence[str], name: str, value: float) -> list[Tensor]:
        """The results once one position of these tensors has another value."""
        return self.run({**self.tensors, **{k: self.put(k, name, value) for k in keys}}, self.sizes)

    def put(self, key: str, name: str, value: float) -> Tensor:
        axes = self.axes[key]
        whole = self.tensors[key].reshape([self.size(f) for axis in axes for f in axis])
        mask = torch.zeros_like(whole, dtype=torch.bool)
        for i, factor in enumerate(f for axis in axes for f in axis):
            if factor == name:
                mask.select(i, GONE).fill_(True)
        return whole.masked_fill(mask, value).reshape(self.tensors[key].shape)

    def readers(self, name: str) -> Iterator[str]:
        for key, axes in self.axes.items():
            if any(name in axis for axis in axes):
                yield key

    # -- what a declaration claims ---------------------------------------------------------------

    def same(self, left: list[Tensor], right: list[Tensor], name: str = "") -> bool:
        """Whether results agree, but for one position of this dimension."""
        pairs = zip(left, right, self.results, strict=True)
        return all(
            torch.allclose(self.without(a, x, name), self.without(b, x, name), atol=1e-5)
            for a, b, x in pairs
        )

    def stays(self, name: str) -> bool:
        """Whether a change at one position leaves the results at the others as they are."""
        inputs = {spec.name for spec in self.op.inputs}
        keys = [key for key in self.readers(name) if key in inputs]
        return all(self.same(self.plain(), self.changed([k], name, 3.0), name) for k in keys)

    def cuts(self, name: str) -> bool:
        """Whether the results without one position are those on tensors without it."""
        pairs = zip(self.plain(), self.results, strict=True)
        want = [self.without(result, axes, name) for result, axes in pairs]
        got = self.shorter(name)
        return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(got, want, strict=True))

    def adds(self, name: str) -> bool:
        """Whether zeros, in any one input or in all the parameters, add nothing."""
        want, inputs = self.shorter(name), {spec.name for spec in self.op.inputs}
        keys = list(self.readers(name))
        params = [key for key in keys if key not in inputs]
        apart = [[key] for key in keys if key in inputs] + ([params] if params else [])
        found = [self.changed(each, name, 0.0) for each in apart]
        return all(
            torch.allclose(a, b, atol=1e-5) for f in found for a, b in zip(f, want, strict=True)
        )

    def mixed(self) -> dict[str, list[str]]:
        """Each word of `mixes` and the dimensions that it stands for."""
        first = [axis[0] for axis in self.axes.get(self.op.inputs[0].name, [])]
        found: dict[str, list[str]] = {}
        for word in self.op.mixes or ():
            value = self.case.attrs.get(word)
            numbers = value if isinstance(value, tuple) else (value,)
            rest = [name for name in self.names if word == "..." and name.startswith("...")]
            found[word] = [first[n] for n in numbers] if word in self.op.attrs else rest or [word]
        return found

    def mistakes(self) -> list[str]:
        mixed = self.mixed()
        named = {name for names in mixed.values() for name in names}
        free = [name for name in self.names if name not in named | self.op.sums]
        found = [f"{n} is mixed" for n in free if not (self.stays(n) and self.cuts(n))]
        found += [f"{n} is not only summed" for n in self.op.sums if not self.adds(n)]
        for word, names in mixed.items():
            if all(self.stays(name) and self.cuts(name) for name in names):
                found.append(f"{word} is not mixed")
        return found


def _factors(expr: t.Expr) -> list[str]:
    if isinstance(expr, t.Binary):
        assert expr.op == "*"
        return _factors(expr.left) + _factors(expr.right)
    assert isinstance(expr, (t.Name, t.Number))
    return [expr.text]


def test_every_op_that_declares_axes_is_tried() -> None:
    ops = (LIBRARY[name] for name in LIBRARY.names())
    assert {op.name for op in ops if op.mixes is not None or op.sums} == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_an_op_does_along_its_axes_what_it_declares(name: str) -> None:
    assert Trial(LIBRARY[name], CASES[name]).mistakes() == []


def said(name: str, items: str) -> OpSpec:
    """An op of the library, with other `mixes` and `sums` than its own."""
    span = LIBRARY[name].decl.span
    lines = span.source.text[span.start : span.end].splitlines()
    kept = [line for line in lines if not line.strip().startswith(("mixes", "sums"))]
    (decl,) = parse("\n".join([*kept[:-1], items, "}"]), "planted.lissom").all(t.Op)
    return op_spec(decl)


@pytest.mark.parametrize(
    ("name", "items", "mistakes"),
    [
        ("softmax", "mixes none", ["...1 is mixed"]),
        ("softmax", "mixes ...", []),
        ("tril", "mixes M", ["N is mixed"]),
        ("tril", "mixes M, N, ...", ["... is not mixed"]),
        ("group_norm", "mixes C", ["...0 is mixed"]),
        ("group_norm", "mixes G, C, ...", ["G is not mixed"]),
        ("prelu", "mixes ...", ["... is not mixed"]),
        ("instance_norm", "mixes C, L, ...", ["C is not mixed"]),
        ("scaled_dot_product_attention", "mixes L; sums E, S", ["S is not only summed"]),
        ("scaled_dot_product_attention", "mixes L, S", ["E is mixed"]),
        ("addmm", "mixes none", ["K is mixed"]),
        ("lstm", "sums I", ["...0 is mixed"]),
    ],
)
def test_a_wrong_declaration_is_noticed(name: str, items: str, mistakes: list[str]) -> None:
    assert Trial(said(name, items), CASES[name]).mistakes() == mistakes


def test_a_default_scale_is_no_part_of_the_sum() -> None:
    case = Case(2, {"is_causal": True})
    op = LIBRARY["scaled_dot_product_attention"]
    assert Trial(op, case).mistakes() == ["E is not only summed"]


def test_the_groups_of_a_norm_are_a_factor_of_its_width() -> None:
    op = LIBRARY["group_norm"]
    assert op.bind({"x": (2, 6, 5), "weight": (6,)}, {"num_groups": 3})["C"] == 2
    with pytest.raises(LissomError, match="S002"):
        op.bind({"x": (2, 6, 5)}, {"num_groups": 4})
