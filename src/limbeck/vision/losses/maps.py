"""Losses between feature maps [B, C, H, W]; tokens and vectors are seen as maps. One value for each sample."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses import same_rows, wide
from limbeck.registry import register
from limbeck.vision.shapes import as_map, same_cells


@register("loss")
def attention(student: Tensor, teacher: Tensor, *, p: float = 2.0) -> Tensor:
    """Attention transfer, [B, C_s, H, W] and [B, C_t, H', W'] -> [B] (Zagoruyko and Komodakis 2017, eq. 2).

    Mean over cells of the squared difference of the two attention maps. The channels may differ; of unlike grids the
    finer is averaged to the coarser.

    Args:
        student, teacher: maps, tokens or vectors.
        p: power of the activations' magnitude.

    Raises:
        ValueError: unlike numbers of samples, or a grid of one cell, where there is nothing to attend to.
    """
    same_rows(student=student, teacher=teacher)
    a, b = same_cells(as_map(wide(student)), as_map(wide(teacher)))
    if a[0, 0].numel() == 1:
        raise UserError("attention needs maps of more than one cell: choose other layers, or another method")
    return (attention_map(a, p) - attention_map(b, p)).square().mean(1)


def attention_map(feature: Tensor, p: float = 2.0) -> Tensor:
    """Mean over channels of ``|A|^p`` as a vector of length 1, [B, C, H, W] -> [B, H * W]."""
    return F.normalize(feature.abs().pow(p).mean(1).flatten(1), dim=1)
