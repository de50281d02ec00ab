"""Networks of the size and wiring of ResNet-152 and DenseNet-201, in plain torch.

He et al. 2016 (arXiv:1512.03385) and Huang et al. 2017 (arXiv:1608.06993). Weights are random;
batch norms hold the statistics of random images, so that activations neither vanish nor explode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

SIDE = 32
"""Height and width of the example images: the tools do the same work for any size."""


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 beside an identity or a projection."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.reduce = conv_bn(inputs, width, 1)
        self.middle = conv_bn(width, width, 3, stride)
        self.expand = conv_bn(width, 4 * width, 1)
        changed = stride != 1 or inputs != 4 * width
        self.skip = conv_bn(inputs, 4 * width, 1, stride) if changed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.middle(torch.relu(self.reduce(x))))
        return torch.relu(self.expand(h) + self.skip(x))


class ResNet(nn.Module):
    """`blocks` bottlenecks in each of four stages; ResNet-152 has 3, 8, 36, 3."""

    def __init__(self, blocks: Sequence[int]) -> None:
        super().__init__()
        self.stem = conv_bn(3, 64, 7, 2)
        layers: list[nn.Module] = []
        inputs = 64
        for stage, count in enumerate(blocks):
            for number in range(count):
                stride = 2 if stage > 0 and number == 0 else 1
                layers.append(Bottleneck(inputs, 64 << stage, stride))
                inputs = 256 << stage
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, 1000)

    def forward(self, x: Tensor) -> Tensor:
        h = F.max_pool2d(torch.relu(self.stem(x)), 3, 2, 1)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(self.blocks(h), 1), 1))


class DenseLayer(nn.Module):
    """Batch norm, relu, 1x1, batch norm, relu, 3x3; the result joins the input's channels."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(torch.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.norm2(h)))], 1)


class Transition(nn.Module):
    """Batch norm, relu, 1x1, and half the height and width."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, inputs // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(torch.relu(self.norm(x))), 2)


class DenseNet(nn.Module):
    """`blocks` dense layers in each of four blocks; DenseNet-201 has 6, 12, 48, 32, growth 32."""

    def __init__(self, blocks: Sequence[int], growth: int = 32) -> None:
        super().__init__()
        channels = 2 * growth
        self.stem = conv_bn(3, channels, 7, 2)
        layers: list[nn.Module] = []
        for number, count in enumerate(blocks):
            layers += [DenseLayer(channels + i * growth, growth) for i in range(count)]
            channels += count * growth
            if number + 1 < len(blocks):
                layers.append(Transition(channels))
                channels //= 2
        self.layers = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, 1000)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layers(F.max_pool2d(torch.relu(self.stem(x)), 3, 2, 1))
        h = F.adaptive_avg_pool2d(torch.relu(self.norm(h)), 1)
        return self.head(torch.flatten(h, 1))


def example(count: int = 1) -> Tensor:
    """Random images [count, 3, SIDE, SIDE]."""
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def build(name: str) -> nn.Module:
    """`resnet152`, `densenet201`, or `resnet8` and `densenet8`, which are for trying things out."""
    torch.manual_seed(0)
    if name.startswith("resnet"):
        model: nn.Module = ResNet((3, 8, 36, 3) if name == "resnet152" else (1, 1))
    else:
        model = DenseNet((6, 12, 48, 32)) if name == "densenet201" else DenseNet((2, 2), 8)
    return _settled(model)


def _settled(model: nn.Module) -> nn.Module:
    """The model in eval mode, its batch norms with gains, shifts and statistics of real size."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
        norm.momentum = 1.0
    # Branches as strong as their identity make fifty blocks chaotic: a float32 rounding error would
    # grow a thousandfold. Training starts them near zero (Goyal et al. 2017, arXiv:1706.02677).
    for block in (module for module in model.modules() if isinstance(module, Bottleneck)):
        block.expand[1].weight.data *= 0.25
    with torch.no_grad():
        model.train()(example(8))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


class _Functional(fx.Transformer):
    """Writes convolutions and batch norms as functions of `get_attr` nodes."""

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.submodules[target]
        if isinstance(module, nn.Identity):
            return args[0]
        if isinstance(module, nn.Conv2d):
            weight = self._held(target, "weight")
            return F.conv2d(args[0], weight, None, module.stride, module.padding)
        if isinstance(module, nn.BatchNorm2d):
            names = ("running_mean", "running_var", "weight", "bias")
            return F.batch_norm(args[0], *(self._held(target, name) for name in names))
        if isinstance(module, nn.Linear):
            return F.linear(args[0], self._held(target, "weight"), self._held(target, "bias"))
        raise TypeError(f"no functional form is known for {type(module).__name__}")

    def _held(self, path: str, name: str) -> Any:
        return self.get_attr(f"{path}.{name}", (), {})


def functional(model: nn.Module) -> fx.GraphModule:
    """The model as a graph without modules: a form that every rewriter can match inside."""
    return _Functional(fx.symbolic_trace(model)).transform().eval()
