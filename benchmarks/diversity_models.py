"""Networks drawn by NNSmith (Liu et al. 2023, arXiv:2207.13066), ready to be run and rewritten.

Only its Python interface is used: op set, symbolic generation, concrete graph, layers. Nothing it
saves is read, and its op set is probed in a temporary folder instead of the user's cache. Half of
the networks come from all the ops it has for torch, half from those of neural networks, where
ops that some rule is about are planted in a row now and then.

The same seed gives the same network, alone or after others: the solver works in a new context each
time, and is stopped by its own count of steps, never by a clock.
"""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from diversity_judge import NAMED, Net, Step, inexact
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import z3
    from nnsmith.abstract.dtype import DType
    from nnsmith.abstract.extension import activate_ext, patch_requires
    from nnsmith.abstract.op import Cast, NCHWConv2d, Placeholder
    from nnsmith.abstract.tensor import AbsTensor
    from nnsmith.error import InternalError
    from nnsmith.gir import GraphIR, InstIR
    from nnsmith.graph_gen import SymbolicGen
    from nnsmith.materialize.torch import TorchModelCPU
    from nnsmith.materialize.torch.symbolnet import SymbolNet
    from nnsmith.narrow_spec import infer_topset_from_scratch
    from nnsmith.util import set_seed

LARGEST = 2048
"""Elements of a tensor, at most."""
STEPS = 50_000
"""Of the solver, for one question; a count, so that the answer does not depend on the machine."""
CLOCK = 600_000
"""Milliseconds, after which NNSmith would stop by itself: so many that it never does."""
PROBES = 50
"""Seeds that are tried for the probe of the op set."""
PLANTED = 0.6
"""How often a pair is planted instead of one op, in networks of layers."""

LAYERS = frozenset((
    "core.NCHWConv2d", "core.Conv1d", "core.BatchNorm2d", "torch.Linear", "core.ReLU",
    "core.GELU", "core.LeakyReLU", "core.PReLU", "core.Sigmoid", "core.Softmax",
    "core.MaxPool2d", "core.AvgPool2d", "core.Add", "core.Sub", "core.Mul", "core.Div",
    "core.Concat2", "core.Concat3", "core.Reshape", "torch.Flatten", "core.Transpose",
    "core.Clip", "core.Abs", "core.Neg", "core.ConstPad", "core.Squeeze", "core.ReduceMean",
    "core.NearestInterp",
))  # fmt: skip


class Pointwise(NCHWConv2d):
    """A convolution that looks at one pixel."""

    def requires(self, input_shapes: list[Any]) -> list[Any]:
        one = [self.kernel_h_size == 1, self.kernel_w_size == 1, self.padding == 0]
        return [*super().requires(input_shapes), *one]


class Unpadded(NCHWConv2d):
    """A convolution without padding."""

    def requires(self, input_shapes: list[Any]) -> list[Any]:
        return [*super().requires(input_shapes), self.padding == 0]


def _small(*names: str) -> Callable[[Any, Any], list[Any]]:
    """These settings are at most 3: the solver likes kernels of hundreds of pixels."""
    return lambda op, shapes: [getattr(op, name) <= 3 for name in names]


_CONV = ("kernel_h_size", "kernel_w_size", "stride", "padding", "dilation_h", "dilation_w")
_SMALL = {
    "core.NCHWConv2d": _CONV,
    "core.Pointwise": _CONV,
    "core.Unpadded": _CONV,
    "core.Conv1d": ("kernel_size", "stride", "padding", "dilation"),
}


@cache
def ops() -> dict[str, type[Any]]:
    """The ops that work with this torch, by name. The order of their types is made fixed."""
    logging.getLogger("dtest").setLevel(logging.ERROR)
    TorchModelCPU.add_seed_setter()
    found = _probed()
    admitted = [op for op in TorchModelCPU.operators() if not op.limit_domain]
    for op in (op for op in admitted if op.name() in found):
        kinds = found[op.name()]
        op.in_dtypes, op.out_dtypes = (
            sorted(combinations, key=lambda types: [dtype.name for dtype in types])
            for combinations in (kinds.in_dtypes, kinds.out_dtypes)
        )
    chosen = {op.name(): op for op in admitted if op.name() in found}
    for name, settings in _SMALL.items():
        patch_requires("global", name)(_small(*settings))
    activate_ext([*chosen.values(), Pointwise, Unpadded])
    return chosen


