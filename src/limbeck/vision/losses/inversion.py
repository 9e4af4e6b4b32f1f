"""What a classifier's inputs are inverted by: priors on pictures, statistics of features, and what they teach."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses import js, kl, log_softmax, same_shape, wide


def total_variation(images: Tensor) -> Tensor:
    """Sum of the lengths of four images of differences, [B, C, H, W] -> [B] (Yin et al. 2020, R_TV).

    Differences of neighbours across, down, and along both diagonals; the length of each is taken over the whole image.
    At a constant image the gradient is zero.

    Raises:
        ValueError: not images, or without neighbours.
    """
    if images.dim() != 4 or min(images.shape[-2:]) < 2:
        raise UserError(f"total variation needs images of at least 2 x 2 pixels, not {tuple(images.shape)}")
    x = wide(images)
    right, down = x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]
    falling, rising = x[..., 1:, 1:] - x[..., :-1, :-1], x[..., 1:, :-1] - x[..., :-1, 1:]
    return torch.stack([d.flatten(1).norm(dim=1) for d in (right, down, falling, rising)]).sum(0)


def class_balance(logits: Tensor) -> Tensor:
    """Negative entropy of the mean prediction in nats, [B, K] -> scalar (Chen et al. 2019, information entropy loss).

    ``-log K`` where a batch holds all classes alike, 0 where it holds a single one.
    """
    log_mean = log_softmax(logits).logsumexp(0) - math.log(len(logits))
    return (log_mean.exp() * log_mean).sum()


def one_hot(logits: Tensor) -> Tensor:
    """Cross-entropy with the network's own predicted class, [B, K] -> [B] (Chen et al. 2019, one-hot loss)."""
    return -log_softmax(logits).max(-1).values


def disagreement(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """``KL(p_t || p_s)`` where both predict the same class, else 0, [B, K] -> [B] (Fang et al. 2021, section 4.1).

    What an adversary raises: it need not drive further apart where the decisions already differ.

    Raises:
        ValueError: the shapes differ.
    """
    value = kl(log_softmax(teacher_logits), log_softmax(student_logits))
    return value * (student_logits.argmax(-1) == teacher_logits.argmax(-1))


def competition(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 3.0) -> Tensor:
    """``1 - JS(p_t, p_s)`` in nats, [B, K] -> [B] (Yin et al. 2020, equation 8): low where the two disagree.

    Args:
        student_logits, teacher_logits: [B, K].
        temperature: of both.

    Raises:
        ValueError: the shapes differ.
    """
    return 1 - js(log_softmax(teacher_logits, temperature), log_softmax(student_logits, temperature))


def instance_contrast(anchors: Tensor, keys: Tensor, *, temperature: float = 0.1) -> Tensor:
    """InfoNCE of each anchor against all keys, [N, D] and [N, D] -> [N] (Fang et al. 2021, equation 6).

    Row i of the keys belongs to row i of the anchors. Both must have length 1.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape(anchors=anchors, keys=keys)
    scores = wide(anchors) @ wide(keys).T / temperature
    return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device), reduction="none")
