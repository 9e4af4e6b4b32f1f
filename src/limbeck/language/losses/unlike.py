"""Losses between distributions over vocabularies that share no order, and so no meaning of an index."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.losses import log_softmax
from limbeck.registry import register


@register("loss")
def uld(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """``sum_i |sort(p)_i - sort(q)_i|``: the universal logit distillation loss (Boizard et al. 2024, 2402.12030).

    Probabilities are sorted downwards and the smaller vocabulary filled up with zeros. It compares how peaked the
    distributions are and never which token is likely: it is zero for any renaming of the teacher's tokens.

    Args:
        student_logits: [..., V].
        teacher_logits: [..., W], over the same leading dimensions.
        temperature: divides both logits.

    Returns:
        [...], between 0 and 2.

    Raises:
        ValueError: the leading dimensions differ.
    """
    log_q, log_p = log_softmax(student_logits, temperature), log_softmax(teacher_logits, temperature)
    return sorted_l1(log_p.exp(), log_q.exp())


def sorted_l1(p: Tensor, q: Tensor) -> Tensor:
    """L1 distance of values sorted downwards, [..., V] and [..., W] -> [...]; the shorter is filled up with zeros.

    Raises:
        ValueError: the leading dimensions differ.
    """
    p, q = sorted_pair(p, q)
    return (p - q).abs().sum(-1)


def sorted_pair(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Both sorted downwards along the last axis and filled up with zeros to one width.

    Raises:
        ValueError: the leading dimensions differ.
    """
    if p.shape[:-1] != q.shape[:-1]:
        raise ValueError(f"{tuple(p.shape)} and {tuple(q.shape)} must have the same leading dimensions")
    width = max(p.shape[-1], q.shape[-1])
    p, q = (F.pad(each, (0, width - each.shape[-1])) for each in (p, q))
    return torch.sort(p, dim=-1, descending=True).values, torch.sort(q, dim=-1, descending=True).values
