"""Divergences between next-token distributions, the ways to average them, and the vocabulary two models share.

p is the teacher's distribution and q the student's. The divergences take log-probabilities [..., V] and give nats
[...], unreduced; a token that both sides rule out (logit ``-inf``) counts nothing and gives no NaN.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from limbeck.engine.method import Term
from limbeck.errors import UserError
from limbeck.losses import IGNORE, kl, log_softmax, same_shape
from limbeck.registry import register

Divergence = Literal["forward", "reverse", "jsd", "skew_forward", "skew_reverse", "tvd"]
Reduction = Literal["token_mean", "seq_mean", "max_len"]

_FLOOR = -1e4
"""Stands for the log of no mass in a mixture: exp gives exactly 0, and the gradient of logaddexp stays finite."""


def forward_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``KL(p || q)``: the student must cover all that the teacher does."""
    return kl(log_p, log_q)


def reverse_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``KL(q || p)``: the student must not do what the teacher does not. Infinite where q has mass and p has none."""
    return kl(log_q, log_p)


def generalised_jsd(log_p: Tensor, log_q: Tensor, beta: float = 0.5) -> Tensor:
    """``beta KL(p || m) + (1 - beta) KL(q || m)`` with ``m = beta p + (1 - beta) q`` (Agarwal et al. 2023, 2306.13649).

    At the ends, where the formula is 0, it is what the formula tends to in direction: the forward KL at ``beta`` 0 and
    the reverse KL at 1. So the value jumps there: just above 0 it is about ``beta`` times the forward KL.

    Raises:
        ValueError: the shapes differ or ``beta`` is outside [0, 1].
    """
    _in_unit_interval("beta", beta)
    if beta == 0:
        return forward_kl(log_p, log_q)
    if beta == 1:
        return reverse_kl(log_p, log_q)
    log_m = _log_mix(log_p, log_q, beta)
    return beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)


def skew_forward_kl(log_p: Tensor, log_q: Tensor, skew: float = 0.1) -> Tensor:
    """``KL(p || skew p + (1 - skew) q)``: at most ``-log skew`` (Ko et al. 2024, 2402.03898); 0 is the forward KL.

    Raises:
        ValueError: the shapes differ or ``skew`` is outside [0, 1].
    """
    _in_unit_interval("skew", skew)
    return kl(log_p, log_q if skew == 0 else _log_mix(log_p, log_q, skew))


def skew_reverse_kl(log_p: Tensor, log_q: Tensor, skew: float = 0.1) -> Tensor:
    """``KL(q || (1 - skew) p + skew q)``: at most ``-log skew`` (Ko et al. 2024, 2402.03898); 0 is the reverse KL.

    Raises:
        ValueError: the shapes differ or ``skew`` is outside [0, 1].
    """
    _in_unit_interval("skew", skew)
    return kl(log_q, log_p if skew == 0 else _log_mix(log_q, log_p, skew))


def total_variation(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``0.5 sum |p - q|``, in [0, 1]: the share of tokens a speculative sampler would reject."""
    same_shape(log_p=log_p, log_q=log_q)
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


@register("loss")
def token_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    direction: Literal["forward", "reverse", "jsd", "skew_forward", "skew_reverse", "tvd"] = "forward",
    temperature: float = 1.0,
    beta: float = 0.5,
    skew: float = 0.1,
    scale: bool = True,
) -> Tensor:
    """Divergence per token between tempered next-token distributions, [..., V] -> [...], softmaxes in float32.

    Args:
        student_logits: [..., V].
        teacher_logits: [..., V], the same shape.
        direction: which divergence.
        temperature: divides both logits.
        beta: of ``jsd``; 0 is forward, 1 reverse.
        skew: of the two skewed ones.
        scale: multiply by temperature squared, which keeps the gradient on the scale of cross-entropy.

    Raises:
        ValueError: the shapes differ, or a parameter is out of range.
    """
    same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    log_p, log_q = log_softmax(teacher_logits, temperature), log_softmax(student_logits, temperature)
    value = _divergence(log_p, log_q, direction, beta, skew)
    return value * temperature**2 if scale else value


def _divergence(log_p: Tensor, log_q: Tensor, direction: Divergence, beta: float, skew: float) -> Tensor:
    match direction:
        case "forward":
            return forward_kl(log_p, log_q)
        case "reverse":
            return reverse_kl(log_p, log_q)
        case "jsd":
            return generalised_jsd(log_p, log_q, beta)
        case "skew_forward":
            return skew_forward_kl(log_p, log_q, skew)
        case "skew_reverse":
            return skew_reverse_kl(log_p, log_q, skew)
        case "tvd":
            return total_variation(log_p, log_q)
    raise ValueError(f"no divergence is called '{direction}'")


