"""Divergences from a teacher of whom only a few tokens are known, and the calibration of these.

The teacher's k likeliest tokens have the probabilities p_1 ... p_k of its whole distribution, the student the
probabilities q_1 ... q_k of its own. All values are nats per token, unreduced.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from limbeck.losses import kl
from limbeck.truncated import TopK, buckets

Recalibration = Literal["none", "temperature", "smoothing", "linear"]


def naive_topk(student_logits: Tensor, topk: TopK) -> Tensor:
    """``sum_k p_k log(p_k / q_k)``: no divergence, and smallest at ``q = p / covered mass``. For comparison alone."""
    log_p, log_q = _kept(student_logits, topk)
    return (log_p.exp() * (log_p - log_q)).masked_fill(log_p == -torch.inf, 0.0).sum(-1)


def renormalised_topk(student_logits: Tensor, topk: TopK) -> Tensor:
    """``KL(p / covered mass || q)`` with the student's whole softmax: teaches that nothing lies beyond the top k."""
    log_p, log_q = _kept(student_logits, topk)
    return kl(log_p.log_softmax(-1), log_q)


def tail_topk(student_logits: Tensor, topk: TopK) -> Tensor:
    """KL over k + 1 buckets, the last of which holds all other tokens of either side."""
    return kl(*buckets(student_logits, topk))


def narrowed(topk: TopK, k: int) -> TopK:
    """The ``k`` likeliest of a truncated distribution; what is left out joins the tail. As it is where it has fewer."""
    if k >= topk.k:
        return topk
    logprobs, order = topk.logprobs.sort(stable=True, dim=-1, descending=True)
    tail = torch.logaddexp(torch.logsumexp(logprobs[..., k:], -1), topk.log_tail)
    ids = topk.indices.gather(-1, order[..., :k])
    return TopK(ids, logprobs[..., :k], tail, topk.temperature, topk.classes)


def recalibrated(
    topk: TopK,
    how: Literal["none", "temperature", "smoothing", "linear"] = "temperature",
    *,
    heat: float = 1.0,
    smoothing: float = 0.1,
) -> Tensor:
    """Log-probabilities of the kept tokens alone, reshaped to mean what they say: [..., k] that sum to one.

    Shum et al. 2024 (arXiv 2408.12168), "trustworthy maximisation".

    Args:
        topk: the teacher's.
        how: ``temperature`` is ``softmax(p / heat)`` of the *probabilities*, which lie in [0, 1]: at heat 1 even a
            certain teacher gives its best of five tokens no more than 0.40, so useful heats are well below 1.
            ``smoothing`` takes it from the likeliest and gives it evenly to the others, from probabilities that were
            divided by their sum. ``linear`` (and ``none``) only divides by the sum.
        heat: of ``temperature``.
        smoothing: of ``smoothing``.

    Raises:
        ValueError: a number is out of range, or there is one token alone to smooth.
    """
    if how == "temperature":
        if not heat > 0:
            raise ValueError(f"heat must be positive, got {heat}")
        return torch.log_softmax(topk.logprobs.exp() / heat, -1)
    log_p = topk.logprobs.log_softmax(-1)
    if how != "smoothing":
        return log_p
    if not 0 <= smoothing < 1 or topk.k < 2:
        raise ValueError(f"smoothing must be in [0, 1) and of at least two tokens, got {smoothing} of {topk.k}")
    best = torch.zeros_like(log_p).scatter_(-1, log_p.argmax(-1, keepdim=True), 1.0)
    moved = log_p.exp() - smoothing * best + smoothing / (topk.k - 1) * (1 - best)
    return moved.clamp(min=0).log().log_softmax(-1)


def _kept(student_logits: Tensor, topk: TopK) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the kept tokens under both whole distributions."""
    log_q = buckets(student_logits, topk)[1][..., : topk.k]
    return topk.logprobs.detach().to(log_q.dtype), log_q
