"""Layers, activations and pooling in all their spellings: (op, inputs, spellings) each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.traced import Held

torch.manual_seed(0)
X4, X3, X2 = torch.randn(2, 4, 6, 5), torch.randn(2, 4, 7), torch.randn(3, 4)
X5 = torch.randn(1, 4, 4, 5, 6)
W1, W2, W3 = torch.randn(6, 4, 3), torch.randn(6, 2, 3, 3), torch.randn(6, 4, 2, 2, 2)
T1, T2, T3 = torch.randn(4, 6, 3), torch.randn(4, 3, 3, 3), torch.randn(4, 6, 2, 2, 2)
B6, B4, WL = torch.randn(6), torch.randn(4), torch.randn(6, 4)
IDS, TABLE = torch.tensor([[1, 0, 2]]), torch.randn(5, 4)


def filled(module: nn.Module, *tensors: torch.Tensor | None) -> nn.Module:
    """The module with these parameters, in their order, in eval mode."""
    for parameter, tensor in zip(module.parameters(), tensors, strict=False):
        parameter.data = tensor if tensor is not None else parameter.data
    return module.eval()


def functional(function: Callable[..., Any], *settings: Any, **named: Any) -> Callable[..., Any]:
    return lambda *values: function(*values, *settings, **named)


def activation(name: str, module: nn.Module, *functions: Callable[..., Any]) -> tuple[Any, ...]:
    return name, (X4,), [module, *functions]


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

RECURRENT = [
    ("lstm", (torch.randn(5, 2, 4),), [nn.LSTM(4, 6).eval()]),
    ("lstm", (torch.randn(2, 5, 4),), [nn.LSTM(4, 6, batch_first=True).eval()]),
    ("lstm", (torch.randn(5, 4),), [nn.LSTM(4, 6).eval()]),
    ("lstm_bidirectional", (torch.randn(5, 2, 4),), [nn.LSTM(4, 6, bidirectional=True).eval()]),
    ("lstm_bidirectional", (torch.randn(5, 4),), [nn.LSTM(4, 6, bidirectional=True).eval()]),
    ("gru", (torch.randn(5, 2, 4),), [nn.GRU(4, 6).eval()]),
    ("gru", (torch.randn(2, 5, 4),), [nn.GRU(4, 6, batch_first=True).eval()]),
    ("rnn", (torch.randn(5, 2, 4),), [nn.RNN(4, 6).eval()]),
    ("rnn", (torch.randn(2, 5, 4),), [nn.RNN(4, 6, 1, "relu", batch_first=True).eval()]),
]  # fmt: skip

LAYERS = ACTIVATIONS + WEIGHTED + POOLING + RECURRENT
