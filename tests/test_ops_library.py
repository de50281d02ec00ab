"""Every spelling of an op, traced by torch.fx, is the same call; its shape is as declared; written anew it computes the same."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from lissom.rewrite.emit import emit
from lissom.rewrite.ops import Vocabulary
from lissom.rewrite.spec import spec_of
from lissom.rewrite.view import Call, View


class Held(nn.Module):
    """A function of inputs and of the parameters it is given."""

    def __init__(self, function: Callable[..., Any], *tensors: torch.Tensor | None) -> None:
        super().__init__()
        self.function = function
        for i, tensor in enumerate(tensors):
            self.register_parameter(f"p{i}", None if tensor is None else nn.Parameter(tensor))
        self.count = len(tensors)

    def forward(self, x: Any) -> Any:
        return self.function(x, *(getattr(self, f"p{i}") for i in range(self.count)))


ARITY = {
    1: lambda f: lambda x: f(x),
    2: lambda f: lambda x, y: f(x, y),
    3: lambda f: lambda x, y, z: f(x, y, z),
}


class Recorder(fx.Interpreter):
    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        node.meta["val"] = spec_of(result)
        return result


def traced(spelling: Any, inputs: tuple[Any, ...]) -> tuple[fx.GraphModule, fx.Node, Any]:
    """The graph of a spelling, the node of the op, and what it computes."""
    leaf = isinstance(spelling, nn.Module) and not isinstance(spelling, (Held, nn.Sequential))
    bare = spelling if isinstance(spelling, nn.Module) else ARITY[len(inputs)](spelling)
    root = fx.symbolic_trace(nn.Sequential(spelling) if leaf else bare)
    torch.manual_seed(0)
    result = Recorder(root).run(*(i.clone() if isinstance(i, torch.Tensor) else i for i in inputs))
    output = next(node for node in root.graph.nodes if node.op == "output")
    return root, output.args[0], result


def canonical(call: Call) -> tuple[Any, ...]:
    shapes = {name: spec and spec.shape for name, spec in call.param_specs().items()}
    operands = [v if isinstance(v, (int, float)) else type(v).__name__ for v in call.inputs]
    return call.op.name, operands, shapes, call.attrs


X4, X3, X2 = torch.randn(2, 4, 6, 5), torch.randn(2, 4, 7), torch.randn(3, 4)
X5 = torch.randn(1, 4, 4, 5, 6)
W1, W2, W3 = torch.randn(6, 4, 3), torch.randn(6, 2, 3, 3), torch.randn(6, 4, 2, 2, 2)
T1, T2, T3 = torch.randn(4, 6, 3), torch.randn(4, 3, 3, 3), torch.randn(4, 6, 2, 2, 2)
B6, B4, WL = torch.randn(6), torch.randn(4), torch.randn(6, 4)
IDS, TABLE = torch.tensor([[1, 0, 2]]), torch.randn(5, 4)


Z3, Z4 = torch.randn(2, 3, 4), torch.randn(2, 4, 6, 4)
Y3, POS = torch.randn(2, 3, 4), torch.rand(2, 3, 4) + 0.5
INTS, FLAGS = torch.arange(24).reshape(2, 3, 4), torch.rand(2, 3, 4) > 0.5
SQUARE = torch.randn(2, 4, 4)


def filled(module: nn.Module, *tensors: torch.Tensor | None) -> nn.Module:
    """The module with these parameters, in their order, in eval mode."""
    for parameter, tensor in zip(module.parameters(), tensors, strict=False):
        parameter.data = tensor if tensor is not None else parameter.data
    return module.eval()


def functional(function: Callable[..., Any], *settings: Any, **named: Any) -> Callable[..., Any]:
    return lambda *values: function(*values, *settings, **named)


def activation(name: str, module: nn.Module, *functions: Callable[..., Any]) -> tuple[Any, ...]:
    return name, (X4,), [module, *functions]


def binary(
    op: str, *spellings: Callable[..., Any], operands: tuple[Any, ...] = (Z3, Y3)
) -> tuple[Any, ...]:
    return op, operands, list(spellings)


def unary(op: str, *more: Callable[[Any], Any], value: torch.Tensor = POS) -> tuple[Any, ...]:
    named = getattr(torch, op)
    return op, (value,), [lambda x: named(x), lambda x: getattr(x, op)(), *more]


ACTIVATIONS = [
    activation("relu", nn.ReLU(), nn.Sequential(nn.Softsign(), nn.ReLU(inplace=True)),
         F.relu, torch.relu, lambda x: x.relu(),
               lambda x: F.relu(x + 0.0, inplace=True), lambda x: (x + 0.0).relu_()),
    activation("hardtanh", nn.ReLU6(), nn.Hardtanh(0.0, 6.0), F.relu6,
         lambda x: F.hardtanh(x, 0.0, 6.0),
               lambda x: F.relu6(x + 0.0, True), lambda x: F.hardtanh(x, min_val=0, max_val=6)),
    activation("hardtanh", nn.Hardtanh(), F.hardtanh),
    activation("leaky_relu", nn.LeakyReLU(), F.leaky_relu,
         lambda x: F.leaky_relu(x + 0.0, 0.01, inplace=True)),
    activation("elu", nn.ELU(2.0), lambda x: F.elu(x, 2.0), lambda x: F.elu(x, alpha=2)),
    activation("celu", nn.CELU(), F.celu, torch.celu),
    activation("selu", nn.SELU(), F.selu, torch.selu),
    activation("gelu", nn.GELU(), F.gelu, lambda x: F.gelu(x, approximate="none")),
    activation("gelu", nn.GELU("tanh"), lambda x: F.gelu(x, approximate="tanh")),
    activation("silu", nn.SiLU(), F.silu, lambda x: F.silu(x + 0.0, True)),
    activation("mish", nn.Mish(), F.mish),
    activation("sigmoid", nn.Sigmoid(), F.sigmoid, torch.sigmoid,
         lambda x: x.sigmoid(), torch.special.expit),
    activation("tanh", nn.Tanh(), F.tanh, torch.tanh, lambda x: x.tanh(),
         lambda x: (x * 1.0).tanh_()),
    activation("hardsigmoid", nn.Hardsigmoid(), F.hardsigmoid),
    activation("hardswish", nn.Hardswish(), F.hardswish),
    activation("logsigmoid", nn.LogSigmoid(), F.logsigmoid),
    activation("softplus", nn.Softplus(), F.softplus),
    activation("softsign", nn.Softsign(), F.softsign),
    activation("tanhshrink", nn.Tanhshrink(), F.tanhshrink),
    activation("softshrink", nn.Softshrink(), F.softshrink),
    activation("hardshrink", nn.Hardshrink(), F.hardshrink, lambda x: x.hardshrink(0.5)),
    activation("threshold", nn.Threshold(0.1, 2.0), lambda x: F.threshold(x, 0.1, 2.0)),
    activation("rrelu", nn.RReLU().eval(), F.rrelu),
    activation("glu", nn.GLU(1), lambda x: F.glu(x, 1)),
    activation("softmax", nn.Softmax(1), lambda x: F.softmax(x, 1), lambda x: x.softmax(dim=1),
               lambda x: torch.softmax(x, axis=1)),
    activation("softmax", nn.Softmax2d(), lambda x: F.softmax(x, dim=-3)),
    activation("log_softmax", nn.LogSoftmax(-1), lambda x: F.log_softmax(x, dim=-1),
         lambda x: x.log_softmax(-1)),
    activation("softmin", nn.Softmin(1), lambda x: F.softmin(x, dim=1)),
    ("prelu", (X4,), [filled(nn.PReLU(4), B4), Held(F.prelu, B4), Held(torch.prelu, B4)]),
]  # fmt: skip

WEIGHTED = [
    ("conv1d", (X3,), [filled(nn.Conv1d(4, 6, 3, 2, 1), W1, B6),
         Held(functional(F.conv1d, 2, 1), W1, B6),
                       Held(functional(torch.conv1d, stride=(2,), padding=1), W1, B6)]),
    ("conv1d", (X3,), [filled(nn.Conv1d(4, 6, 3, padding="same"), W1, B6),
         filled(nn.Conv1d(4, 6, 3, padding=1), W1, B6),
                       Held(functional(F.conv1d, 1, "same"), W1, B6)]),
    ("conv2d", (X4,), [filled(nn.Conv2d(4, 6, 3, groups=2, bias=False), W2),
         Held(functional(F.conv2d, None, groups=2), W2),
                       filled(nn.Conv2d(4, 6, 3, groups=2, bias=False, padding="valid"), W2)]),
    ("conv3d", (X5,), [filled(nn.Conv3d(4, 6, 2, dilation=2), W3, B6),
         Held(functional(F.conv3d, dilation=2), W3, B6)]),
    ("conv_transpose1d", (X3,), [filled(nn.ConvTranspose1d(4, 6, 3, 2, output_padding=1), T1, B6),
                                 Held(functional(F.conv_transpose1d, 2, 0, 1), T1, B6)]),
    ("conv_transpose2d", (X4,), [filled(nn.ConvTranspose2d(4, 6, 3, 2, 1, groups=2, bias=False),
         T2),
                                 Held(functional(F.conv_transpose2d, None, 2, (1, 1), groups=2),
                                 T2)]),
    ("conv_transpose3d", (X5,), [filled(nn.ConvTranspose3d(4, 6, 2), T3, B6),
         Held(F.conv_transpose3d, T3, B6)]),
    ("linear", (X2,), [filled(nn.Linear(4, 6), WL, B6), Held(F.linear, WL, B6)]),
    ("linear", (torch.randn(2, 3, 4),), [filled(nn.Linear(4, 6, bias=False), WL),
         Held(F.linear, WL)]),
    ("embedding", (IDS,), [filled(nn.Embedding(5, 4), TABLE), Held(F.embedding, TABLE)]),
    ("layer_norm", (X2,), [filled(nn.LayerNorm(4), B4, B4),
         Held(lambda x, w, b: F.layer_norm(x, (4,), w, b), B4, B4),
                           Held(lambda x, w, b: torch.layer_norm(x, [4], w, b, 1e-5), B4, B4)]),
    ("rms_norm", (X2,), [filled(nn.RMSNorm(4), B4), Held(lambda x, w: F.rms_norm(x, (4,), w), B4)]),
    ("group_norm", (X4,), [filled(nn.GroupNorm(2, 4), B4, B4),
         Held(lambda x, w, b: F.group_norm(x, 2, w, b), B4, B4)]),
    ("instance_norm", (X4,), [nn.InstanceNorm2d(4).eval(), F.instance_norm]),
    ("local_response_norm", (X4,), [nn.LocalResponseNorm(2),
         lambda x: F.local_response_norm(x, 2)]),
    ("normalize", (X4,), [F.normalize, lambda x: F.normalize(x, p=2, dim=1)]),
]  # fmt: skip

POOLING = [
    ("max_pool1d", (X3,), [nn.MaxPool1d(3, 2, 1), lambda x: F.max_pool1d(x, 3, 2, 1),
         lambda x: torch.max_pool1d(x, (3,), 2, 1)]),
    ("max_pool2d", (X4,), [nn.MaxPool2d(2), lambda x: F.max_pool2d(x, 2),
         lambda x: F.max_pool2d(x, (2, 2), stride=2)]),
    ("max_pool2d", (X4,), [nn.MaxPool2d(3, 2, 1, ceil_mode=True),
         lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True)]),
    ("max_pool3d", (X5,), [nn.MaxPool3d(2, 1), lambda x: F.max_pool3d(x, 2, 1)]),
    ("avg_pool1d", (X3,), [nn.AvgPool1d(2), lambda x: F.avg_pool1d(x, 2)]),
    ("avg_pool2d", (X4,), [nn.AvgPool2d(2, count_include_pad=False),
         lambda x: F.avg_pool2d(x, 2, count_include_pad=False)]),
    ("avg_pool3d", (X5,), [nn.AvgPool3d(2), lambda x: F.avg_pool3d(x, 2)]),
    ("adaptive_avg_pool1d", (X3,), [nn.AdaptiveAvgPool1d(3),
         lambda x: F.adaptive_avg_pool1d(x, 3)]),
    ("adaptive_avg_pool2d", (X4,), [nn.AdaptiveAvgPool2d(1),
         lambda x: F.adaptive_avg_pool2d(x, (1, 1))]),
    ("adaptive_avg_pool2d", (X4,), [nn.AdaptiveAvgPool2d((None, 2)),
         lambda x: F.adaptive_avg_pool2d(x, (None, 2))]),
    ("adaptive_avg_pool3d", (X5,), [nn.AdaptiveAvgPool3d(2),
         lambda x: F.adaptive_avg_pool3d(x, 2)]),
    ("adaptive_max_pool1d", (X3,), [nn.AdaptiveMaxPool1d(2),
         lambda x: F.adaptive_max_pool1d(x, 2)]),
    ("adaptive_max_pool2d", (X4,), [nn.AdaptiveMaxPool2d(2),
         lambda x: F.adaptive_max_pool2d(x, 2)]),
    ("adaptive_max_pool3d", (X5,), [nn.AdaptiveMaxPool3d(2),
         lambda x: F.adaptive_max_pool3d(x, 2)]),
    ("pad", (X4,), [nn.ZeroPad2d(1), nn.ConstantPad2d((1, 1, 1, 1), 0.0),
         lambda x: F.pad(x, (1, 1, 1, 1)),
                    lambda x: F.pad(x, [1, 1, 1, 1], "constant", 0)]),
    ("pad", (X4,), [nn.ReflectionPad2d(1), lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect")]),
    ("pad", (X3,), [nn.ReplicationPad1d((1, 2)), lambda x: F.pad(x, (1, 2), "replicate")]),
    ("pad", (X3,), [nn.CircularPad1d(2), lambda x: F.pad(x, (2, 2), "circular")]),
    ("interpolate", (X4,), [nn.Upsample(scale_factor=2), nn.UpsamplingNearest2d(scale_factor=2),
                            lambda x: F.interpolate(x, scale_factor=2.0)]),
    ("interpolate", (X4,), [nn.Upsample((9, 8), mode="bilinear", align_corners=False),
                            lambda x: F.interpolate(x, (9, 8), mode="bilinear",
                            align_corners=False)]),
    ("dropout", (X4,), [nn.Dropout(0.2).eval(), lambda x: F.dropout(x, 0.2, False),
         lambda x: torch.dropout(x, 0.2, False)]),
    ("dropout", (X4,), [nn.Dropout(), F.dropout]),
    ("dropout1d", (X3,), [nn.Dropout1d().eval(), lambda x: F.dropout1d(x, training=False)]),
    ("dropout2d", (X4,), [nn.Dropout2d().eval(), lambda x: F.dropout2d(x, training=False)]),
    ("dropout3d", (X5,), [nn.Dropout3d().eval(), lambda x: F.dropout3d(x, training=False)]),
    ("alpha_dropout", (X4,), [nn.AlphaDropout().eval(), F.alpha_dropout]),
    ("feature_alpha_dropout", (X4,), [nn.FeatureAlphaDropout().eval(), F.feature_alpha_dropout]),
    ("identity", (X4,), [nn.Identity()]),
]  # fmt: skip

ARITHMETIC = [
    binary("add", lambda x, y: x + y, torch.add, lambda x, y: x.add(y),
         lambda x, y: (x * 1).add_(y),
           lambda x, y: operator.iadd(x * 1, y)),
    binary("add", lambda x, y: torch.add(x, y, alpha=2), lambda x, y: x.add(y, alpha=2)),
    binary("add", lambda x, y: x + 2, lambda x, y: torch.add(x, 2), lambda x, y: x.add(2)),
    binary("sub", lambda x, y: x - y, torch.sub, lambda x, y: x.sub(y),
         lambda x, y: torch.rsub(y, x)),
    binary("mul", lambda x, y: x * y, torch.mul, torch.multiply, lambda x, y: x.mul(y),
         lambda x, y: (x + 0).mul_(y)),
    binary("mul", lambda x, y: 0.5 * x),
    binary("div", lambda x, y: x / y, torch.div, torch.true_divide,
         lambda x, y: x.div(y), operands=(Z3, POS)),
    binary("div", lambda x, y: torch.div(x, y, rounding_mode="floor"), operands=(Z3, POS)),
    binary("floor_divide", lambda x, y: x // y,
         torch.floor_divide, operands=(INTS, torch.tensor(3))),
    binary("remainder", lambda x, y: x % y, torch.remainder,
         lambda x, y: x.remainder(y), operands=(INTS, torch.tensor(3))),
    binary("pow", lambda x, y: x**2, lambda x, y: x.pow(2), lambda x, y: torch.pow(x, 2)),
    binary("maximum", torch.maximum, torch.max,
         lambda x, y: x.max(y), operands=(Z3, torch.randn(4))),
    binary("minimum", torch.minimum, torch.min, lambda x, y: x.min(y)),
    binary("atan2", torch.atan2),
    *(binary(op, getattr(torch, op), getattr(operator, op), lambda x, y, op=op: getattr(x, op)(y))
      for op in ("eq", "ne", "lt", "le", "gt", "ge")),
    *(binary(op,
         getattr(torch, op), operands=(FLAGS, ~FLAGS)) for op in ("logical_and", "logical_or",
         "logical_xor")),
    binary("bitwise_and", lambda x, y: x & y, torch.bitwise_and, operands=(FLAGS, ~FLAGS)),
    binary("bitwise_or", lambda x, y: x | y, torch.bitwise_or, operands=(FLAGS, ~FLAGS)),
    binary("bitwise_xor", lambda x, y: x ^ y, torch.bitwise_xor, operands=(FLAGS, ~FLAGS)),
    unary("bitwise_not", lambda x: ~x, value=FLAGS),
    unary("logical_not", value=FLAGS),
    *(unary(op) for op in ("exp", "expm1", "log", "log1p", "log2", "log10", "sqrt", "rsqrt",
         "reciprocal", "square")),
    *(unary(op) for op in ("sin", "cos", "tan", "atan", "sinh", "cosh", "erf", "floor", "ceil",
         "round", "trunc", "sign")),
    *(unary(op) for op in ("isnan", "isinf")),
    *(unary(op, value=POS - 0.9) for op in ("asin", "acos")),
    unary("neg", lambda x: -x, torch.negative),
    unary("abs", abs, torch.absolute, value=Z3),
    ("clamp", (Z3,), [lambda x: x.clamp(0.0, 1.0), lambda x: torch.clamp(x, min=0.0, max=1.0),
         lambda x: x.clip(0.0, 1.0)]),
    ("clamp", (Z3,), [lambda x: x.clamp_min(0.0), lambda x: x.clamp(min=0.0)]),
    ("where", (FLAGS, Z3, Y3), [torch.where, lambda c, x, y: x.where(c, y)]),
    ("masked_fill", (Z3, FLAGS), [lambda x, m: x.masked_fill(m, -1.0),
         lambda x, m: torch.masked_fill(x, m, -1.0)]),
    ("lerp", (Z3, Y3), [lambda x, y: torch.lerp(x, y, 0.25), lambda x, y: x.lerp(y, 0.25)]),
    ("addcmul", (Z3, Y3, POS), [torch.addcmul, lambda z, x, y: z.addcmul(x, y)]),
    ("cast", (Z3,), [lambda x: x.to(torch.float64), lambda x: x.double(),
         lambda x: x.to(dtype=torch.float64)]),
    ("cast", (INTS,), [lambda x: x.float(), lambda x: x.type(torch.float32)]),
    ("cast", (Z3,), [lambda x: x.half()]),
    ("cast", (Z3,), [lambda x: x.bfloat16()]),
    ("cast", (Z3,), [lambda x: x.long(), lambda x: x.to(torch.int64)]),
    ("cast", (Z3,), [lambda x: x.int()]),
    ("cast", (Z3,), [lambda x: x.bool()]),
]  # fmt: skip

PRODUCTS = [
    binary("matmul", lambda x, y: x @ y, torch.matmul,
         lambda x, y: x.matmul(y), operands=(Z3, SQUARE)),
    binary("matmul", torch.mm, torch.matmul,
         lambda x, y: x.mm(y), operands=(X2, torch.randn(4, 2))),
    binary("matmul", torch.matmul, operands=(torch.randn(2, 3, 5, 4), torch.randn(4, 2))),
    binary("bmm", torch.bmm, lambda x, y: x.bmm(y), operands=(Z3, SQUARE)),
    ("baddbmm", (torch.randn(4), Z3, SQUARE), [torch.baddbmm, lambda z, x, y: z.baddbmm(x, y)]),
    ("addmm", (torch.randn(2), X2, torch.randn(4, 2)), [torch.addmm,
         lambda z, x, y: torch.addmm(z, x, y, beta=1)]),
    binary("einsum", lambda x, y: torch.einsum("bij,bjk->bik", x, y), operands=(Z3, SQUARE)),
    ("scaled_dot_product_attention", (Z4, Z4, Z4), [F.scaled_dot_product_attention,
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, None, 0.0, False)]),
    ("scaled_dot_product_attention", (Z4, Z4, Z4), [lambda q, k,
         v: F.scaled_dot_product_attention(q, k, v, is_causal=True)]),
]  # fmt: skip

MOVES = [
    ("reshape", (Z3,), [lambda x: x.reshape(2, 12), lambda x: x.view(2, 12),
         lambda x: torch.reshape(x, (2, 12)),
                        lambda x: x.view((2, 12)), lambda x: x.reshape([2, 12])]),
    ("reshape", (Z3,), [lambda x: x.view(-1)]),
    ("flatten", (Z3,), [nn.Flatten(), lambda x: x.flatten(1), lambda x: torch.flatten(x, 1)]),
    ("flatten", (Z3,), [torch.flatten, torch.ravel, lambda x: x.ravel()]),
    ("unflatten", (Z3,), [nn.Unflatten(2, (2, 2)), lambda x: x.unflatten(2, (2, 2)),
         lambda x: torch.unflatten(x, 2, (2, 2))]),
    ("permute", (Z3,), [lambda x: x.permute(2, 0, 1), lambda x: x.permute((2, 0, 1)),
         lambda x: torch.permute(x, (2, 0, 1))]),
    ("transpose", (Z3,), [lambda x: x.transpose(1, 2), lambda x: torch.transpose(x, 1, 2),
         lambda x: x.swapaxes(1, 2),
                          lambda x: torch.swapdims(x, 1, 2)]),
    ("transpose", (X2,), [lambda x: x.t(), torch.t, lambda x: x.transpose(0, 1)]),
    ("movedim", (Z3,), [lambda x: x.movedim(0, 2), lambda x: torch.movedim(x, 0, 2),
         lambda x: torch.moveaxis(x, 0, 2)]),
    ("squeeze", (Z3[:1],), [lambda x: x.squeeze(0), lambda x: torch.squeeze(x, dim=0)]),
    ("squeeze", (Z3[:1],), [lambda x: x.squeeze(), torch.squeeze]),
    ("unsqueeze", (Z3,), [lambda x: x.unsqueeze(1), lambda x: torch.unsqueeze(x, 1)]),
    ("expand", (Z3[:1],), [lambda x: x.expand(5, -1, -1),
         lambda x: torch.broadcast_to(x, (5, -1, -1))]),
    ("repeat", (X2,), [lambda x: x.repeat(2, 1, 3), lambda x: x.repeat((2, 1, 3))]),
    ("repeat_interleave", (Z3,), [lambda x: x.repeat_interleave(2, 1),
         lambda x: torch.repeat_interleave(x, 2, dim=1)]),
    ("contiguous", (Z3,), [lambda x: x.contiguous()]),
    ("clone", (Z3,), [lambda x: x.clone(), torch.clone]),
    ("detach", (Z3,), [lambda x: x.detach()]),
    binary("cat", lambda x, y: torch.cat([x, y], 1), lambda x, y: torch.cat((x, y), dim=1),
         lambda x, y: torch.concat([x, y], axis=1)),
    binary("stack", lambda x, y: torch.stack([x, y], -1), lambda x, y: torch.stack((x, y), dim=-1)),
    ("split", (Z4,), [lambda x: x.split(2, 1), lambda x: torch.split(x, 2, dim=1)]),
    ("split", (Z4,), [lambda x: torch.split(x, [1, 3], 1), lambda x: x.split((1, 3), dim=1)]),
    ("chunk", (Z4,), [lambda x: x.chunk(2, 1), lambda x: torch.chunk(x, 2, dim=1)]),
    ("unbind", (Z3,), [lambda x: x.unbind(1), lambda x: torch.unbind(x, dim=1)]),
    ("getitem", (Z4,), [lambda x: x[:, 1:3, ..., None]]),
    ("getitem", (Z4,), [lambda x: x[0]]),
    ("narrow", (Z3,), [lambda x: x.narrow(1, 0, 2), lambda x: torch.narrow(x, 1, 0, 2)]),
    ("select", (Z3,), [lambda x: x.select(1, 0), lambda x: torch.select(x, 1, 0)]),
    ("index_select", (Z3, IDS[0]), [lambda x, i: x.index_select(1, i),
         lambda x, i: torch.index_select(x, 1, i)]),
    ("gather", (X2, IDS), [lambda x, i: x.gather(1, i), lambda x, i: torch.gather(x, 1, i)]),
    ("roll", (Z3,), [lambda x: x.roll(1, 2), lambda x: torch.roll(x, (1,), dims=(2,))]),
    ("flip", (Z3,), [lambda x: x.flip(1), lambda x: torch.flip(x, [1])]),
    ("tril", (X2,), [torch.tril, lambda x: x.tril()]),
    ("triu", (X2,), [lambda x: torch.triu(x, 1), lambda x: x.triu(diagonal=1)]),
    ("pixel_shuffle", (Z4,), [nn.PixelShuffle(2), lambda x: F.pixel_shuffle(x, 2)]),
    ("pixel_unshuffle", (Z4,), [nn.PixelUnshuffle(2), lambda x: F.pixel_unshuffle(x, 2)]),
    ("channel_shuffle", (Z4,), [nn.ChannelShuffle(2), lambda x: F.channel_shuffle(x, 2)]),
    ("unfold", (Z4,), [nn.Unfold(2), lambda x: F.unfold(x, 2)]),
]  # fmt: skip

REDUCTIONS = [
    ("sum", (Z3,), [torch.sum, lambda x: x.sum()]),
    ("sum", (Z3,), [lambda x: x.sum(1), lambda x: x.sum((1,)),
         lambda x: torch.sum(x, dim=[1]), lambda x: x.sum(axis=1)]),
    ("mean", (Z4,), [lambda x: x.mean((2, 3), keepdim=True),
         lambda x: torch.mean(x, dim=[2, 3], keepdims=True)]),
    ("nansum", (Z3,), [torch.nansum, lambda x: x.nansum()]),
    ("prod", (Z3,), [lambda x: x.prod(1), lambda x: torch.prod(x, dim=1)]),
    ("amax", (Z3,), [lambda x: x.amax(1), lambda x: torch.amax(x, dim=(1,))]),
    ("amax", (Z3,), [torch.max, lambda x: x.max(), torch.amax]),
    ("amin", (Z3,), [torch.min, lambda x: x.amin()]),
    ("max", (Z3,), [lambda x: x.max(1), lambda x: torch.max(x, dim=1)]),
    ("min", (Z3,), [lambda x: x.min(1, True), lambda x: torch.min(x, 1, keepdim=True)]),
    ("var", (Z3,), [lambda x: x.var(1), lambda x: torch.var(x, dim=1),
         lambda x: x.var(1, True), lambda x: x.var(1, correction=1)]),
    ("var", (Z3,), [lambda x: x.var(1, unbiased=False), lambda x: torch.var(x, 1, False),
         lambda x: x.var(dim=1, correction=0)]),
    ("std", (Z3,), [torch.std, lambda x: x.std()]),
    ("argmax", (Z3,), [lambda x: x.argmax(1), lambda x: torch.argmax(x, dim=1)]),
    ("argmin", (Z3,), [torch.argmin, lambda x: x.argmin()]),
    ("any", (FLAGS,), [torch.any, lambda x: x.any()]),
    ("all", (FLAGS,), [lambda x: torch.all(x, 1), lambda x: x.all(dim=1)]),
    ("logsumexp", (Z3,), [lambda x: x.logsumexp(1), lambda x: torch.logsumexp(x, dim=(1,))]),
    ("norm", (Z3,), [lambda x: x.norm(2, 1), lambda x: x.norm(p=2, dim=1)]),
    ("cumsum", (Z3,), [lambda x: x.cumsum(1), lambda x: torch.cumsum(x, dim=1)]),
    ("topk", (Z3,), [lambda x: x.topk(2), lambda x: torch.topk(x, 2, -1)]),
    ("sort", (Z3,), [lambda x: x.sort(), torch.sort]),
]  # fmt: skip

CASES = ACTIVATIONS + WEIGHTED + POOLING + ARITHMETIC + PRODUCTS + MOVES + REDUCTIONS


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_every_spelling_is_one_call(case: tuple[Any, ...]) -> None:
    op, inputs, spellings = case
    first = None
    for spelling in spellings:
        root, node, _ = traced(spelling, inputs)
        call = View(root).call(node)
        assert call is not None, View(root).why_opaque(node)
        assert call.op.name == op
        assert canonical(call) == (first := first or canonical(call))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_shapes_and_meaning_agree_with_torch(case: tuple[Any, ...]) -> None:
    _, inputs, spellings = case
    for spelling in spellings:
        check_result(spelling, inputs)


def check_result(spelling: Any, inputs: tuple[Any, ...]) -> None:
    """Declared result, run before inserting, and run after inserting: all as the traced model."""
    root, node, expected = traced(spelling, inputs)
    call = View(root).call(node)
    assert call is not None
    specs = call.op.result_specs(call)
    assert specs == (
        node.meta["val"] if isinstance(node.meta["val"], (tuple, list)) else (node.meta["val"],)
    )
    like = root.get_submodule(node.target) if node.op == "call_module" else None
    params = {name: call.tensor(name) for name in call.params}
    new = emit(call.op, call.inputs, params, call.attrs, like)
    inserted = new.insert(root, node, "fresh.layer")
    node.replace_all_uses_with(inserted)
    root.graph.lint()
    root.recompile()
    torch.manual_seed(0)
    torch.testing.assert_close(root(*inputs), expected, rtol=0, atol=0)
    again = View(root).call(inserted)
    assert again is not None
    assert canonical(again) == canonical(call)


def test_every_op_of_the_library_is_in_the_tables() -> None:
    separately = {"batch_norm", "multihead_attention"}
    named = {case[0] for case in CASES}
    assert named | separately == set(Vocabulary.library().names())
