"""The loss of factor transfer: directions of feature maps compared. One value for each sample."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from limbeck.losses import same_shape, wide
from limbeck.registry import register


@register("loss")
def factor(student: Tensor, teacher: Tensor, *, p: float = 1.0) -> Tensor:
    """Factor transfer, [B, ...] twice -> [B] (Kim et al. 2018, arXiv 1802.04977, eq. 4).

    Mean of ``|F_s / |F_s|_2 - F_t / |F_t|_2|^p`` over all entries; the norms are those of a sample's whole factor.

    Args:
        student, teacher: factors of equal shape.
        p: 1 in the paper.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape(student=student, teacher=teacher)
    a, b = (F.normalize(wide(feature).flatten(1), dim=1) for feature in (student, teacher))
    return (a - b).abs().pow(p).mean(1)
