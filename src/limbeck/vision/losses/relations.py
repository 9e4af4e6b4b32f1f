"""Losses that compare how samples of a batch relate: [n, D_s] and [n, D_t] -> [n], the value of each sample's row.

The widths may differ, so no projector is needed. The mean of the values over all n rows is the loss of the paper; under
several processes gather the rows of the global batch first (:class:`limbeck.engine.gather.Together`).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.losses import kl, same_rows, wide
from limbeck.registry import register

TINY = 1e-12
OPPOSITE = 1e-7
"""Least value of the kernel (cos + 1) / 2: the logarithm of two opposite samples is finite."""


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


@register("loss", couples_samples=True)
def similarity(student: Tensor, teacher: Tensor) -> Tensor:
    """Similarity-preserving loss, [n, ...] and [n, ...] -> [n] (Tung and Mori 2019, eq. 1 to 4).

    Mean over j of the squared difference of ``G_ij``, the inner products of all pairs of activations with every row of
    G scaled to length 1.

    Raises:
        ValueError: unlike numbers of samples.
    """
    same_rows(student=student, teacher=teacher)
    return (_products(student) - _products(teacher)).square().mean(1)


@register("loss", couples_samples=True)
def pkt(student: Tensor, teacher: Tensor) -> Tensor:
    """Probabilistic knowledge transfer, [n, D_s] and [n, D_t] -> [n] (Passalis and Tefas 2018, eq. 3 to 8).

    ``1/n sum_j P_j|i log(P_j|i / Q_j|i)`` where P is the teacher's and Q the student's probability that j is the
    neighbour of i, proportional to ``(cos(x_i, x_j) + 1) / 2`` over all j but i.

    Raises:
        ValueError: unlike numbers of samples.
    """
    same_rows(student=student, teacher=teacher)
    return kl(_neighbours(teacher), _neighbours(student)) / len(student)


@register("loss", couples_samples=True)
def congruence(student: Tensor, teacher: Tensor, *, gamma: float = 0.4, order: int = 2) -> Tensor:
    """Correlation congruence, [n, D_s] and [n, D_t] -> [n] (Peng et al. 2019, eq. 4 and 8 to 10).

    Mean over j of the squared difference of ``K_ij``, the Gaussian kernel ``exp(-gamma |x_i - x_j|^2)`` of embeddings
    of length 1 in its Taylor expansion.

    Args:
        student, teacher: embeddings.
        gamma: of the kernel.
        order: of the expansion.

    Raises:
        ValueError: unlike numbers of samples.
    """
    same_rows(student=student, teacher=teacher)
    return (_kernel(student, gamma, order) - _kernel(teacher, gamma, order)).square().mean(1)


def _products(rows: Tensor) -> Tensor:
    """Inner products of all pairs, every row at length 1, [n, ...] -> [n, n]."""
    rows = wide(rows).flatten(1)
    return F.normalize(rows @ rows.T, dim=1)


def _neighbours(rows: Tensor) -> Tensor:
    """Log-probability of each sample j as the neighbour of i, [n, D] -> [n, n]; -inf where j is i."""
    unit = F.normalize(wide(rows).flatten(1), dim=1)
    kernel = ((unit @ unit.T + 1) / 2).clamp(min=OPPOSITE)
    self = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    logs = kernel.log().masked_fill(self, -torch.inf)
    # A row that is alone has no neighbour: its probabilities are all zero, not 0 / 0.
    return logs - kernel.masked_fill(self, 0.0).sum(1, keepdim=True).clamp(min=OPPOSITE).log()


def _kernel(rows: Tensor, gamma: float, order: int) -> Tensor:
    """``exp(-2 gamma) sum_p (2 gamma)^p / p! (x_i . x_j)^p`` up to ``order``, [n, D] -> [n, n]."""
    unit = F.normalize(wide(rows).flatten(1), dim=1)
    products = unit @ unit.T
    terms = [(2 * gamma) ** p / math.factorial(p) * products**p for p in range(order + 1)]
    return math.exp(-2 * gamma) * torch.stack(terms).sum(0)


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
