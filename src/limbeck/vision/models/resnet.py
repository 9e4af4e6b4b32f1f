"""Residual networks for small images: the CIFAR ResNets, wide ResNets, and ResNet-50 with a small first convolution.

They are those of the CIFAR-100 table that distillation papers quote (Tian et al. 2020, arXiv 1910.10699, table 1), with
its numbers of parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.models.vision import Classifier
from limbeck.registry import register


def conv3(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size at stride 1, without bias."""
    return nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=False)


def conv1(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A 1x1 convolution without bias."""
    return nn.Conv2d(inputs, outputs, 1, stride, groups=groups, bias=False)


def start(module: nn.Module) -> None:
    """He initialisation over outputs for convolutions (He et al. 2015), ones and zeros for norms."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight, mode="fan_out", nonlinearity="relu")


class Residual(nn.Module):
    """``relu(f(x) + shortcut(x))``; the shortcut is a 1x1 convolution with norm where the shapes differ."""

    def __init__(self, body: nn.Sequential, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = body
        same = stride == 1 and inputs == outputs
        mapped = nn.Sequential(conv1(inputs, outputs, stride), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Identity() if same else mapped

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        return F.relu(self.body(x) + self.shortcut(x))


def basic(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Two 3x3 convolutions."""
    first = [conv3(inputs, outputs, stride), nn.BatchNorm2d(outputs), nn.ReLU()]
    return Residual(nn.Sequential(*first, conv3(outputs, outputs), nn.BatchNorm2d(outputs)), inputs, outputs, stride)


def bottleneck(inputs: int, outputs: int, stride: int) -> nn.Module:
    """1x1, 3x3 and 1x1 convolutions with a quarter of the channels inside."""
    inner = outputs // 4
    layers = [conv1(inputs, inner), nn.BatchNorm2d(inner), nn.ReLU(), conv3(inner, inner, stride)]
    layers += [nn.BatchNorm2d(inner), nn.ReLU(), conv1(inner, outputs), nn.BatchNorm2d(outputs)]
    return Residual(nn.Sequential(*layers), inputs, outputs, stride)


class Staged(Classifier):
    """A stem, stages, global average pooling and a linear layer; ``stages.<i>`` are the features that methods tap."""

    def __init__(self, stem: nn.Module, stages: Sequence[nn.Module], end: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.end = end
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(width, classes)
        start(self)

    def features(self, x: Tensor) -> Tensor:
        """What the head reads, [B, width]."""
        return self.pool(self.end(self.stages(self.stem(x)))).flatten(1)


@register("model", "resnet_cifar", gives={"logits", "features"})
class ResNetCIFAR(Staged):
    """ResNet for 32 x 32 images (He et al. 2016, section 4.2): 6n + 2 layers in three stages of 16, 32 and 64 channels.

    ``width: 4`` with depth 8 or 32 is the ``resnet8x4`` and ``resnet32x4`` of distillation papers, whose stem is twice
    as wide as well.

    Args:
        depth: 8, 14, 20, 32, 44, 56 or 110.
        width: factor of the channels.

    Raises:
        UserError: a depth that is not 6n + 2.
    """

    def __init__(self, *, in_channels: int, classes: int, depth: int = 20, width: int = 1) -> None:
        n, rest = divmod(depth - 2, 6)
        if rest or n < 1:
            raise UserError(f"resnet_cifar: depth is 6n + 2 (8, 14, 20, 32, 44, 56, 110), not {depth}")
        first = 16 if width == 1 else 32
        widths = [first, 16 * width, 32 * width, 64 * width]
        stages = [_stage(basic, a, b, n, 1 if i == 0 else 2) for i, (a, b) in enumerate(pairwise(widths))]
        super().__init__(_stem(in_channels, first), stages, nn.Identity(), widths[-1], classes)


@register("model", "resnet50_cifar", gives={"logits", "features"})
class ResNet50CIFAR(Staged):
    """ResNet-50 whose first convolution is 3x3 with stride 1 and without pooling, for images of 32 pixels."""

    def __init__(self, *, in_channels: int, classes: int) -> None:
        widths, counts = [64, 256, 512, 1024, 2048], [3, 4, 6, 3]
        pairs = zip(pairwise(widths), counts, strict=True)
        stages = [_stage(bottleneck, a, b, n, 1 if i == 0 else 2) for i, ((a, b), n) in enumerate(pairs)]
        super().__init__(_stem(in_channels, 64), stages, nn.Identity(), widths[-1], classes)


class PreActivation(nn.Module):
    """Norm and ReLU before each of two 3x3 convolutions; the shortcut of unlike shapes is a bare 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        between = [conv3(inputs, outputs, stride), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.body = nn.Sequential(*between, conv3(outputs, outputs))
        self.shortcut = None if inputs == outputs else conv1(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        active = self.before(x)
        return self.body(active) + (x if self.shortcut is None else self.shortcut(active))


@register("model", "wrn", gives={"logits", "features"})
class WideResNet(Staged):
    """Wide residual network (Zagoruyko and Komodakis 2016, arXiv 1605.07146): WRN-depth-width.

    Args:
        depth: 6n + 4: 10, 16, 22, 28, 40.
        width: factor of the channels 16, 32 and 64.

    Raises:
        UserError: a depth that is not 6n + 4.
    """

    def __init__(self, *, in_channels: int, classes: int, depth: int = 16, width: int = 2) -> None:
        n, rest = divmod(depth - 4, 6)
        if rest or n < 1:
            raise UserError(f"wrn: depth is 6n + 4 (10, 16, 22, 28, 40), not {depth}")
        widths = [16, 16 * width, 32 * width, 64 * width]
        stages = [_stage(PreActivation, a, b, n, 1 if i == 0 else 2) for i, (a, b) in enumerate(pairwise(widths))]
        end = nn.Sequential(nn.BatchNorm2d(widths[-1]), nn.ReLU())
        super().__init__(conv3(in_channels, 16), stages, end, widths[-1], classes)


def _stem(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv3(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU())


def _stage(
    block: Callable[[int, int, int], nn.Module], inputs: int, outputs: int, count: int, stride: int
) -> nn.Sequential:
    rest = [block(outputs, outputs, 1) for _ in range(count - 1)]
    return nn.Sequential(block(inputs, outputs, stride), *rest)
