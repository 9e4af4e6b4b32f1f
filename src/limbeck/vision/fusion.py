"""Modules that put features of several depths together. They learn beside a student and are never part of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Fusion = Literal["attention", "sum", "none"]


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation of maps [B, C, H, W] that also takes a single cell of a single sample.

    One value has no variance: there the running statistics stand for the batch's.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same."""
        if self.training and x[:, 0].numel() == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


class ABF(nn.Module):
    """Attention-based fusion (Chen et al. 2021, arXiv 2104.09044, figure 3a).

    A level's map is taken to a common width; the deeper levels' map comes to its grid, and the two are summed with a
    weight for each cell that a sigmoid reads off both.

    Args:
        inputs: channels of the level's map.
        width: channels of the fused map, the same at every level.
        outputs: channels of the result, and ``grid`` its height and width.
        fusion: ``attention``; ``sum`` without the weights; ``none`` leaves the deeper levels out.
    """

    def __init__(self, inputs: int, width: int, outputs: int, grid: tuple[int, int], fusion: Fusion) -> None:
        super().__init__()
        self.grid, self.fusion = grid, fusion
        self.enter = _convolved(inputs, width, 1)
        self.weigh = nn.Conv2d(2 * width, 2, 1) if fusion == "attention" else None
        self.leave = _convolved(width, outputs, 3)

    def forward(self, own: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B, inputs, h, w] and [B, width, h', w'] -> the result [B, outputs, *grid] and what is handed on."""
        fused = self.enter(own)
        if deeper is not None and self.fusion != "none":
            fused = self._fuse(fused, _resized(deeper, fused.shape[-2:]))
        fused = _resized(fused, self.grid)
        return self.leave(fused), fused

    def _fuse(self, own: Tensor, deeper: Tensor) -> Tensor:
        if self.weigh is None:
            return own + deeper
        weights = self.weigh(torch.cat([own, deeper], 1)).sigmoid()
        return own * weights[:, :1] + deeper * weights[:, 1:]


class Review(nn.Module):
    """All levels of a student, each with what is deeper, in the shapes of a teacher's levels.

    Args:
        student, teacher: an example of the maps of either side, shallow to deep, as many.
        width: channels of the fused maps.
        fusion: see :class:`ABF`.
    """

    def __init__(self, student: Sequence[Tensor], teacher: Sequence[Tensor], width: int, fusion: Fusion) -> None:
        super().__init__()
        deepest = len(student) - 1
        self.blocks = nn.ModuleList(
            ABF(s.shape[1], width, t.shape[1], (t.shape[-2], t.shape[-1]), fusion if i < deepest else "none")
            for i, (s, t) in enumerate(zip(student, teacher, strict=True))
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps of the student, shallow to deep -> as many in the teacher's shapes."""
        found: list[Tensor] = []
        deeper: Tensor | None = None
        for block, own in zip(reversed(self.blocks), reversed(maps), strict=True):
            result, deeper = block(own, deeper)
            found.insert(0, result)
        return found


def _convolved(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    return nn.Sequential(convolution, BatchNorm(outputs))


def _resized(feature: Tensor, grid: Sequence[int]) -> Tensor:
    return feature if tuple(feature.shape[-2:]) == tuple(grid) else F.interpolate(feature, tuple(grid), mode="nearest")
