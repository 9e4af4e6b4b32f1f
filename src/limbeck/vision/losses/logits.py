"""Distillation losses for classifiers, as pure functions on tensors: one value per sample, nothing reduced."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.losses import IGNORE, kl, log_softmax, same_shape, soft_kl
from limbeck.registry import register

__all__ = ["binary_log_probs", "dkd", "nckd", "soft_kl", "tckd"]


@register("loss")
def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """Decoupled distillation ``T^2 (alpha TCKD + beta NCKD)``, [B, K] and [B] -> [B] (Zhao et al. 2022, eq. 7).

    Classical distillation is the case ``alpha = 1``, ``beta = 1 - p_teacher(label)``.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K].
        labels: [B]; the target class of each sample. Samples labelled -100 give zero.
        alpha: weight of the target-class part.
        beta: weight of the part among the other classes.
        temperature: divides both logits.

    Raises:
        ValueError: the shapes differ.
    """
    target = tckd(student_logits, teacher_logits, labels, temperature)
    others = nckd(student_logits, teacher_logits, labels, temperature)
    value = temperature**2 * (alpha * target + beta * others)
    return torch.where(labels != IGNORE, value, torch.zeros_like(value))


def tckd(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Target-class KL between the two-way distributions (label, everything else), [B, K] -> [B]."""
    same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    log_t = binary_log_probs(log_softmax(teacher_logits, temperature), labels)
    log_s = binary_log_probs(log_softmax(student_logits, temperature), labels)
    return kl(log_t, log_s)


def nckd(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """KL among the classes other than the label, each side renormalised over them, [B, K] -> [B]."""
    same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    return kl(_without(teacher_logits, labels, temperature), _without(student_logits, labels, temperature))


def binary_log_probs(log_p: Tensor, labels: Tensor) -> Tensor:
    """``[log p(label), log(1 - p(label))]`` from log-probabilities [B, K], stably: the rest is summed in log space."""
    mask = _is_label(log_p, labels)
    target = log_p.masked_fill(~mask, -torch.inf).logsumexp(-1)
    rest = log_p.masked_fill(mask, -torch.inf).logsumexp(-1)
    return torch.stack([target, rest], dim=-1)


def _without(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of the K - 1 classes that are not the label, [B, K] -> [B, K - 1]."""
    kept = ~_is_label(logits, labels)
    return log_softmax(logits[kept].view(len(logits), -1), temperature)


def _is_label(values: Tensor, labels: Tensor) -> Tensor:
    """Where each row's label is, bool [B, K]. A scatter takes fewer labels than rows without a word."""
    if labels.shape != values.shape[:-1]:
        raise ValueError(f"logits {tuple(values.shape)} and labels {tuple(labels.shape)}: one label for each row")
    index = torch.where(labels == IGNORE, torch.zeros_like(labels), labels)
    return torch.zeros_like(values, dtype=torch.bool).scatter_(-1, index[:, None], True)
