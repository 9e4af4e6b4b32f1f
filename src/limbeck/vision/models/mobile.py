"""VGG, MobileNetV2 and ShuffleNets for images of 32 pixels, as the CIFAR-100 distillation table has them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.registry import register
from limbeck.vision.models.resnet import Staged, conv1, conv3

VGG_STAGES = {
    8: ((64,), (128,), (256,), (512,), (512,)),
    11: ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    13: ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    16: ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
    19: ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4),
}
"""Channels of the convolutions of each stage, by the number that names the network."""


@register("model", "vgg", gives={"logits", "features"})
class VGG(Staged):
    """VGG with batch norm and a single linear layer (Simonyan and Zisserman 2015); stages are pooled between.

    Args:
        depth: which one.
    """

    def __init__(self, *, in_channels: int, classes: int, depth: Literal[8, 11, 13, 16, 19] = 8) -> None:
        stages: list[nn.Module] = []
        inputs = in_channels
        for i, widths in enumerate(VGG_STAGES[depth]):
            # Four stages see half the cells of the one before, the last as many.
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if 0 < i < 4 else []
            for outputs in widths:
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
            stages.append(nn.Sequential(*layers))
        super().__init__(nn.Identity(), stages, nn.Identity(), 512, classes)


def norm_relu(convolution: nn.Conv2d, relu: type[nn.Module] = nn.ReLU) -> list[nn.Module]:
    """A convolution, its norm and its activation."""
    return [convolution, nn.BatchNorm2d(convolution.out_channels), relu()]


class Inverted(nn.Module):
    """Inverted residual: widen by 1x1, 3x3 depthwise, narrow by 1x1 without activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = inputs * expand
        layers = [*norm_relu(conv1(inputs, inner)), *norm_relu(conv3(inner, inner, stride, inner))]
        self.body = nn.Sequential(*layers, conv1(inner, outputs), nn.BatchNorm2d(outputs))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        return x + self.body(x) if self.adds else self.body(x)


@register("model", "mobilenet_v2_cifar", gives={"logits", "features"})
class MobileNetV2(Staged):
    """MobileNetV2 (Sandler et al. 2018) for 32 x 32 images; half the width is the student of the CIFAR-100 table.

    Args:
        width: factor of the channels.
        expand: of the inverted residuals.
    """

    def __init__(self, *, in_channels: int, classes: int, width: float = 0.5, expand: int = 6) -> None:
        rows = ((16, 1, 1, 1), (24, 2, 1, expand), (32, 3, 2, expand), (64, 4, 2, expand), (96, 3, 1, expand),
                (160, 3, 2, expand), (320, 1, 1, expand))  # fmt: skip
        inputs = int(32 * width)
        stem = nn.Sequential(*norm_relu(conv3(in_channels, inputs, 2)))
        blocks: list[nn.Module] = []
        for channels, count, stride, factor in rows:
            outputs = int(channels * width)
            rest = [Inverted(outputs, outputs, 1, factor) for _ in range(count - 1)]
            blocks.append(nn.Sequential(Inverted(inputs, outputs, stride, factor), *rest))
            inputs = outputs
        # One stage for each resolution.
        stages = [nn.Sequential(*blocks[a:b]) for a, b in pairwise((0, 2, 3, 5, 7))]
        last = int(1280 * max(width, 1.0))
        super().__init__(stem, stages, nn.Sequential(*norm_relu(conv1(inputs, last))), last, classes)


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channels dealt out over the groups, [B, C, H, W] -> [B, C, H, W]."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class ShuffleV1Block(nn.Module):
    """Grouped 1x1 convolutions with shuffled channels between; at stride 2 the input is pooled and put beside."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.stride = stride
        inner, made = outputs // 4, outputs - inputs if stride == 2 else outputs
        self.groups = 1 if inputs == 24 else groups
        if stride == 2:
            inner = made // 4
        self.narrow = nn.Sequential(*norm_relu(conv1(inputs, inner, groups=self.groups)))
        self.wide = nn.Sequential(
            *norm_relu(conv3(inner, inner, stride, inner)), conv1(inner, made, groups=groups), nn.BatchNorm2d(made)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        made = self.wide(shuffled(self.narrow(x), self.groups))
        return F.relu(made + x) if self.stride == 1 else F.relu(torch.cat([made, F.avg_pool2d(x, 3, 2, 1)], 1))


@register("model", "shufflenet_v1_cifar", gives={"logits", "features"})
class ShuffleNetV1(Staged):
    """ShuffleNet (Zhang et al. 2018) for 32 x 32 images, with three groups.

    Args:
        groups: of the 1x1 convolutions.
    """

    def __init__(self, *, in_channels: int, classes: int, groups: int = 3) -> None:
        widths, counts = [24, 240, 480, 960], [4, 8, 4]
        stages = [
            nn.Sequential(*(ShuffleV1Block(a if i == 0 else b, b, 2 if i == 0 else 1, groups) for i in range(n)))
            for (a, b), n in zip(pairwise(widths), counts, strict=True)
        ]
        super().__init__(nn.Sequential(*norm_relu(conv1(in_channels, 24))), stages, nn.Identity(), 960, classes)


class ShuffleV2Block(nn.Module):
    """Half of the channels go through 1x1, depthwise 3x3 and 1x1 convolutions, then both halves are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.body = nn.Sequential(*_branch(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> the same."""
        kept, used = x.chunk(2, 1)
        return shuffled(torch.cat([kept, self.body(used)], 1), 2)


class ShuffleV2Down(nn.Module):
    """Two branches of stride 2 side by side."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        depthwise = [conv3(inputs, inputs, 2, inputs), nn.BatchNorm2d(inputs)]
        self.left = nn.Sequential(*depthwise, *norm_relu(conv1(inputs, half)))
        self.right = nn.Sequential(*_branch(inputs, half, 2))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / 2, W / 2]."""
        return shuffled(torch.cat([self.left(x), self.right(x)], 1), 2)


def _branch(inputs: int, outputs: int, stride: int) -> Sequence[nn.Module]:
    depthwise = [conv3(outputs, outputs, stride, outputs), nn.BatchNorm2d(outputs)]
    return [*norm_relu(conv1(inputs, outputs)), *depthwise, *norm_relu(conv1(outputs, outputs))]


@register("model", "shufflenet_v2_cifar", gives={"logits", "features"})
class ShuffleNetV2(Staged):
    """ShuffleNetV2 (Ma et al. 2018, arXiv 1807.11164) at its full width, for 32 x 32 images."""

    def __init__(self, *, in_channels: int, classes: int) -> None:
        widths, counts = [24, 116, 232, 464], [3, 7, 3]
        stages = [
            nn.Sequential(ShuffleV2Down(a, b), *(ShuffleV2Block(b) for _ in range(n)))
            for (a, b), n in zip(pairwise(widths), counts, strict=True)
        ]
        stem = nn.Sequential(*norm_relu(conv1(in_channels, 24)))
        super().__init__(stem, stages, nn.Sequential(*norm_relu(conv1(464, 1024))), 1024, classes)