def _log_mix(log_a: Tensor, log_b: Tensor, share: float) -> Tensor:
    """``log(share a + (1 - share) b)``."""
    same_shape(log_p=log_a, log_q=log_b)
    if share == 1:
        return log_a
    return torch.logaddexp(log_a.clamp(min=_FLOOR) + math.log(share), log_b.clamp(min=_FLOOR) + math.log1p(-share))


def _in_unit_interval(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")


# ---------------------------------------------------------------------------------------------------------------------
# Which positions count, and how they are averaged


def shift(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, T, V] and labels [B, T] so that each logit meets the token it predicts: [B, T-1, V] and [B, T-1].

    Raises:
        ValueError: batch or length differ, or there is no next token.
    """
    if logits.ndim != 3 or logits.shape[:2] != labels.shape:
        shapes = f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}"
        raise ValueError(f"{shapes} must be [B, T, V] and [B, T]")
    if labels.shape[1] < 2:
        raise ValueError(f"rows of {labels.shape[1]} token have no next token to predict")
    return logits[:, :-1], labels[:, 1:]


def token_term(
    values: Tensor,
    mask: Tensor,
    *,
    reduction: Literal["token_mean", "seq_mean", "max_len"] = "token_mean",
    weight: float = 1.0,
    max_len: int | None = None,
) -> Term:
    """The term of values per token [B, T] whose positions ``mask`` [B, T] count.

    - ``token_mean``: sum over the global batch's tokens / their number; a long sequence weighs more.
    - ``seq_mean``: mean per sequence, then over the sequences that have a token; all weigh the same.
    - ``max_len``: sum per sequence / the constant ``max_len``, then mean over all sequences; a token weighs the same
      in every batch, however many others are there.

    Raises:
        ValueError: the shapes differ, or ``max_len`` is missing.
    """
    if reduction == "token_mean":
        return Term.of(values, mask, weight=weight, unit="tokens")
    same_shape(values=values, mask=mask)
    mask = mask.bool()
    sums = values.masked_fill(~mask, 0.0).sum(1)
    if reduction == "seq_mean":
        lengths = mask.sum(1)
        return Term((sums / lengths.clamp(min=1)).sum(), (lengths > 0).sum(), weight, "sequences")
    if max_len is None or max_len < 1:
        raise ValueError(f"reduction 'max_len' needs a positive max_len, got {max_len}")
    return Term(sums.sum() / max_len, len(values), weight, "samples")


def scored(labels: Tensor) -> Tensor:
    """Which of the (shifted) labels a loss is taken at."""
    return labels != IGNORE


# ---------------------------------------------------------------------------------------------------------------------
# Vocabularies


def shared_vocabulary(
    student_vocab: int,
    teacher_vocab: int,
    student_tokenizer_hash: str | None,
    teacher_tokenizer_hash: str | None,
    tokens: int | None = None,
) -> int:
    """How many leading entries of two models' logits mean the same tokens.

    Models of one family pad one tokenizer's vocabulary to different widths; both are cut to what they share, and the
    softmax over the rest is a distribution again. Unlike tokenizers are refused, even at equal width.

    Args:
        student_vocab, teacher_vocab: widths of the logits.
        student_tokenizer_hash, teacher_tokenizer_hash: from :func:`limbeck.data.tokenizer.tokenizer_hash`; ``None``
            where unknown, which is taken as the other's.
        tokens: how many tokens the tokenizer has, where known: padding beyond them is cut on both sides.

    Raises:
        UserError: the tokenizers differ.
    """
    student, teacher = student_tokenizer_hash, teacher_tokenizer_hash
    if student is not None and teacher is not None and student != teacher:
        raise UserError(
            f"student and teacher have different tokenizers ({student} with {student_vocab} entries, {teacher} with "
            f"{teacher_vocab}), so their logits cannot be compared: use a teacher with the student's tokenizer"
        )
    return min(student_vocab, teacher_vocab, tokens or student_vocab)


def cut(logits: Tensor, width: int) -> Tensor:
    """The first ``width`` entries of the vocabulary; a softmax over them renormalises."""
    return logits[..., :width]
