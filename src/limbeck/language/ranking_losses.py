"""Losses of rankers and of text vectors: pure functions on tensors, unreduced.

Scores are [..., n]: one for each document of a query's list, in the same order for student and teacher.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses import kl, log_softmax, same_shape
from limbeck.registry import register


@register("loss")
def margin_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of the margins between the first document and each other one, [..., n] -> [..., n - 1].

    Hofstaetter et al. 2020 (arXiv 2010.02666), with one or more negatives. A shift of either's scores changes nothing.

    Raises:
        UserError: unlike shapes, or lists of a single document.
    """
    same_shape(student=student, teacher=teacher)
    if student.shape[-1] < 2:
        raise UserError("margin_mse compares a relevant document with others: give lists of at least 2 documents")
    return (_margins(student) - _margins(teacher)).square()


def _margins(scores: Tensor) -> Tensor:
    return scores[..., :1] - scores[..., 1:]


@register("loss")
def pointwise_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of the scores themselves, [..., n] -> [..., n]."""
    same_shape(student=student, teacher=teacher)
    return (student - teacher).square()


@register("loss")
def listwise_kl(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """``T^2 KL(softmax(t / T) || softmax(s / T))`` over a list, [..., n] -> [...] (after RankT5, arXiv 2210.10634).

    Its gradient at T = 1 is that of the cross-entropy with the teacher's distribution, which differs by its entropy.
    """
    return kl(log_softmax(teacher, temperature), log_softmax(student, temperature)) * temperature**2


@register("loss")
def ranknet(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """``sum_{t_i > t_j} w_ij log(1 + exp(s_j - s_i))`` over the pairs of a list, [..., n] -> [...].

    Burges et al. 2005. Only the order of the teacher's scores counts; a pair that it ties counts nothing.

    Args:
        student: scores [..., n].
        teacher: scores [..., n].
        weights: of the pairs [..., n, n], such as :func:`ndcg_weights`; ones by default.
    """
    same_shape(student=student, teacher=teacher)
    before = teacher[..., :, None] > teacher[..., None, :]
    values = F.softplus(student[..., None, :] - student[..., :, None])
    values = values if weights is None else values * weights
    return values.masked_fill(~before, 0.0).sum((-2, -1))


def ndcg_weights(student: Tensor, gains: Tensor) -> Tensor:
    """How much nDCG changes where two documents of a list swap places, [..., n] -> [..., n, n], without gradient.

    ``|G_i - G_j| |1 / log2(1 + r_i) - 1 / log2(1 + r_j)| / ideal``: r is the place in the student's order. LambdaRank
    (Burges 2010), which LambdaLoss (Wang et al. 2018) gives as a bound on nDCG.

    Args:
        student: scores [..., n].
        gains: of the documents [..., n], not negative.
    """
    same_shape(student=student, gains=gains)
    discounts = 1.0 / torch.log2(1.0 + places(student.detach()).to(gains.dtype))
    best = gains.sort(-1, descending=True).values
    ideal = (best / torch.log2(torch.arange(2, best.shape[-1] + 2, device=best.device).to(best.dtype))).sum(-1)
    swapped = (gains[..., :, None] - gains[..., None, :]).abs()
    moved = (discounts[..., :, None] - discounts[..., None, :]).abs()
    return swapped * moved / ideal.clamp(min=1e-12)[..., None, None]


def places(scores: Tensor) -> Tensor:
    """The place of each document of a list in the order of its scores, 1 for the highest, int64 [..., n].

    Ties keep the order of the list.
    """
    order = scores.argsort(dim=-1, descending=True, stable=True)
    numbers = torch.arange(1, scores.shape[-1] + 1, device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, numbers)


def flops(weights: Tensor) -> Tensor:
    """``sum_j (mean_batch |w_j|)^2`` of sparse vectors [B, V], one number (Paria et al. 2020, arXiv 2004.05665).

    The mean is over the batch, so the value depends on how the batch is cut.
    """
    return weights.abs().mean(0).square().sum()


@register("loss")
def vector_l2(student: Tensor, teacher: Tensor, *, squared: bool = False) -> Tensor:
    """Euclidean distance of vectors, [..., D] -> [...] (LEAF, arXiv 2509.12539); the gradient at 0 is 0.

    Raises:
        UserError: unlike shapes: a student that is compared in the teacher's space has its dimension.
    """
    same_shape(student=student, teacher=teacher)
    squares = (student - teacher).square().sum(-1)
    if squared:
        return squares
    # The root has no derivative at 0.
    there = squares > 0
    return torch.where(there, torch.where(there, squares, torch.ones_like(squares)).sqrt(), squares)


@register("loss")
def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """``1 - cos`` of vectors, [..., D] -> [...]."""
    same_shape(student=student, teacher=teacher)
    return 1.0 - F.cosine_similarity(student, teacher, dim=-1)


def prefixes(vectors: Tensor, dims: Sequence[int]) -> list[Tensor]:
    """The first m coordinates of vectors [..., D] for each m of ``dims``, each scaled to length 1 (arXiv 2205.13147).

    Raises:
        UserError: a dimension that the vectors do not have.
    """
    wrong = [m for m in dims if not 1 <= m <= vectors.shape[-1]]
    if wrong or not dims:
        raise UserError(f"the vectors have {vectors.shape[-1]} dimensions: dims must be from 1 to that, not {wrong}")
    return [F.normalize(vectors[..., :m], dim=-1) for m in dims]


def list_scores(vectors: Tensor) -> Tensor:
    """Dot products of each row's first vector with its others, [..., 1 + n, D] -> [..., n]."""
    return torch.einsum("...d,...nd->...n", vectors[..., 0, :], vectors[..., 1:, :])
