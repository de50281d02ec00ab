"""Arithmetic, products, data movement and reductions in all their spellings: (op, inputs,
spellings) each.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
Z3, Z4 = torch.randn(2, 3, 4), torch.randn(2, 4, 6, 4)
Y3, POS = torch.randn(2, 3, 4), torch.rand(2, 3, 4) + 0.5
INTS, FLAGS = torch.arange(24).reshape(2, 3, 4), torch.rand(2, 3, 4) > 0.5
IDS, X2 = torch.tensor([[1, 0, 2]]), torch.randn(3, 4)
SQUARE = torch.randn(2, 4, 4)


def binary(
    op: str, *spellings: Callable[..., Any], operands: tuple[Any, ...] = (Z3, Y3)
) -> tuple[Any, ...]:
    return op, operands, list(spellings)


def unary(op: str, *more: Callable[[Any], Any], value: torch.Tensor = POS) -> tuple[Any, ...]:
    named = getattr(torch, op)
    return op, (value,), [lambda x: named(x), lambda x: getattr(x, op)(), *more]


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
    ("grouped_query_attention", (Z4, Z4[:, :1], Z4[:, :1]), [lambda q, k,
         v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)]),
]  # fmt: skip

MOVES = [
    ("reshape", (Z3,), [lambda x: x.reshape(2, 12), lambda x: x.view(2, 12),
         lambda x: torch.reshape(x, (2, 12)),
                        lambda x: x.view((2, 12)), lambda x: x.reshape([2, 12])]),
    ("reshape", (Z3,), [lambda x: x.view(-1)]),
    ("flatten", (Z3,), [nn.Flatten(), lambda x: x.flatten(1), lambda x: torch.flatten(x, 1)]),
    ("flatten", (Z3,), [torch.flatten, torch.ravel, lambda x: x.ravel()]),
    ("reshape_as", (Z3, Z3.reshape(4, 6)), [lambda x, y: x.reshape_as(y),
         lambda x, y: x.view_as(y)]),
    ("unflatten", (Z3,), [nn.Unflatten(2, (2, 2)), lambda x: x.unflatten(2, (2, 2)),
         lambda x: torch.unflatten(x, 2, (2, 2))]),
    ("permute", (Z3,), [lambda x: x.permute(2, 0, 1), lambda x: x.permute((2, 0, 1)),
         lambda x: torch.permute(x, (2, 0, 1))]),
    ("transpose", (Z3,), [lambda x: x.transpose(1, 2), lambda x: torch.transpose(x, 1, 2),
         lambda x: x.swapaxes(1, 2),
                          lambda x: torch.swapdims(x, 1, 2)]),
    ("transpose", (X2,), [lambda x: x.t(), torch.t, lambda x: x.transpose(0, 1)]),
    ("transpose", (Z3,), [lambda x: x.transpose(-2, -1), lambda x: x.swapdims(-2, -1),
         lambda x: torch.swapaxes(x, -2, -1)]),
    ("movedim", (Z3,), [lambda x: x.movedim(0, 2), lambda x: torch.movedim(x, 0, 2),
         lambda x: torch.moveaxis(x, 0, 2), lambda x: x.moveaxis(0, 2)]),
    ("squeeze", (Z3[:1],), [lambda x: x.squeeze(0), lambda x: torch.squeeze(x, dim=0)]),
    ("squeeze", (Z3[:1],), [lambda x: x.squeeze(), torch.squeeze]),
    ("unsqueeze", (Z3,), [lambda x: x.unsqueeze(1), lambda x: torch.unsqueeze(x, 1)]),
    ("expand", (Z3[:1],), [lambda x: x.expand(5, -1, -1),
         lambda x: torch.broadcast_to(x, (5, -1, -1))]),
    ("expand_as", (Z3[:1], Z3), [lambda x, y: x.expand_as(y)]),
    ("type_as", (Z3, X2.double()), [lambda x, y: x.type_as(y), lambda x, y: x.to(y)]),
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
    ("take", (X2, IDS), [lambda x, i: x[i]]),
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

FUNCTIONS = ARITHMETIC + PRODUCTS + MOVES + REDUCTIONS
