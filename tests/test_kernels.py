"""The numeric functions of the library: exact where they say so, best where they say so."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import lissom
from lissom.grammar.checks.check import check, check_program
from lissom.grammar.checks.unsupported import is_later, unsupported
from lissom.grammar.diagnostics import LissomError, Source
from lissom.grammar.library.program import load_program
from lissom.grammar.library.vocabulary import Declarations, library, library_sources
from lissom.grammar.text.parse import parse
from lissom.grammar.tree import tree
from lissom.passes import channels, lowrank, separable, tensors
from lissom.passes.functions import FUNCTIONS, MODULES
from lissom.rewrite.apply.queries import QUESTIONS
from lissom.rewrite.rules.rule import compile_rule

torch.set_num_threads(1)

GEOMETRIES = [
    (stride, padding, dilation)
    for stride, padding, dilation in itertools.product(
        [(1, 1), (2, 1), (3, 2)], [(0, 0), (1, 2), (3, 1)], [(1, 1), (2, 1), (1, 3)]
    )
]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def relative(found: Tensor, wanted: Tensor) -> float:
    """Distance in the Frobenius norm, relative to `wanted`."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def energy_beyond(matrix: Tensor, rank: int) -> float:
    """Eckart-Young: the least squared error of any matrix of that rank."""
    return float(torch.linalg.svdvals(matrix.double())[rank:].square().sum())


STRUCTURE = {"sample", "stream", "zero", "initial", "in_training"}
"""Read from the tree of a program: `data d = sample(...)`, `perturb { zero(readers(D), ...) }`,
`train { w := w * initial(mask(w)) }`.
"""


def without_a_computation(names: Iterable[str]) -> set[str]:
    """Functions that neither numbers, nor the graph, nor the tree of a program answers."""
    return set(names) - {*FUNCTIONS, *QUESTIONS, *STRUCTURE}


def test_what_is_declared_is_implemented_or_said_to_come_later() -> None:
    names = set(library().extern_names())
    assert without_a_computation(names) == {name for name in names if is_later(name)}
    assert set(FUNCTIONS) <= names
    assert set(QUESTIONS) <= names


def test_a_function_of_the_library_without_a_computation_would_be_found() -> None:
    planted = Source("passes/builtin.lissom", "extern fn planted(x: any) -> any pure\n")
    names = Declarations([*library_sources(), planted]).extern_names()
    later = {name for name in names if is_later(name)}
    assert without_a_computation(names) - later == {"planted"}


def calling(name: str, count: int) -> str:
    """A rule whose guard calls a function with so many arguments."""
    args = ", ".join(["c.weight"] * count)
    return f"""
exact rule asks {{
  match {{ y = prelu(x) as c }}
  where {{ {name}({args}) == 1  else "no" }}
  rewrite {{ y = x }}
}}
"""


LATER = [name for name in library().extern_names() if is_later(name)]


def test_there_are_functions_of_a_later_version() -> None:
    assert len(LATER) > 5


@pytest.mark.parametrize("name", LATER)
def test_a_function_that_nothing_computes_is_refused_by_name(name: str) -> None:
    """A warning of `lissom check`, and an error of the engine; not where the program gives it."""
    declared = library().extern(name)
    assert declared is not None
    rule = parse(calling(name, sum(p.default is None for p in declared.params))).all(tree.Rule)[0]
    found = [d for d in unsupported(rule, set()) if d.code == "R002"]
    assert [f"`{name}`" in d.message for d in found] == [True]
    assert found[0].labels[0].span is not None
    assert found[0].labels[0].span.text == name
    assert list(unsupported(rule, {name})) == []
    impure = not declared.pure
    codes = [d.code for d in check(rule_file(rule), library())]
    assert ("G001" if impure else "R002") in codes
    with pytest.raises(LissomError, match=rf"R002.*`{name}`"):
        compile_rule(rule, {}, functions=FUNCTIONS)


def rule_file(rule: tree.Rule) -> tree.File:
    return parse(rule.span.text)


OWN = "extern fn planted(x: any) -> int pure\n" + calling("planted", 1)


