"""Losses on how positions attend and relate, and on states: unreduced, one value for each position or pair of them.

A mask [B, T] is 1 where a position is there: padded keys have no share in a softmax, and what a padded query or a pair
with padding gives is for the caller to leave out.
"""

from __future__ import annotations

from torch import Tensor

from limbeck.losses import kl, same_shape, wide
from limbeck.models.attention import masked_log_softmax, scores, split_heads


def relation_kl(student: Tensor, teacher: Tensor, attention_mask: Tensor) -> Tensor:
    """``KL(softmax(teacher) || softmax(student))`` over the keys that are there, mean over heads: -> [B, T].

    Wang et al. 2020 (arXiv 2002.10957), equation 5 of attention scores and 7 of relations.

    Args:
        student, teacher: scores before the softmax [B, A, T, T].
        attention_mask: [B, T].

    Raises:
        ValueError: the shapes of the scores differ.
    """
    same_shape(student=student, teacher=teacher)
    own, theirs = (masked_log_softmax(wide(x), attention_mask) for x in (student, teacher))
    # Both are -inf at padding, and the gradient of their difference would be NaN.
    padded = ~attention_mask.bool()[:, None, None, :]
    return kl(theirs, own.masked_fill(padded, 0.0)).mean(1)


def relations(values: Tensor, heads: int) -> Tensor:
    """Relations ``X X^T / sqrt(d)`` of positions, [B, T, D] -> [B, heads, T, T] (arXiv 2012.15828, equation 1).

    Args:
        values: queries, keys or values, the attention's heads side by side.
        heads: relation heads, which share D anew; d = D / heads.

    Raises:
        ValueError: they do not share it evenly.
    """
    split = split_heads(values, heads)
    return scores(split, split)


def score_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error of attention scores [B, A, T, T], mean over heads -> [B, T, T] (arXiv 1909.10351, equation 7).

    Raises:
        ValueError: the shapes differ.
    """
    same_shape(student=student, teacher=teacher)
    return (wide(student) - wide(teacher)).square().mean(1)


def state_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error of states, mean over the width: [..., H] -> [...] (arXiv 1909.10351, equation 8).

    Raises:
        ValueError: the shapes differ.
    """
    same_shape(student=student, teacher=teacher)
    return (wide(student) - wide(teacher)).square().mean(-1)
