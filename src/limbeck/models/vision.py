"""Small reference networks for images and flat inputs: what a lab recipe needs without a model zoo.

Each has ``features(x) -> [B, D]`` (what the last linear layer reads), ``stages.<i>`` and ``head`` as module paths that
feature taps can name, and returns logits [B, classes].
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.registry import register


class Classifier(nn.Module):
    """Features, then one linear layer."""

    head: nn.Linear

    def features(self, x: Tensor) -> Tensor:
        """What the head reads, [B, D]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes]."""
        return self.head(self.features(x))


@register("model", "logistic", gives={"logits", "features"})
class Logistic(Classifier):
    """Multinomial logistic regression on the flattened input."""

    def __init__(self, *, in_features: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(in_features, classes)

    def features(self, x: Tensor) -> Tensor:
        """The flattened input, [B, in_features]."""
        return x.flatten(1)


@register("model", "mlp", gives={"logits", "features"})
class MLP(Classifier):
    """Hidden layers of equal width with ReLU on the flattened input."""

    def __init__(self, *, in_features: int, classes: int, hidden: int = 64, layers: int = 1) -> None:
        super().__init__()
        widths = [in_features, *[hidden] * layers]
        self.stages = nn.Sequential(*[nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths)])
        self.head = nn.Linear(widths[-1], classes)

    def features(self, x: Tensor) -> Tensor:
        """Output of the last hidden layer, [B, hidden]."""
        return self.stages(x.flatten(1))


@register("model", "cnn", gives={"logits", "features"})
class CNN(Classifier):
    """Plain convolutional network: stages of conv3x3 - batch norm - ReLU - max-pool, then global average pooling.

    Stage i has ``width * 2**i`` channels and halves the image. Takes any image of at least ``2**depth`` pixels.

    Raises:
        UserError: the image is too small for the depth.
    """

    def __init__(self, *, in_channels: int, image_size: int, classes: int, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        _check_depth("cnn", image_size, depth)
        widths = [in_channels, *[width * 2**i for i in range(depth)]]
        self.stages = nn.Sequential(*[self._stage(a, b) for a, b in pairwise(widths)])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(widths[-1], classes)

    @staticmethod
    def _stage(inputs: int, outputs: int) -> nn.Sequential:
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2))

    def features(self, x: Tensor) -> Tensor:
        """Last stage averaged over the image, [B, width * 2**(depth - 1)]."""
        return self.pool(self.stages(x)).flatten(1)


@register("model", "convnet", gives={"logits", "features"})
class ConvNet(Classifier):
    """ConvNet-D of the data-set condensation papers (Gidaris and Komodakis 2018; Zhao et al. 2021, arXiv 2006.05929).

    ``depth`` stages of conv3x3 - norm - ReLU - average-pool, all of ``width`` channels (with ``double`` each of twice
    as many as the one before, as in FRePo), then one linear layer on the flattened map. Images of 28 pixels are padded
    to 32 by the first convolution, as there. ``instance`` is affine instance norm without running statistics: each
    image is normalised alone, in training and evaluation mode alike.

    Raises:
        UserError: the image is too small for the depth.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: int,
        classes: int,
        width: int = 128,
        depth: int = 3,
        norm: Literal["instance", "batch", "none"] = "instance",
        double: bool = False,
    ) -> None:
        super().__init__()
        side = 32 if image_size == 28 else image_size
        _check_depth("convnet", side, depth)
        channels = [in_channels, *(width * 2**i if double else width for i in range(depth))]
        padding = [1 + (side - image_size) // 2, *[1] * (depth - 1)]
        sizes = zip(channels[:-1], channels[1:], padding, strict=True)
        self.stages = nn.Sequential(*[self._stage(a, b, norm, p) for a, b, p in sizes])
        self.head = nn.Linear(channels[-1] * (side // 2**depth) ** 2, classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, norm: str, padding: int) -> nn.Sequential:
        # One group per channel is instance norm; torch's group norm is the faster of the two.
        norms = {"instance": nn.GroupNorm(outputs, outputs), "batch": nn.BatchNorm2d(outputs), "none": nn.Identity()}
        conv = nn.Conv2d(inputs, outputs, 3, padding=padding)
        return nn.Sequential(conv, norms[norm], nn.ReLU(), nn.AvgPool2d(2))

    def features(self, x: Tensor) -> Tensor:
        """The flattened last map, [B, width * (side / 2**depth)**2]."""
        return self.stages(x).flatten(1)


@register("model", "resnet", gives={"logits", "features"})
class ResNet(Classifier):
    """ResNet for small images (He et al. 2016, section 4.2): a 3x3 stem and three stages of basic blocks.

    Depth is 6 n + 2 with n blocks a stage; stages have ``width``, ``2 * width`` and ``4 * width`` channels. Where the
    shape changes the shortcut is a 1x1 convolution with batch norm (the paper's option B, as in the distillation
    literature): depth 20 has 272,474 parameters at 10 classes.
    """

    def __init__(
        self, *, in_channels: int, classes: int, depth: Literal[8, 14, 20, 32, 56, 110] = 20, width: int = 16
    ) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.stem = _conv_norm(in_channels, width, 3)
        self.stages = nn.Sequential(
            self._stage(width, width, blocks, 1),
            self._stage(width, 2 * width, blocks, 2),
            self._stage(2 * width, 4 * width, blocks, 2),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        rest = [BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
        return nn.Sequential(BasicBlock(inputs, outputs, stride), *rest)

    def features(self, x: Tensor) -> Tensor:
        """Last stage averaged over the image, [B, 4 * width]."""
        return self.pool(self.stages(F.relu(self.stem(x)))).flatten(1)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _conv_norm(inputs, outputs, 3, stride)
        self.second = _conv_norm(outputs, outputs, 3)
        same = stride == 1 and inputs == outputs
        self.shortcut: nn.Module = nn.Identity() if same else _conv_norm(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def _check_depth(name: str, side: int, depth: int) -> None:
    if side < 2**depth:
        raise UserError(
            f"{name}: {depth} stages halve the image {depth} times, so it needs {2**depth} pixels, not {side}"
        )
