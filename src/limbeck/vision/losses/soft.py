"""Soft targets of other makes: given probabilities, means of several teachers, and classes split into subclasses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.losses import kl, log_softmax, same_rows, same_shape
from limbeck.vision.losses.logits import soft_cross_entropy

__all__ = ["mean_probabilities", "soft_cross_entropy", "subclass_kl"]


def mean_probabilities(logits: Sequence[Tensor], temperature: float = 1.0) -> Tensor:
    """The mean of several teachers' probabilities, M times [B, K] -> [B, K] (MEAL V2, Shen and Savvides 2020, eq. 1).

    Probabilities are averaged, not logits: a teacher that is sure of itself does not outvote the others.

    Raises:
        UserError: (a ValueError) the shapes differ.
    """
    same_shape(**{f"teacher_{i}": z for i, z in enumerate(logits)})
    return torch.stack([log_softmax(z, temperature).exp() for z in logits]).mean(0)


def subclass_kl(student_logits: Tensor, teacher_logits: Tensor, scores: Tensor, temperature: float = 4.0) -> Tensor:
    """``T^2 KL(P_t^T || P_s^T)`` over classes split into subclasses, -> [B] (LELP, Loo et al. 2024, section 3).

    ``P_t = softmax(teacher_logits)_c softmax(scores_c)_j`` is softened as a whole, like the student's distribution. So
    a student that follows it sums to the teacher's classes again, which it would not were the classes alone softened.

    Args:
        student_logits: [B, K, S].
        teacher_logits: [B, K].
        scores: [B, K, S], already divided by the temperature of the subclasses.
        temperature: of both distributions.

    Raises:
        UserError: (a ValueError) the shapes do not fit.
    """
    same_shape(student_logits=student_logits, scores=scores)
    same_rows(student_logits=student_logits, teacher_logits=teacher_logits)
    same_shape(classes=student_logits[..., 0], teacher_logits=teacher_logits)
    whole = log_softmax(teacher_logits)[..., None] + log_softmax(scores)
    log_t = log_softmax(whole.flatten(1), temperature)
    return temperature**2 * kl(log_t, log_softmax(student_logits.flatten(1), temperature))