def _probed() -> dict[str, Any]:
    """Which types each op takes. The probe itself is drawn, and sometimes draws what it refuses."""
    model: Any = _Unsaved
    for seed in range(PROBES):
        set_seed(seed)
        z3.z3._main_ctx = None
        try:
            return infer_topset_from_scratch(model, None)
        except InternalError:
            continue
    raise RuntimeError(f"NNSmith's probe of its ops failed with each of {PROBES} seeds")


class _Unsaved(TorchModelCPU):
    """The probe of the op set would write each model to a file."""

    def dump(self, path: Any) -> None:
        pass


@cache
def pairs() -> tuple[tuple[Any, ...], ...]:
    """Ops in a row that some rule is about, and ops that keep it from being applied. An op in a
    tuple takes a constant as well.
    """
    op = {name.partition(".")[2]: kind for name, kind in ops().items()}
    conv, bn, line = op["NCHWConv2d"], op["BatchNorm2d"], op["Linear"]
    constant = [(op[name],) for name in ("Mul", "Add", "Sub", "Div")]
    layers = [(conv, bn), (conv, bn), (Unpadded, bn), (bn, Unpadded), (bn, conv)]
    layers += [(bn, op["MaxPool2d"], Unpadded), (Pointwise, Pointwise), (conv, Pointwise)]
    layers += [(Pointwise, Unpadded), (line, line), (conv, bn, op["ReLU"], Pointwise, bn)]
    around = [(a, b) for k in constant for a, b in ((conv, k), (k, Unpadded), (line, k), (k, line))]
    around += [(op["Conv1d"], k) for k in constant]
    plain = [("ReLU", "ReLU"), ("Sigmoid", "ReLU"), ("Softmax", "ReLU"), ("Abs", "Abs")]
    plain += [("Abs", "ReLU"), ("Neg", "Neg"), ("Clip", "Clip"), ("Clip", "ReLU")]
    plain += [("ReLU", "Clip"), ("Reshape", "Reshape"), ("Flatten", "Reshape")]
    plain += [("Transpose", "Transpose"), ("Squeeze", "Reshape")]
    tidy = [tuple(op[name] for name in names) for names in plain]
    return (*layers, *layers, *layers, *around, *tidy)


class Generator(SymbolicGen):
    """NNSmith's generator, which plants ops in a row and counts its tries."""

    def __init__(self, opset: Sequence[Any], seed: int, planted: Sequence[Any], **how: Any) -> None:
        self.planted, self.tries = planted, 0
        self.row, self.behind, self.constant = False, "", ""
        super().__init__(list(opset), seed, **how)
        self.solver.set("rlimit", STEPS)

    def extra_exit_check(self, max_node_size: int) -> bool:
        self.tries += 1
        return self.tries > 10 * max_node_size

    def try_insert(self) -> None:
        if not self.planted or random.random() > PLANTED:
            return super().try_insert()
        chance, self.forward_prob = self.forward_prob, 1.0
        for item in random.choice(self.planted):
            self.row = isinstance(item, tuple)
            if not self.try_insert_node_type(item[0] if self.row else item):
                break
            self.behind = self.ir.insts[-1].retval()
        self.row, self.behind, self.forward_prob = False, "", chance
        return None

    def pick_var_group(
        self, ndim_list: Any, dtype_combs_spec: Any, var_candidates: Any = None
    ) -> list[str]:
        """In a row: the value made last, and beside it a new constant where one is wanted."""
        if not self.behind and not self.row:
            return super().pick_var_group(ndim_list, dtype_combs_spec, var_candidates)
        known = [self.behind] if self.behind else None
        first = super().pick_var_group(ndim_list[:1], [(DType.float32,)], known)
        if len(ndim_list) == 1:
            return first
        shape = self.ir.vars[first[0]].shape
        beside = Placeholder(AbsTensor(_beside(shape), DType.float32))
        self.constant = self.forward_insert_node(beside.to_const(), []).retval()
        return [*first, self.constant]

    def try_forward_insert_at(self, node: Any, input_vars: list[str]) -> bool:
        done = super().try_forward_insert_at(node, input_vars)
        if self.constant and not done:
            self.ir.remove_unused(self.ir.find_inst_by_id(self._number(self.constant)))
        self.constant = ""
        return done

    def _number(self, name: str) -> int:
        return InstIR.var_inst_idx(name)[0]


def _beside(shape: Sequence[Any]) -> list[Any]:
    """The shape of a constant: one number, one for each channel or feature, or one for each
    element.
    """
    axis = random.choice((1, len(shape) - 1))
    kind = random.choice(("number", "channel", "channel", "all"))
    if kind == "number" or axis >= len(shape):
        return []
    one = [size if at == axis else 1 for at, size in enumerate(shape)]
    return one if kind == "channel" else list(shape)


