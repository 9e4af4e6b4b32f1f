"""Which tokens of a batch a loss is taken at, chosen by a score per token."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from limbeck.language.losses.divergence import Divergence, divergence
from limbeck.losses import same_shape

Score = Literal["student_entropy", "teacher_entropy", "student_confidence", "teacher_confidence", "divergence", "gap"]


def entropy(log_p: Tensor) -> Tensor:
    """Entropy in nats over the last axis of log-probabilities, [..., V] -> [...]; ruled-out tokens count nothing."""
    mass = log_p.exp()
    return -(mass * log_p.masked_fill(mass == 0, 0.0)).sum(-1)


@torch.no_grad()
def token_scores(
    log_p: Tensor,
    log_q: Tensor,
    score: Score,
    *,
    direction: Divergence = "forward",
    beside: Divergence = "reverse",
) -> Tensor:
    """A score for each token to select by, [..., V] twice -> [...], without gradient.

    Args:
        log_p: the teacher's log-probabilities.
        log_q: the student's, the same shape.
        score: the entropy or the largest probability of one side, the divergence, or the ``gap`` between two.
        direction: the divergence; of ``gap`` the one that counts positive.
        beside: the one that ``gap`` subtracts.

    Raises:
        ValueError: the shapes differ, or there is no score of that name.
    """
    same_shape(log_p=log_p, log_q=log_q)
    match score:
        case "student_entropy":
            return entropy(log_q)
        case "teacher_entropy":
            return entropy(log_p)
        case "student_confidence":
            return log_q.amax(-1).exp()
        case "teacher_confidence":
            return log_p.amax(-1).exp()
        case "divergence":
            return divergence(log_p, log_q, direction)
        case "gap":
            return divergence(log_p, log_q, direction) - divergence(log_p, log_q, beside)
    raise ValueError(f"no token score is called '{score}'")


@torch.no_grad()
def select(
    scores: Tensor, mask: Tensor, share: float, *, largest: bool = True, scope: Literal["row", "batch"] = "row"
) -> Tensor:
    """The mask of those masked tokens whose score is among the largest (or smallest) ``share``, bool [B, T].

    ``ceil(share n)`` of n tokens, exactly; of equal scores the earlier tokens. Padding and other masked-out positions
    neither count nor are chosen, whatever their score.

    Args:
        scores: [B, T].
        mask: which tokens count, bool [B, T].
        share: in (0, 1].
        largest: the largest scores, or the smallest.
        scope: of each row by itself, or of all tokens given. The choice in a ``batch`` depends on what is in it, and so
            on how the batch is cut; that of a ``row`` does not.

    Raises:
        ValueError: the shapes differ or the share is out of range.
    """
    same_shape(scores=scores, mask=mask)
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}")
    if scope == "batch":
        return select(scores.reshape(1, -1), mask.reshape(1, -1), share, largest=largest).view_as(scores)
    mask = mask.bool()
    worst = -math.inf if largest else math.inf
    order = scores.masked_fill(~mask, worst).argsort(dim=-1, descending=largest, stable=True)
    # Among equally bad scores a masked token must still come before one that does not count.
    order = order.gather(-1, (~mask).gather(-1, order).long().argsort(dim=-1, stable=True))
    rank = torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
    )
    # Rounded first, so that 0.1 of 30 is 3 tokens and not 4.
    wanted = torch.ceil((mask.sum(-1, keepdim=True).double() * share).round(decimals=9))
    return mask & (rank < wanted)
