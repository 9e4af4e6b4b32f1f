"""Losses that every family shares: label cross-entropy and the soft-target divergence.

All are pure functions on tensors and unreduced: one value per sample (or token). Softmaxes are taken in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.engine.method import Term
from limbeck.errors import UserError
from limbeck.registry import register

IGNORE = -100
"""Label of an item without a label (torch's convention)."""


def same_shape(**tensors: Tensor) -> None:
    """Refuse tensors of unlike shape: broadcasting one of them gives a plausible wrong number.

    Raises:
        UserError: (a ValueError) naming each tensor and its shape.
    """
    if len({t.shape for t in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items())
        raise UserError(f"these must have the same shape: {shapes}")


def same_rows(**tensors: Tensor) -> None:
    """Refuse tensors of unlike first axes: one of them would be broadcast or cut.

    Raises:
        UserError: (a ValueError) naming each tensor and its shape.
    """
    if len({len(t) for t in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items())
        raise UserError(f"these must have as many samples: {shapes}")


def log_softmax(logits: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """``log softmax(logits / temperature)`` over the last axis, in float32 or wider."""
    return F.log_softmax(wide(logits) / temperature, dim=-1)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``KL(p || q)`` over the last axis from log-probabilities of equal shape [..., K] -> [...]."""
    same_shape(log_p=log_p, log_q=log_q)
    mass = log_p.exp()
    # What p gives no mass adds nothing, whatever q says of it: there the difference may be -inf - -inf.
    return (mass * (log_p - log_q).masked_fill(mass == 0, 0.0)).sum(-1)


def js(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Jensen-Shannon divergence over the last axis, from log-probabilities [..., K] -> [...]."""
    log_m = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0, dtype=log_p.dtype))
    return 0.5 * (kl(log_p, log_m) + kl(log_q, log_m))


@register("loss")
def soft_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 4.0,
    direction: Literal["forward", "reverse", "jeffreys", "js"] = "forward",
    scale: bool = True,
) -> Tensor:
    """Soft-target divergence between tempered distributions, [..., K] -> [...] (Hinton et al. 2015, arXiv 1503.02531).

    Args:
        student_logits: [..., K].
        teacher_logits: [..., K], the same shape.
        temperature: divides both logits.
        direction: ``forward`` KL(teacher || student), ``reverse``, ``jeffreys`` (half their sum) or ``js``.
        scale: multiply by temperature squared, which keeps the gradient on the scale of cross-entropy.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    log_s, log_t = log_softmax(student_logits, temperature), log_softmax(teacher_logits, temperature)
    if direction == "forward":
        value = kl(log_t, log_s)
    elif direction == "reverse":
        value = kl(log_s, log_t)
    elif direction == "jeffreys":
        value = 0.5 * (kl(log_t, log_s) + kl(log_s, log_t))
    else:
        value = js(log_s, log_t)
    return value * temperature**2 if scale else value


def taught(
    student_logits: Tensor,
    signals: Mapping[str, Any],
    *,
    temperature: float,
    direction: Literal["forward", "reverse", "jeffreys", "js"] = "forward",
    scale: bool = True,
) -> Tensor:
    """:func:`soft_kl` against what a teacher gave, [..., K] -> [...]: whole logits, or the top k with their tail.

    Raises:
        ValueError: shapes differ; a truncated teacher at another temperature or in a direction it cannot serve.
    """
    if "logits" in signals:
        return soft_kl(student_logits, signals["logits"], temperature=temperature, direction=direction, scale=scale)
    if direction not in ("forward", "reverse"):
        raise ValueError(f"a truncated teacher serves the directions forward and reverse, not {direction}")
    from limbeck.truncated import truncated_kl

    value = truncated_kl(student_logits, signals["logits_topk"], direction=direction, temperature=temperature)
    return value * temperature**2 if scale else value


@register("loss")
def cross_entropy(student_logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with integer labels, [..., K] and [...] -> [...]; zero where the label is -100.

    Raises:
        ValueError: not one label for each row of logits.
    """
    return _cross_entropy(student_logits, labels, label_smoothing, "none").view(labels.shape)


def _cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float, reduction: str) -> Tensor:
    if logits.shape[:-1] != labels.shape:
        shapes = f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}"
        raise ValueError(f"{shapes} must be [..., K] and [...]: one label for each row")
    if logits.dim() > 2:
        logits, labels = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    return F.cross_entropy(
        wide(logits),
        labels,
        reduction=reduction,
        ignore_index=IGNORE,
        label_smoothing=label_smoothing,
    )


@register("loss")
def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error averaged over all but the first axis, [B, ...] -> [B], in float32 or wider.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape(student=student, teacher=teacher)
    return (wide(student) - wide(teacher)).square().flatten(1).mean(1)


def label_loss(logits: Tensor, batch: Mapping[str, Any], *, label_smoothing: float = 0.0, weight: float = 1.0) -> Term:
    """Cross-entropy against the batch's labels as a term; items labelled -100 do not count.

    Token batches (``labels`` [B, T]) are shifted once: logits at t predict the token at t + 1.
    """
    if "labels" in batch:
        logits, labels, unit = logits[:, :-1], batch["labels"][:, 1:], "tokens"
    else:
        labels, unit = batch["label"], "labelled"
    total = _cross_entropy(logits, labels, label_smoothing, "sum")
    return Term(total, (labels != IGNORE).sum(), weight, unit)


def wide(values: Tensor) -> Tensor:
    """The values in float32, or in float64 where they are that."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