# -- from a drawn graph to a network ---------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """A network in eval mode, and how its inputs are drawn: the same number, the same inputs."""

    net: Net
    layers: bool
    text: str
    kinds: tuple[tuple[tuple[int, ...], torch.dtype], ...]

    def inputs(self, seed: int) -> tuple[Tensor, ...]:
        """Standard normal numbers; whole numbers from -4 to 4, or 0 to 4; truth values."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(_input(shape, dtype, generator) for shape, dtype in self.kinds)


class Undrawn(Exception):
    """NNSmith gave up."""


def draw(seed: str) -> Drawn:
    """The network of a seed: 5 to 20 ops, of all kinds or those of layers. Raises `Undrawn`."""
    source = random.Random(seed)
    layers, size, number = source.random() < 0.5, source.randint(5, 20), source.getrandbits(31)
    try:
        graph = _graph(layers, size, number, symbolic=source.random() < 0.5)
        torch.manual_seed(number)
        return _drawn(SymbolNet(graph), layers)
    except (InternalError, AssertionError, z3.Z3Exception) as error:
        raise Undrawn(f"{seed}: {error}") from error


def _graph(layers: bool, size: int, number: int, *, symbolic: bool) -> GraphIR:
    chosen = [op for name, op in ops().items() if not layers or name in LAYERS]
    planted = pairs() if layers else ()
    # Expressions are numbered in a context, and their numbers steer the solver.
    z3.z3._main_ctx = None
    how: dict[str, Any] = {"max_elem_per_tensor": LARGEST, "concr_ph_dim_rng": (1, 12)}
    if layers:
        how |= {"rank_choices": [4, 4, 4, 3, 2], "init_fp": True, "dtype_choices": ["float32"]}
    generator = Generator(chosen, number, planted, symbolic_init=symbolic, **how)
    generator.abstract_gen(max_node_size=size, max_gen_millisec=CLOCK)
    return generator.make_concrete()


def _drawn(symbolic: SymbolNet, layers: bool) -> Drawn:
    found: list[nn.Module] = []
    steps = [_step(found, *entry) for entry in symbolic.instructions]
    inputs, outputs = list(symbolic.input_map), list(symbolic.output_map)
    net = NAMED.get(len(inputs), Net)(found, steps, inputs, outputs)
    _fill(net)
    concrete: list[Any] = list(symbolic.input_map.values())
    kinds = tuple((tuple(value.shape), value.dtype.torch()) for value in concrete)
    return Drawn(net.eval().requires_grad_(False), layers, symbolic.ir.pretty(), kinds)


def _step(found: list[nn.Module], call: Any, args: Any, outs: Any, op: Any) -> Step:
    (out,) = outs
    kind, args = type(op).__name__, tuple(args)
    if isinstance(call, nn.Module):
        found.append(call)
        return Step(kind, args, out, layer=len(found) - 1)
    if isinstance(op, Cast):
        return _cast(kind, args, out, op.extra_attrs["to"].torch())
    name = getattr(call, "__name__", "")
    if isinstance(call, type(Tensor.flatten)) and hasattr(Tensor, name):
        # A function of tensors alone cannot be traced; models call the method of a value.
        return Step(kind, args, out, call=lambda value: getattr(value, name)())
    return Step(kind, args, out, call=call)


def _cast(kind: str, args: tuple[str, ...], out: str, to: torch.dtype) -> Step:
    wide = torch.float64 if inexact(to) else to
    return Step(kind, args, out, call=lambda x: x.to(to), wide=lambda x: x.to(wide))


def _fill(net: Net) -> None:
    """Weights of any size, channels that are negative or zero, statistics that are not fresh."""
    for layer in net.layers:
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2.0)
            layer.weight.data.uniform_(-1.5, 1.5)
            layer.bias.data.normal_()
        elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):
            fan = layer.weight[0].numel()
            layer.weight.data.normal_(0, random.choice((0.5, 1.0, 2.0)) / fan**0.5)


def _input(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    if inexact(dtype):
        wide = torch.complex128 if dtype.is_complex else torch.float64
        return torch.randn(shape, generator=generator, dtype=wide).to(dtype)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).to(dtype)
    least = -4 if dtype.is_signed else 0
    return torch.randint(least, 5, shape, generator=generator).to(dtype)
