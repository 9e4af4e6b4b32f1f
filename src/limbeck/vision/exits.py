"""Early exits: small networks that read a student's stages and classify. They are never part of the student."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from limbeck.vision.fusion import BatchNorm
from limbeck.vision.shapes import as_map


class Bottleneck(nn.Sequential):
    """From a shallow map to the channels and about the grid of the last one (Zhang et al. 2019, section 3.1).

    1x1 to a quarter of the channels, one convolution that brings the grid down, 1x1 to the channels; each with batch
    normalisation and ReLU.
    """

    def __init__(self, shallow: Tensor, last: Tensor) -> None:
        outputs = last.shape[1]
        middle, step = max(outputs // 4, 1), max(shallow.shape[-1] // last.shape[-1], 1)
        super().__init__(
            *_convolved(shallow.shape[1], middle, 1),
            *_convolved(middle, middle, step),
            *_convolved(middle, outputs, 1),
        )


class Exits(nn.Module):
    """A bottleneck and a linear classifier at each shallow map.

    Args:
        shallow: an example of each map.
        last: an example of the network's last map.
        classes: of the classifiers.
    """

    def __init__(self, shallow: Sequence[Tensor], last: Tensor, classes: int) -> None:
        super().__init__()
        self.bottlenecks = nn.ModuleList(Bottleneck(as_map(feature), as_map(last)) for feature in shallow)
        self.heads = nn.ModuleList(nn.Linear(as_map(last).shape[1], classes) for _ in shallow)

    def forward(self, shallow: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Maps, tokens or vectors -> each exit's feature [B, D], as wide as the last map, and its logits [B, K]."""
        maps = [bottleneck(as_map(f)) for bottleneck, f in zip(self.bottlenecks, shallow, strict=True)]
        features = [m.mean((2, 3)) for m in maps]
        return features, [head(f) for head, f in zip(self.heads, features, strict=True)]


def _convolved(inputs: int, outputs: int, step: int) -> list[nn.Module]:
    """A convolution whose windows lie side by side."""
    return [nn.Conv2d(inputs, outputs, step, stride=step, bias=False), BatchNorm(outputs), nn.ReLU()]
