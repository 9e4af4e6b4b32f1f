"""Features of one shape seen as another: maps [B, C, H, W], tokens [B, N, D] and vectors [B, D]."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import UserError


def as_map(feature: Tensor) -> Tensor:
    """A map [B, C, H, W]: tokens on their square grid (a class token is left out), vectors as a single cell.

    Raises:
        UserError: tokens that lie on no square.
    """
    if feature.dim() == 4:
        return feature
    if feature.dim() == 2:
        return feature[:, :, None, None]
    count = feature.shape[1]
    side = math.isqrt(count)
    extra = count - side * side
    if extra > 2:
        raise UserError(f"{count} tokens lie on no square (with at most 2 tokens before it): choose other layers")
    return feature[:, extra:].transpose(1, 2).unflatten(2, (side, side))


def as_vector(feature: Tensor) -> Tensor:
    """A vector [B, D] for each sample: the mean over cells or tokens."""
    if feature.dim() == 4:
        return feature.mean((2, 3))
    return feature.mean(1) if feature.dim() == 3 else feature


def same_cells(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps on the grid of the coarser one: the finer is averaged."""
    size = (min(a.shape[-2], b.shape[-2]), min(a.shape[-1], b.shape[-1]))
    return _averaged(a, size), _averaged(b, size)


def _averaged(feature: Tensor, size: tuple[int, int]) -> Tensor:
    return feature if tuple(feature.shape[-2:]) == size else F.adaptive_avg_pool2d(feature, size)
