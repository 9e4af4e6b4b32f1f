"""Truncated distributions: the k likeliest classes and one bucket for all the rest, and their exact divergence.

A teacher's distribution over V classes is kept as k log-probabilities plus the log-mass of everything else. The
student's logits are cut the same way, at the *teacher's* indices, into k + 1 buckets that again sum to one. The
divergence of the two (k + 1)-way distributions is a true KL: never negative, zero only when the buckets agree, at most
the KL over all V classes (merging classes cannot raise it), with a gradient that moves mass into or out of the tail.

The two shortcuts in common use are something else, and a test shows each of them going wrong:

- *Naive*, ``sum_k p log(p / q)`` over the kept classes alone, is no divergence: it goes below zero, and its minimum is
  not q = p but q = p / covered mass, a student without any tail.
- *Renormalised*, both sides divided by their mass on the kept classes, never looks at the tail: a student that puts
  99 % of its mass on wrong classes has no loss as long as the ratios among the kept ones are right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from limbeck.losses import same_shape


@dataclass(frozen=True)
class TopK:
    """The k likeliest classes of a distribution over the last axis, and the mass of the rest.

    ``exp(logprobs).sum(-1) + exp(log_tail)`` is 1.

    Attributes:
        indices: int64 [..., k], the kept classes, likeliest first.
        logprobs: float [..., k], their log-probabilities under the whole distribution (not renormalised).
        log_tail: float [...], the log-mass of all other classes; ``-inf`` when there are none.
        temperature: what the logits were divided by. A truncated distribution cannot be moved to another temperature.
        classes: number of classes V of the whole distribution, or None when unknown (an endpoint's log-probabilities).
    """

    indices: Tensor
    logprobs: Tensor
    log_tail: Tensor
    temperature: float = 1.0
    classes: int | None = None

    @property
    def k(self) -> int:
        """How many classes are kept."""
        return self.indices.shape[-1]

    @property
    def covered(self) -> Tensor:
        """Probability mass of the kept classes, [...]."""
        return self.logprobs.exp().sum(-1)

    def to(self, device: torch.device | str) -> TopK:
        """The same on another device."""
        indices, logprobs, log_tail = (t.to(device) for t in (self.indices, self.logprobs, self.log_tail))
        return TopK(indices, logprobs, log_tail, self.temperature, self.classes)


@dataclass(frozen=True)
class Sampled:
    """A distribution over the last axis by classes drawn at random from it: an unbiased, sparse stand-in.

    Attributes:
        indices: int64 [..., m], the distinct classes drawn; 0 where a row has fewer than m.
        weights: float [..., m]; the expectation of the weight of a class, 0 where it is not drawn, is its probability.
            0 where a row has fewer.
        temperature: what the logits were divided by.
        classes: number of classes V of the whole distribution.
    """

    indices: Tensor
    weights: Tensor
    temperature: float = 1.0
    classes: int | None = None

    def to(self, device: torch.device | str) -> Sampled:
        """The same on another device."""
        return Sampled(self.indices.to(device), self.weights.to(device), self.temperature, self.classes)


@torch.no_grad()
def sampled_of(logits: Tensor, uniform: Tensor, proposal: float = 1.0, temperature: float = 1.0) -> Sampled:
    """Classes drawn with replacement, and the weights that make them an unbiased stand-in for the distribution.

    Each draw follows ``p^proposal / Z``; a class drawn c of N times weighs ``c / N * p / (p^proposal / Z)``, which is
    ``c / N`` for proposal 1 (Anshumann et al. 2025, arXiv 2503.16870). Weights are not made to sum to one: that would
    bias them.

    Args:
        logits: float [..., V].
        uniform: [..., N] in [0, 1), a number for each draw.
        proposal: 1 draws from the distribution itself, 0 from its support evenly.
        temperature: positive.

    Raises:
        ValueError: the shapes do not go together, or a number is out of range.
    """
    if uniform.shape[:-1] != logits.shape[:-1]:
        raise ValueError(f"logits {tuple(logits.shape)} and draws {tuple(uniform.shape)} must lead alike")
    if not 0 <= proposal <= 2:
        raise ValueError(f"the proposal's exponent must be between 0 and 2, got {proposal}")
    log_p = torch.log_softmax(_scaled(logits, temperature), -1)
    log_q = log_p if proposal == 1 else torch.log_softmax(_tilted(log_p, proposal), -1)
    bounds = log_q.double().exp().cumsum(-1)
    drawn = torch.searchsorted(bounds, uniform.double() * bounds[..., -1:], right=True).clamp(max=logits.shape[-1] - 1)
    ids, counts = _tallied(drawn.sort(-1).values)
    weights = counts.to(log_p.dtype) / uniform.shape[-1]
    if proposal != 1:
        weights = weights * torch.where(counts > 0, (log_p - log_q).gather(-1, ids).exp(), torch.zeros_like(weights))
    return Sampled(ids, weights, temperature, logits.shape[-1])


def sampled_cross_entropy(student_logits: Tensor, sampled: Sampled) -> Tensor:
    """``-sum w_i log q_i`` over the drawn classes, whose expectation is the cross-entropy with the whole distribution.

    So the expectation of its gradient is that of KL(teacher || student). In nats, unreduced, without a factor of
    temperature squared.

    Args:
        student_logits: float [..., V].
        sampled: the teacher's, over the same leading dimensions and classes.

    Raises:
        ValueError: leading dimensions or number of classes differ.
    """
    if student_logits.shape[:-1] != sampled.indices.shape[:-1]:
        raise ValueError(
            f"student logits {tuple(student_logits.shape)} and the teacher's draws {tuple(sampled.indices.shape)} "
            "must have the same leading dimensions"
        )
    if sampled.classes is not None and student_logits.shape[-1] != sampled.classes:
        raise ValueError(f"the student has {student_logits.shape[-1]} classes, the teacher {sampled.classes}")
    scaled = _scaled(student_logits, sampled.temperature)
    weights = sampled.weights.detach().to(scaled.dtype)
    # One logsumexp and a gather: the log-softmax over V is never held beside the logits.
    return weights.sum(-1) * torch.logsumexp(scaled, -1) - (weights * scaled.gather(-1, sampled.indices)).sum(-1)


def _tilted(log_p: Tensor, exponent: float) -> Tensor:
    """``exponent * log p``, with classes that cannot be left out at every exponent."""
    return torch.where(log_p == -math.inf, log_p, log_p * exponent)


def _tallied(drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct values of sorted rows [..., N] and how often each occurs: [..., m] twice, filled up with zeros."""
    first = torch.ones_like(drawn, dtype=torch.bool)
    first[..., 1:] = drawn[..., 1:] != drawn[..., :-1]
    slot = first.long().cumsum(-1) - 1
    size = int(slot.max()) + 1 if drawn.numel() else 0
    shape = (*drawn.shape[:-1], size)
    ids = drawn.new_zeros(shape).scatter_(-1, slot, drawn)
    return ids, drawn.new_zeros(shape).scatter_add_(-1, slot, torch.ones_like(drawn))


@torch.no_grad()
def topk_of(logits: Tensor, k: int, temperature: float = 1.0) -> TopK:
    """Cut ``softmax(logits / temperature)`` to its ``k`` likeliest classes and the mass of the rest.

    The tail is summed over the classes that were left out, in log-space, so that it keeps its digits however small it
    is (1 - covered mass would be rounding noise below 1e-7). The result is a target and carries no gradient.

    Args:
        logits: float [..., V].
        k: 1 to V.
        temperature: positive.

    Raises:
        ValueError: k or the temperature is out of range.
    """
    classes = logits.shape[-1]
    if not 1 <= k <= classes:
        raise ValueError(f"k must be 1 to the number of classes, {classes}; got {k}")
    scaled = _scaled(logits, temperature)
    values, indices = scaled.topk(k, dim=-1)
    buckets = torch.log_softmax(torch.cat([values, _rest(scaled, indices)], dim=-1), dim=-1)
    return TopK(indices, buckets[..., :k], _tail_of(buckets, k), temperature, classes)


@torch.no_grad()
def topk_from_logprobs(indices: Tensor, logprobs: Tensor, *, classes: int | None = None) -> TopK:
    """The truncated distribution of an endpoint that reports only its k best log-probabilities (temperature 1).

    The tail is what is missing to 1; where rounding makes the kept mass exceed 1 it is scaled back to 1.

    Raises:
        ValueError: the shapes of indices and log-probabilities differ.
    """
    same_shape(indices=indices, logprobs=logprobs)
    wide = logprobs.to(torch.promote_types(logprobs.dtype, torch.float32))
    mass = torch.logsumexp(wide, dim=-1)
    log_tail = torch.log(-torch.expm1(mass.clamp(max=0.0)))
    return TopK(indices.long(), wide - mass.clamp(min=0.0)[..., None], log_tail, 1.0, classes)


def truncated_kl(
    student_logits: Tensor,
    topk: TopK,
    direction: Literal["forward", "reverse"] = "forward",
    temperature: float | None = None,
) -> Tensor:
    """KL divergence over k + 1 buckets: the teacher's k classes, and all remaining mass of each side in one.

    ``forward`` is KL(teacher || student), ``reverse`` KL(student || teacher). In nats, float32 (float64 for float64
    logits), unreduced over the leading dimensions and without a factor of temperature squared. With k = V, and with
    k = V - 1, it equals the KL over all classes. Nothing is clamped: the gradient is that of the formula everywhere.

    Args:
        student_logits: float [..., V], finite.
        topk: the teacher's, over the same leading dimensions and classes.
        direction: which side the expectation is taken over. ``reverse`` is infinite where the student has mass in a
            bucket that the teacher gives none.
        temperature: of both sides; by default the one that the teacher was cut at, and it must be that one.

    Returns:
        float [...], never negative.

    Raises:
        ValueError: leading dimensions, number of classes or temperatures differ, or the direction is unknown.
    """
    teacher, student = buckets(student_logits, topk, temperature)
    if direction == "forward":
        return _kl(teacher, student)
    if direction == "reverse":
        return _kl(student, teacher)
    raise ValueError(f"direction must be 'forward' or 'reverse', got {direction!r}")


def buckets(student_logits: Tensor, topk: TopK, temperature: float | None = None) -> tuple[Tensor, Tensor]:
    """Log-probabilities of teacher and student over the teacher's k classes and all the rest, [..., k + 1] each.

    Each sums to one, at the temperature that the teacher was cut at; the student's has the gradient. There are k of
    them when no class is left out. Any divergence of the two is that of the distributions after merging the rest.

    Raises:
        ValueError: leading dimensions, number of classes or temperatures differ.
    """
    _check(student_logits, topk, temperature)
    scaled = _scaled(student_logits, topk.temperature)
    kept = scaled.gather(-1, topk.indices)
    student = torch.log_softmax(torch.cat([kept, _rest(scaled, topk.indices)], dim=-1), dim=-1)
    teacher = topk.logprobs.detach().to(student.dtype)
    if student.shape[-1] > topk.k:
        teacher = torch.cat([teacher, topk.log_tail.detach().to(student.dtype)[..., None]], dim=-1)
    return teacher, student


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) over the last axis from log-probabilities; buckets without mass under p count nothing."""
    mass = p.exp()
    kl = torch.where(mass > 0, mass * (p - q), torch.zeros((), dtype=p.dtype, device=p.device)).sum(-1)
    # Rounding can leave -1e-8 where the two agree: the value is lifted to 0, the gradient is untouched.
    return kl - kl.detach().clamp(max=0.0)


def _rest(scaled: Tensor, indices: Tensor) -> Tensor:
    """Logit of the bucket of all classes not in ``indices``: [..., 1], or [..., 0] when there are none."""
    if indices.shape[-1] == scaled.shape[-1]:
        return scaled[..., :0]
    return torch.logsumexp(scaled.scatter(-1, indices, -math.inf), dim=-1, keepdim=True)


def _tail_of(buckets: Tensor, k: int) -> Tensor:
    return buckets[..., k] if buckets.shape[-1] > k else torch.full_like(buckets[..., 0], -math.inf)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    return logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature


def _check(student_logits: Tensor, topk: TopK, temperature: float | None) -> None:
    if student_logits.shape[:-1] != topk.indices.shape[:-1]:
        raise ValueError(
            f"student logits {tuple(student_logits.shape)} and the teacher's top-k {tuple(topk.indices.shape)} "
            "must have the same leading dimensions"
        )
    if topk.classes is not None and student_logits.shape[-1] != topk.classes:
        raise ValueError(
            f"the student has {student_logits.shape[-1]} classes, the teacher's top-k is over {topk.classes}"
        )
    if temperature is not None and not math.isclose(temperature, topk.temperature, rel_tol=1e-6):
        raise ValueError(
            f"the teacher was truncated at temperature {topk.temperature:g} and cannot be moved to {temperature:g}: "
            f"the tail's shape is unknown; truncate it at {temperature:g}"
        )