def test_an_own_function_that_nobody_gives_is_refused_before_anything_runs() -> None:
    """No layer of the model matches: the rule is refused all the same."""
    model, text = (
        torch.nn.Sequential(torch.nn.ReLU()).eval(),
        OWN + "pipeline p { stage s { once asks } }",
    )
    with pytest.raises(LissomError, match=r"N001.*`planted`, which is given by nobody") as caught:
        lissom.compile(model, text, inputs=(torch.ones(2),))
    (found,) = caught.value.diagnostics
    assert 'functions = {"planted": ...}' in found.helps[0]
    result = lissom.compile(
        model, text, inputs=(torch.ones(2),), functions={"planted": lambda w: 0}
    )
    assert result.applied == []
    assert check(parse(OWN), library()) == []


def test_a_function_that_another_file_declares_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "first.lissom").write_text("extern fn planted(x: any) -> int pure\n")
    text = "use first\n" + calling("planted", 1)
    (tmp_path / "second.lissom").write_text(text)
    program = load_program(tmp_path / "second.lissom")
    (rule,) = program.file.all(tree.Rule)
    assert [d.code for d in check_program(program)] == []
    with pytest.raises(LissomError, match=r"N001.*`planted`"):
        compile_rule(rule, {}, functions=FUNCTIONS, declared=program.declarations)
    assert compile_rule(
        rule, {}, functions={**FUNCTIONS, "planted": len}, declared=program.declarations
    )


# -- tensors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (2, 6, 3), (1, 1)])
def test_svd_multiplies_back_and_falls(shape: tuple[int, ...]) -> None:
    w = randn(*shape)
    u, s, v = tensors.svd(w)
    assert relative(u @ torch.diag_embed(s) @ v, w) < 1e-14
    assert bool((s[..., :-1] >= s[..., 1:]).all())


def test_svd_sign_does_not_depend_on_the_library() -> None:
    w = randn(7, 4)
    u, _, _ = tensors.svd(w)
    flipped, _, _ = tensors.svd(torch.diag(torch.tensor([-1.0] * 7).double()) @ w)
    assert torch.allclose(u, -flipped * tensors.pivot_sign(-flipped), atol=1e-13)
    assert bool((u.gather(0, u.abs().argmax(0, keepdim=True)) > 0).all())


@pytest.mark.parametrize(
    ("shape", "rows"), [((9, 4), 1), ((4, 9), 1), ((5, 2, 3, 2), 2), ((1, 1), 1)]
)
@pytest.mark.parametrize("size", [1.0, 1e200, 1e-200])
def test_halves_multiply_back_at_every_size(shape: tuple[int, ...], rows: int, size: float) -> None:
    """Squares of such numbers are infinite or zero."""
    w = randn(*shape)
    left, s, right = tensors.halves(w * size, rows)
    matrix = w.flatten(rows).flatten(0, rows - 1)
    assert relative((left / size**0.5) @ (right / size**0.5), matrix) < 1e-14
    assert relative(s / size, torch.linalg.svdvals(matrix)) < 1e-13
    assert torch.equal(tensors.pivot_sign(left), torch.ones_like(left[:1]))


def test_halves_tell_what_is_zero_from_what_is_small() -> None:
    """The roots of eigenvalues would leave 1e-8 of the largest value where there is nothing."""
    w = randn(30, 3) @ randn(3, 20, seed=1)
    left, s, right = tensors.halves(w)
    assert float(s[3:].max() / s[0]) < 1e-14
    assert relative(left[:, :3] @ right[:3], w) < 1e-14
    assert all(torch.equal(part, torch.zeros_like(part)) for part in tensors.halves(0 * w))


def test_halves_work_in_the_memory_of_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[tuple[Tensor, Tensor]] = []
    solve = torch.linalg.eigh

    def watched(matrix: Tensor, **given: tuple[Tensor, Tensor]) -> object:
        expected, found = solve(matrix.clone()), solve(matrix, **given)
        assert found[1].data_ptr() == matrix.data_ptr()
        held.append((expected[1], found[1].clone()))
        return found

    monkeypatch.setattr(torch.linalg, "eigh", watched)
    tensors.halves(randn(40, 24))
    assert [torch.equal(*pair) for pair in held] == [True]


def test_same_input_same_bytes() -> None:
    w = randn(24, 16, 3, 3, dtype=torch.float32)
    for name, call in {
        "separable": lambda: separable.separable_svd(w, 2),
        "low rank": lambda: lowrank.channel_svd(w),
        "spatial": lambda: lowrank.spatial_svd(w),
        "tucker": lambda: lowrank.tucker2(w, 6, 5),
    }.items():
        assert all(torch.equal(a, b) for a, b in zip(call(), call(), strict=True)), name


