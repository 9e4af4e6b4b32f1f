"""The loss of knowledge review: maps compared at several resolutions. One value for each sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from limbeck.losses import mse, same_shape, wide
from limbeck.registry import register
from limbeck.vision.shapes import as_map


@register("loss")
def hcl(student: Tensor, teacher: Tensor, *, levels: Sequence[int] = (4, 2, 1)) -> Tensor:
    """Hierarchical context loss, [B, C, H, W] twice -> [B] (Chen et al. 2021, arXiv 2104.09044, section 3.3).

    The mean squared error of the maps and of their averages over coarser grids; each further grid weighs half of the
    one before, and the weights sum to one. Grids that are not coarser than the map are left out.

    Args:
        student, teacher: maps, tokens or vectors of equal shape.
        levels: sides of the grids, fine to coarse.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape(student=student, teacher=teacher)
    a, b = as_map(wide(student)), as_map(wide(teacher))
    value, weight, total = mse(a, b), 1.0, 1.0
    for level in (n for n in levels if n < a.shape[-2]):
        weight /= 2
        total += weight
        value = value + weight * mse(F.adaptive_avg_pool2d(a, level), F.adaptive_avg_pool2d(b, level))
    return value / total
