"""Losses that compare how samples of a batch relate: [n, D_s] and [n, D_t] -> [n], the value of each sample's row.

The widths may differ, so no projector is needed. The mean of the values over all n rows is the loss of the paper; under
several processes gather the rows of the global batch first (:class:`limbeck.engine.gather.Together`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.losses import same_rows, wide
from limbeck.registry import register

TINY = 1e-12


@register("loss", couples_samples=True)
def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Distance-wise relational loss, [n, D_s] and [n, D_t] -> [n] (Park et al. 2019, eq. 5 and 6).

    Huber loss between the Euclidean distances of all pairs, either side divided by its mean distance.

    Raises:
        ValueError: unlike numbers of samples.
    """
    same_rows(student=student, teacher=teacher)
    return F.smooth_l1_loss(_distances(student), _distances(teacher), reduction="none").mean(1)


@register("loss", couples_samples=True)
def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Angle-wise relational loss, [n, D_s] and [n, D_t] -> [n] (Park et al. 2019, eq. 7 and 8).

    Huber loss between the cosines at the middle sample of all triplets; a row holds those whose middle it is. Takes
    memory of order n^3.

    Raises:
        ValueError: unlike numbers of samples.
    """
    same_rows(student=student, teacher=teacher)
    return F.smooth_l1_loss(_cosines(student), _cosines(teacher), reduction="none").flatten(1).mean(1)


def _distances(rows: Tensor) -> Tensor:
    """Distances of all pairs over the mean of those that are not zero, [n, D] -> [n, n]."""
    rows = wide(rows).flatten(1)
    squares = (rows[:, None] - rows[None]).square().sum(-1)
    distances = squares.clamp(min=TINY).sqrt() * ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    apart = distances > TINY**0.5
    return distances / (distances * apart).sum().div(apart.sum().clamp(min=1)).clamp(min=TINY)


def _cosines(rows: Tensor) -> Tensor:
    """``cos`` of the angle at sample j between samples i and k, [n, D] -> [n (j), n (i), n (k)]."""
    rows = wide(rows).flatten(1)
    edges = F.normalize(rows[None] - rows[:, None], dim=-1, eps=TINY**0.5)
    return edges @ edges.transpose(1, 2)