def test_arguments_are_never_written() -> None:
    w, gain = randn(6, 4, 3, 3), randn(6)
    versions = w._version, gain._version
    before = w.clone(), gain.clone()
    separable.separable_svd(w, 2)
    lowrank.tucker2(w, 3, 2)
    lowrank.whitened_channel_svd(w, torch.eye(36).double())
    tensors.scale(w, gain)
    channels.scale_inputs(w, randn(4))
    assert (w._version, gain._version) == versions
    assert torch.equal(w, before[0])
    assert torch.equal(gain, before[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_factors_keep_the_dtype_of_the_weight(dtype: torch.dtype) -> None:
    w = randn(8, 6, 3, 3).to(dtype)
    factors = (
        *separable.separable_svd(w, 2),
        *lowrank.channel_svd(w),
        *lowrank.spatial_svd(w),
        *lowrank.tucker2(w, 4, 3),
        *lowrank.whitened_channel_svd(w, torch.eye(54).double()),
        tensors.scale(w, randn(8)),
        channels.scale_inputs(w, randn(6)),
    )
    assert {f.dtype for f in factors if f is not None} == {dtype}


def test_halves_are_rounded_once() -> None:
    """bfloat16 in, product in float64, one rounding: a product of rounded gains is worse."""
    w, gain = randn(64, 32, seed=3).bfloat16(), randn(64, seed=4)
    wanted = (w.double() * gain[:, None]).bfloat16()
    assert torch.equal(tensors.scale(w, gain), wanted)
    assert not torch.equal(w * gain.bfloat16()[:, None], wanted)


@pytest.mark.parametrize(
    ("values", "least", "most"),
    [((3, 1, 2), 1, 3), (((4, 0),), 0, 4), ((torch.tensor([2.0, -1.0]),), -1.0, 2.0), ((7,), 7, 7)],
)
def test_min_and_max(values: tuple, least: float, most: float) -> None:
    assert tensors.min_(*values) == least
    assert tensors.max_(*values) == most


def test_min_of_nan_is_nan() -> None:
    """A guard `min(running_var) > 0` must not let nan pass."""
    assert not tensors.min_(torch.tensor([1.0, float("nan")])) > 0
    assert not tensors.min_(1.0, float("nan")) > 0


@pytest.mark.parametrize(
    ("x", "multiple", "wanted"),
    [(17, 8, 24), (16, 8, 16), (0.7 * 10, 1, 7), (0.1 * 3 * 10, 1, 3), (0, 4, 0), (7.0001, 1, 8)],
)
def test_round_up(x: float, multiple: int, wanted: int) -> None:
    assert tensors.round_up(x, multiple) == wanted


def test_scale_leaves_absent_biases_absent() -> None:
    assert tensors.scale(None, randn(3)) is None
    assert torch.equal(tensors.scale(torch.ones(2, 2), 3), torch.full((2, 2), 3.0))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_scale_along_an_axis(axis: int) -> None:
    w = randn(4, 4, 4)
    gain = randn(4, seed=1)
    wanted = torch.movedim(torch.movedim(w, axis, 0) * gain[:, None, None], 0, axis)
    assert torch.equal(tensors.scale(w, gain, axis), wanted)


def test_matvec_of_the_absent_bias_is_zero() -> None:
    w = randn(3, 2)
    assert tensors.matvec(w, 0) == 0
    assert relative(tensors.matvec(w, 2), w.sum(1) * 2) < 1e-15


@pytest.mark.parametrize(
    ("p", "q", "inverse"),
    [
        ((0, 2, 3, 1), (0, 3, 1, 2), True),
        ((0, 2, 3, 1), (0, 2, 3, 1), False),
        ((1, 0), (-1, 0), True),
        ((0, 1), (0, 1, 2), False),
    ],
)
def test_inverse_dims_is_what_permute_does(p: tuple, q: tuple, inverse: bool) -> None:
    assert tensors.inverse_dims(p, q) is inverse
    x = randn(*range(2, 2 + len(p)))
    if len(p) == len(q):
        assert (x.permute(p).permute(q).stride() == x.stride()) is inverse


# -- channels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_scaled_transposed_convolution_scales_its_output(groups: int, dims: int) -> None:
    """As many inputs as outputs: the wrong axis fits as well, and must still be found."""
    op = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
    w, gain = randn(8, 8 // groups, *[3] * dims), randn(8, seed=1)
    x = randn(2, 8, *[5] * dims, seed=2)
    per_output = gain.reshape(1, 8, *[1] * dims)
    wanted = op(x, w, stride=2, groups=groups) * per_output
    scaled = channels.scale_transposed(w, gain, groups)
    assert relative(op(x, scaled, stride=2, groups=groups), wanted) < 1e-13
    wrong = op(x, tensors.scale(w, gain), stride=2, groups=groups)
    assert relative(wrong, wanted) > 0.1


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_affine_map_before_a_convolution(groups: int, stride: int, dilation: int) -> None:
    w, gain, shift = (
        randn(6 * groups, 3, 3, 2),
        randn(3 * groups, seed=1),
        randn(3 * groups, seed=2),
    )
    x = randn(2, 3 * groups, 9, 8, seed=3)
    affine = x * gain[:, None, None] + shift[:, None, None]
    wanted = F.conv2d(affine, w, stride=stride, dilation=dilation, groups=groups)
    scaled = channels.scale_inputs(w, gain, groups)
    bias = channels.response(w, shift, groups)
    found = F.conv2d(x, scaled, bias, stride=stride, dilation=dilation, groups=groups)
    assert relative(found, wanted) < 1e-13


def test_affine_map_before_zero_padding_cannot_be_absorbed() -> None:
    """Why `absorb_bn` asks for no padding: the inside agrees, the border does not."""
    w, gain, shift = randn(4, 3, 3, 3), randn(3, seed=1), randn(3, seed=2)
    x = randn(1, 3, 6, 6, seed=3)
    wanted = F.conv2d(x * gain[:, None, None] + shift[:, None, None], w, padding=1)
    bias = channels.response(w, shift)
    found = F.conv2d(x, channels.scale_inputs(w, gain), bias, padding=1)
    assert relative(found[..., 1:-1, 1:-1], wanted[..., 1:-1, 1:-1]) < 1e-13
    assert relative(found, wanted) > 0.05


def test_channels_repeat_as_flatten_lays_them_out() -> None:
    x, gain = randn(2, 3, 4, 5), randn(3, seed=1)
    wanted = (x * gain[:, None, None]).flatten(1)
    assert torch.equal(x.flatten(1) * channels.spread(gain, 20), wanted)


def test_per_channel_takes_what_varies_along_channels_only() -> None:
    k = randn(5)
    assert torch.equal(channels.per_channel(k[:, None, None], 5, 1, 4), k)
    assert torch.equal(channels.per_channel(k[None, :, None, None], 5, 1, 4), k)
    assert torch.equal(channels.per_channel(k, 5, -1, 3), k)
    assert torch.equal(channels.per_channel(2, 5, 1, 4), torch.full((5,), 2.0).double())
    assert torch.equal(channels.per_channel(k[:1], 5, 1, 4), k[:1].expand(5))
    assert channels.per_channel(k, 5, 1, 4) is None
    assert channels.per_channel(k[None, :, None, None, None], 5, 1, 4) is None


# -- separable -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (2, 4, 3, 2), (7, 2, 5), (6, 3, 2, 2, 2)])
def test_separable_is_exact_at_full_multiplier(shape: tuple[int, ...]) -> None:
    w = randn(*shape)
    taps = w[0, 0].numel()
    assert relative(separable.separable_join(*separable.separable_svd(w, taps), taps), w) < 1e-12
    narrow = w.float()
    joined = separable.separable_join(*separable.separable_svd(narrow, taps), taps)
    assert relative(joined, narrow) < 1e-6


@pytest.mark.parametrize("m", [1, 2, 4])
def test_separable_error_is_the_least_for_each_channel(m: int) -> None:
    w = randn(12, 5, 3, 3)
    joined = separable.separable_join(*separable.separable_svd(w, m), m)
    for i in range(5):
        error = float((joined[:, i] - w[:, i]).square().sum())
        assert error == pytest.approx(energy_beyond(w[:, i].flatten(1), m), rel=1e-10)


@pytest.mark.parametrize(("stride", "padding", "dilation"), GEOMETRIES)
@pytest.mark.parametrize("m", [1, 3])
def test_separable_pair_is_the_perturbed_convolution(
    m: int, stride: tuple, padding: tuple, dilation: tuple
) -> None:
    w, x = randn(5, 4, 3, 2), randn(2, 4, 11, 10, seed=1)
    dw, pw = separable.separable_svd(w, m)
    dense = separable.separable_join(dw, pw, m)
    wanted = F.conv2d(x, dense, None, stride, padding, dilation)
    found = F.conv2d(F.conv2d(x, dw, None, stride, padding, dilation, groups=4), pw)
    assert relative(found, wanted) < 1e-13


def test_separable_in_one_dimension() -> None:
    w, x = randn(6, 4, 5), randn(2, 4, 20, seed=1)
    dw, pw = separable.separable_svd(w, 2)
    wanted = F.conv1d(x, separable.separable_join(dw, pw, 2), stride=2, padding=3)
    found = F.conv1d(F.conv1d(x, dw, stride=2, padding=3, groups=4), pw)
    assert relative(found, wanted) < 1e-13


@pytest.mark.parametrize("m", [0, 10, -1])
def test_separable_refuses_an_impossible_multiplier(m: int) -> None:
    with pytest.raises(LissomError, match="K001"):
        separable.separable_svd(randn(3, 3, 3, 3), m)


def test_separable_join_refuses_factors_of_another_multiplier() -> None:
    dw, pw = separable.separable_svd(randn(4, 3, 3, 3), 1)
    with pytest.raises(LissomError, match="do not pair"):
        separable.separable_join(dw, pw, 2)


# -- ranks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("s", "energy", "rank"),
    [
        ([1.0] * 10, 0.9, 9),
        ([1.0] * 10, 0.91, 10),
        ([1.0] * 10, 1.0, 10),
        ([3.0, 1.0, 0.0], 1.0, 2),
        ([3.0, 1.0, 0.0], 0.9, 1),
        ([3.0, 1.0, 0.0], 0.0, 1),
        ([0.0, 0.0], 0.5, 1),
        ([1.0, 1e-9], 1.0, 2),
    ],
)
def test_rank_for_energy(s: list[float], energy: float, rank: int) -> None:
    assert lowrank.rank_for_energy(torch.tensor(s, dtype=torch.float64), energy) == rank


def test_rank_for_energy_is_the_least_that_suffices() -> None:
    s = torch.linalg.svdvals(randn(30, 20))
    total = s.square().sum()
    for energy in (0.5, 0.8, 0.95, 0.99):
        rank = lowrank.rank_for_energy(s, energy)
        assert s[:rank].square().sum() >= energy * total > s[: rank - 1].square().sum()


def test_rank_for_share() -> None:
    assert lowrank.rank_for_share(None, 10, 100) is None
    assert lowrank.rank_for_share(0.5, 10, 100) == 5
    assert lowrank.rank_for_share(0.29, 1, 100) == 29
    assert lowrank.rank_for_share(0.01, 10, 100) == 1
    with pytest.raises(LissomError, match="K001"):
        lowrank.rank_for_share(1.5, 10, 100)


def test_tucker_ranks_for_share_are_the_best_that_fit() -> None:
    """Brute force: no level of loss below the chosen one has ranks that fit."""
    w = randn(10, 8, 3, 3) * torch.linspace(1, 0.05, 10)[:, None, None, None]
    so, si = lowrank.mode_svd(w)
    full = w.numel()
    p, q = lowrank.tucker2_ranks_for_share(so, si, 0.4, 8, 9, 10, full) or (0, 0)
    assert 8 * q + 9 * p * q + 10 * p <= 0.4 * full

    def lost(s: Tensor, rank: int) -> float:
        return float(s[rank:].square().sum() / s.square().sum())

    level = max(lost(so, p), lost(si, q))
    for a, b in itertools.product(range(1, 11), range(1, 9)):
        if 8 * b + 9 * a * b + 10 * a <= 0.4 * full:
            assert max(lost(so, a), lost(si, b)) >= level - 1e-12


def test_tucker_ranks_for_energy_keep_it() -> None:
    w = randn(12, 10, 3, 3) * torch.linspace(1, 0.01, 10)[:, None, None]
    for energy in (0.6, 0.9, 0.99):
        p, q = lowrank.tucker2_ranks(*lowrank.mode_svd(w), energy)
        assert relative(lowrank.tucker2_join(*lowrank.tucker2(w, p, q)), w) ** 2 <= 1 - energy


def test_tucker_ranks_without_a_share() -> None:
    assert lowrank.tucker2_ranks_for_share(randn(3), randn(3), None, 1, 1, 1, 10) is None


# -- low rank --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (5, 4, 3, 3), (20, 2, 3, 3), (4, 3, 5)])
def test_low_rank_factors_are_exact_and_optimal(shape: tuple[int, ...]) -> None:
    w = randn(*shape)
    last, s, first = lowrank.channel_svd(w)
    assert relative(lowrank.channel_join(last, first), w) < 1e-12
    narrow = w.float()
    wide_rank = lowrank.channel_svd(narrow)
    assert relative(lowrank.channel_join(wide_rank[0], wide_rank[2]), narrow) < 1e-6
    for rank in range(1, len(s)):
        error = (lowrank.channel_join(last[:, :rank], first[:rank]) - w).square().sum()
        assert float(error) == pytest.approx(energy_beyond(w.flatten(1), rank), rel=1e-9)


def test_no_random_factors_beat_the_svd() -> None:
    """Eckart-Young against many least-squares fits from random starts."""
    w = randn(8, 6)
    last, _, first = lowrank.channel_svd(w)
    best = float((lowrank.channel_join(last[:, :2], first[:2]) - w).norm())
    for seed in range(50):
        b = randn(8, 2, seed=seed)
        for _ in range(20):
            a = torch.linalg.lstsq(b, w).solution
            b = torch.linalg.lstsq(a.T, w.T).solution.T
        assert float((b @ a - w).norm()) >= best - 1e-9


@pytest.mark.parametrize(("stride", "padding", "dilation"), GEOMETRIES)
def test_factored_convolutions_are_the_perturbed_one(
    stride: tuple, padding: tuple, dilation: tuple
) -> None:
    """All three schemes share out stride, padding and dilation; the bias comes last."""
    w, x, bias = randn(5, 4, 3, 2), randn(2, 4, 11, 10, seed=1), randn(5, seed=2)

    def dense(weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding, dilation)

    last, _, first = lowrank.channel_svd(w)
    last, first = last[:, :2], first[:2]
    found = F.conv2d(F.conv2d(x, first, None, stride, padding, dilation), last, bias)
    assert relative(found, dense(lowrank.channel_join(last, first))) < 1e-13

    last, _, first = lowrank.spatial_svd(w)
    last, first = last[:, :3], first[:3]
    rows = F.conv2d(x, first, None, (stride[0], 1), (padding[0], 0), (dilation[0], 1))
    found = F.conv2d(rows, last, bias, (1, stride[1]), (0, padding[1]), (1, dilation[1]))
    assert relative(found, dense(lowrank.spatial_join(last, first))) < 1e-13

    first, core, last = lowrank.tucker2(w, 3, 2)
    inner = F.conv2d(F.conv2d(x, first), core, None, stride, padding, dilation)
    assert (
        relative(F.conv2d(inner, last, bias), dense(lowrank.tucker2_join(first, core, last)))
        < 1e-13
    )


@pytest.mark.parametrize("shape", [(5, 4, 3, 2), (2, 7, 1, 5), (6, 2, 4, 4)])
def test_spatial_factors_are_exact_and_optimal(shape: tuple[int, ...]) -> None:
    w = randn(*shape)
    last, s, first = lowrank.spatial_svd(w)
    assert relative(lowrank.spatial_join(last, first), w) < 1e-12
    matrix = w.permute(1, 2, 0, 3).reshape(shape[1] * shape[2], -1)
    for rank in (1, len(s) // 2):
        error = (lowrank.spatial_join(last[:, :rank], first[:rank]) - w).square().sum()
        assert float(error) == pytest.approx(energy_beyond(matrix, rank), rel=1e-9)


# -- tucker ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 5, 3, 3), (30, 2, 3, 3), (3, 12, 1, 2), (5, 6, 4)])
def test_tucker_is_exact_at_full_ranks(shape: tuple[int, ...]) -> None:
    w = randn(*shape)
    assert relative(lowrank.tucker2_join(*lowrank.tucker2(w, *shape[:2])), w) < 1e-12
    narrow = w.float()
    assert relative(lowrank.tucker2_join(*lowrank.tucker2(narrow, *shape[:2])), narrow) < 1e-6


@pytest.mark.parametrize("ranks", [(2, 2), (5, 1), (1, 4), (7, 6)])
def test_tucker_iteration_never_loses_to_its_start(ranks: tuple[int, int]) -> None:
    w = randn(8, 7, 3, 3)
    left = torch.linalg.svd(w.flatten(1))[0][:, : ranks[0]]
    right = torch.linalg.svd(w.transpose(0, 1).flatten(1))[0][:, : ranks[1]]
    start = torch.einsum("oikl,op,rp,iq,jq->rjkl", w, left, left, right, right)
    found = lowrank.tucker2_join(*lowrank.tucker2(w, *ranks))
    assert float((found - w).norm()) <= float((start - w).norm()) + 1e-12


def test_tucker_finds_a_planted_core() -> None:
    left, right = torch.linalg.qr(randn(9, 3))[0], torch.linalg.qr(randn(8, 2, seed=1))[0]
    w = torch.einsum("op,pqkl,iq->oikl", left, randn(3, 2, 3, 3, seed=2), right)
    assert relative(lowrank.tucker2_join(*lowrank.tucker2(w, 3, 2)), w) < 1e-12
    assert lowrank.tucker2_ranks(*lowrank.mode_svd(w), 0.999999) == (3, 2)


def test_tucker_factors_are_orthonormal() -> None:
    first, _, last = lowrank.tucker2(randn(9, 8, 3, 3), 4, 3)
    assert torch.allclose(first.flatten(1) @ first.flatten(1).T, torch.eye(3).double(), atol=1e-12)
    assert torch.allclose(last.flatten(1).T @ last.flatten(1), torch.eye(4).double(), atol=1e-12)


@pytest.mark.parametrize("ranks", [(0, 1), (7, 1), (1, 0), (1, 6)])
def test_tucker_refuses_ranks_outside_the_weight(ranks: tuple[int, int]) -> None:
    with pytest.raises(LissomError, match="K001"):
        lowrank.tucker2(randn(6, 5, 3, 3), *ranks)


# -- activation-aware ------------------------------------------------------------------------------


def uneven(rows: int, inputs: int) -> Tensor:
    """Correlated inputs with powers over four orders of magnitude."""
    return (
        randn(rows, inputs, seed=5) * torch.logspace(0, -2, inputs) @ randn(inputs, inputs, seed=6)
    )


def test_whitened_factors_minimise_the_error_of_the_output() -> None:
    w, x = randn(12, 10), uneven(500, 10)
    seen = x.T @ x / len(x)
    last, s, first = lowrank.whitened_svd(w, seen)
    plain_last, _, plain_first = lowrank.channel_svd(w)
    y = x @ w.T
    for rank in (1, 3, 6):
        found = float((x @ lowrank.channel_join(last[:, :rank], first[:rank]).T - y).square().sum())
        assert found == pytest.approx(energy_beyond(y, rank), rel=1e-6)
        assert found / len(x) == pytest.approx(float(s[rank:].square().sum()), rel=1e-6)
        plain = lowrank.channel_join(plain_last[:, :rank], plain_first[:rank])
        assert float((x @ plain.T - y).square().sum()) > found


def test_whitened_agrees_with_the_textbook_inverse() -> None:
    w, x = randn(9, 8), uneven(300, 8)
    seen = x.T @ x / len(x)
    root = torch.linalg.cholesky(seen)
    u, s, v = torch.linalg.svd(w @ root)
    wanted = u[:, :3] @ torch.diag(s[:3]) @ v[:3] @ torch.linalg.inv(root)
    last, _, first = lowrank.whitened_svd(w, seen)
    assert relative(lowrank.channel_join(last[:, :3], first[:3]), wanted) < 1e-6


def test_whitened_is_exact_at_full_rank_even_with_dead_inputs() -> None:
    w, x = randn(6, 9), uneven(100, 9)
    x[:, 4:] = 0
    last, _, first = lowrank.whitened_svd(w, x.T @ x / len(x))
    assert relative(lowrank.channel_join(last, first), w) < 1e-12
    tall = randn(9, 6)
    last, _, first = lowrank.whitened_svd(tall, torch.zeros(6, 6).double())
    assert relative(lowrank.channel_join(last, first), tall) < 1e-10


def test_whitened_convolution_minimises_the_error_of_its_output() -> None:
    w, x = randn(7, 3, 3, 2), randn(4, 3, 9, 8, seed=1).cumsum(-1)
    patches = F.unfold(x, (3, 2), padding=1, stride=2).transpose(1, 2).reshape(-1, 18)
    last, _, first = lowrank.whitened_channel_svd(w, patches.T @ patches / len(patches))
    y = F.conv2d(x, w, padding=1, stride=2)
    cut = lowrank.channel_join(last[:, :2], first[:2])
    error = float((F.conv2d(x, cut, padding=1, stride=2) - y).square().sum())
    assert error == pytest.approx(energy_beyond(y.transpose(0, 1).flatten(1), 2), rel=1e-6)


def test_whitened_refuses_moments_of_another_layer() -> None:
    with pytest.raises(LissomError, match="do not fit 6 inputs"):
        lowrank.whitened_svd(randn(4, 6), torch.eye(5))


# -- bad weights, wrong variants, the table --------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_decompositions_refuse_weights_that_are_not_finite(bad: float) -> None:
    w = randn(4, 4, 3, 3)
    w[1, 2, 0, 0] = bad
    calls = (
        lambda: tensors.svd(w),
        lambda: separable.separable_svd(w, 1),
        lambda: lowrank.channel_svd(w),
        lambda: lowrank.spatial_svd(w),
        lambda: lowrank.tucker2(w, 2, 2),
        lambda: lowrank.mode_svd(w),
    )
    for call in calls:
        with pytest.raises(LissomError, match="1 of 144 values infinite or nan"):
            call()


def wrong_variants() -> dict[str, Tensor]:
    """The output of a rank-8 pair of linears, made wrong in ways a loose budget lets pass."""
    w, x, bias = low_rank_case()
    last, _, first = lowrank.channel_svd(w)
    last, first = last[:, :8], first[:8]

    def run(b: Tensor, a: Tensor, shift: Tensor) -> Tensor:
        return F.linear(F.linear(x, a), b, shift)

    swapped = last[:, [0, 1, 2, 3, 4, 5, 7, 6]]
    return {
        "bias dropped": run(last, first, bias * 0),
        "bias twice": run(last, first, bias * 2),
        "rank off by one": run(last[:, :7], first[:7], bias),
        "half factors": run(last.half().double(), first.half().double(), bias),
        "pairs mismatched": run(swapped, first, bias),
    }


def low_rank_case() -> tuple[Tensor, Tensor, Tensor]:
    w = randn(32, 24) @ torch.diag(torch.logspace(0, -1.5, 24).double())
    return w, randn(64, 24, seed=1), 0.02 * randn(32, seed=2)


@pytest.mark.parametrize("variant", list(wrong_variants()))
def test_wrong_pairs_differ_from_the_perturbed_reference(variant: str) -> None:
    """Against the original they hide in the error of the rank; against the perturbed weight not."""
    w, x, bias = low_rank_case()
    last, _, first = lowrank.channel_svd(w)
    perturbed = lowrank.channel_join(last[:, :8], first[:8])
    reference, original = F.linear(x, perturbed, bias), F.linear(x, w, bias)
    right = F.linear(F.linear(x, first[:8]), last[:, :8], bias)
    wrong = wrong_variants()[variant]
    assert relative(right, reference) < 1e-14
    assert relative(wrong, reference) > 1e-5
    if variant != "pairs mismatched":
        assert relative(wrong, original) < 1.5 * relative(right, original)


def test_every_function_has_one_name() -> None:
    assert sum(len(module.FUNCTIONS) for module in MODULES) == len(FUNCTIONS)
    assert {"svd", "min", "sum", "separable_svd", "tucker2", "scale"} <= FUNCTIONS.keys()
    assert not any(name.endswith("_") for name in FUNCTIONS)


# -- the page that explains all this ---------------------------------------------------------------


def blocks_of(page: str, language: str) -> list[str]:
    text = (Path(__file__).parent.parent / "docs" / page).read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S)


def test_the_example_of_the_documentation_runs() -> None:
    code = "\n".join(blocks_of("kernels.md", "python"))
    names: dict[str, object] = {}
    exec(compile(code, "docs/kernels.md", "exec"), names)
    assert "kron_svd" in names


def test_the_rule_of_the_documentation_is_the_language() -> None:
    (text,) = blocks_of("kernels.md", "lissom")
    file = parse(text, "docs/kernels.md")
    assert [rule.name.text for rule in file.all(tree.Rule)] == ["kron_linear"]
