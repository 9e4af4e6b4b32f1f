"""Divergences between next-token distributions.

p is the teacher's distribution and q the student's. The divergences take log-probabilities [..., V] and give nats
[...], unreduced; a token that both sides rule out (logit ``-inf``) counts nothing and gives no NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from limbeck.losses import kl, log_softmax, same_shape
from limbeck.registry import register
from limbeck.truncated import TopK, buckets

Divergence = Literal[
    "forward",
    "reverse",
    "jsd",
    "skew_forward",
    "skew_reverse",
    "tvd",
    "jeffreys",
    "alpha",
    "hellinger",
]
Generator = Literal["kl", "reverse_kl", "js", "tv", "chi2", "hellinger", "alpha"]

_FLOOR = -1e4
"""Stands for the log of no mass in a mixture: exp gives exactly 0, and the gradient of logaddexp stays finite."""

_LARGE = 20.0
"""Beyond this exponent, exp and expm1 are the same float32 number, and exp can be joined with the mass before it."""


def forward_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``KL(p || q)``: the student must cover all that the teacher does."""
    return kl(log_p, log_q)


def reverse_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``KL(q || p)``: the student must not do what the teacher does not. Infinite where q has mass and p has none."""
    return kl(log_q, log_p)


def jeffreys(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Half the sum of the forward and the reverse KL."""
    return 0.5 * (kl(log_p, log_q) + kl(log_q, log_p))


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


def alpha_divergence(log_p: Tensor, log_q: Tensor, alpha: float = 0.5) -> Tensor:
    """Amari's ``(sum p^alpha q^(1 - alpha) - 1) / (alpha (alpha - 1))``: KL(p || q) at 1, KL(q || p) at 0.

    Half is four times :func:`squared_hellinger`, 2 is half of :func:`chi_squared`. Infinite where q rules out what p
    does not (from ``alpha`` 1 up), or p what q does not (from 0 down).

    Raises:
        ValueError: the shapes differ.
    """
    same_shape(log_p=log_p, log_q=log_q)
    if alpha == 1:
        return kl(log_p, log_q)
    if alpha == 0:
        return kl(log_q, log_p)
    # Written around the nearer limit, p e^x or q e^x with a small x there, so that no digits cancel on the way to it.
    if alpha < 0.5:
        log_p, log_q, alpha = log_q, log_p, 1 - alpha
    return _excess(log_p, log_q, alpha - 1).sum(-1) / (alpha * (alpha - 1))


def chi_squared(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Pearson's ``sum (p - q)^2 / q``. Infinite where q rules out what p does not."""
    return 2 * alpha_divergence(log_p, log_q, 2.0)


def squared_hellinger(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``0.5 sum (sqrt p - sqrt q)^2 = 1 - sum sqrt(p q)``, in [0, 1]."""
    same_shape(log_p=log_p, log_q=log_q)
    # As a difference of roots it stays exact for close distributions, where 1 - sum would be rounding noise.
    return 0.5 * ((log_p / 2).exp() - (log_q / 2).exp()).square().sum(-1)


def f_divergence(
    log_p: Tensor,
    log_q: Tensor,
    generator: Generator | Callable[[Tensor], Tensor] = "kl",
    *,
    alpha: float = 0.5,
) -> Tensor:
    """``sum q f(p / q)`` for a convex f with ``f(1) = 0``, [..., V] -> [...].

    Args:
        log_p: log-probabilities [..., V].
        log_q: log-probabilities [..., V], the same shape.
        generator: the name of an f: ``kl`` is u log u, ``reverse_kl`` -log u, ``js`` that of the Jensen-Shannon
            divergence, ``tv`` |u - 1| / 2, ``chi2`` (u - 1)^2, ``hellinger`` (sqrt u - 1)^2 / 2, ``alpha`` Amari's.
            Or f as a function of ``log u``, for distributions that rule out the same tokens only.
        alpha: of ``alpha``.

    Raises:
        ValueError: the shapes differ or no generator has that name.
    """
    same_shape(log_p=log_p, log_q=log_q)
    if callable(generator):
        both = (log_p > -math.inf) & (log_q > -math.inf)
        ratio = torch.where(both, log_p, 0.0) - torch.where(both, log_q, 0.0)
        return (log_q.exp() * generator(ratio)).masked_fill(~both, 0.0).sum(-1)
    if generator not in get_args(Generator):
        raise ValueError(f"no generator is called '{generator}'; there are {', '.join(get_args(Generator))}")
    if generator == "chi2":
        return chi_squared(log_p, log_q)
    named: dict[str, Divergence] = {"kl": "forward", "reverse_kl": "reverse", "js": "jsd", "tv": "tvd"}
    direction: Divergence = named.get(generator, generator)  # type: ignore[arg-type]
    return divergence(log_p, log_q, direction, alpha=alpha)


def divergence(
    log_p: Tensor,
    log_q: Tensor,
    direction: Divergence = "forward",
    *,
    beta: float = 0.5,
    skew: float = 0.1,
    alpha: float = 0.5,
) -> Tensor:
    """The divergence of a name, between log-probabilities [..., V] -> [...].

    Args:
        log_p: the teacher's.
        log_q: the student's, the same shape.
        direction: which.
        beta: of ``jsd``; 0 is forward, 1 reverse.
        skew: of the two skewed ones.
        alpha: of ``alpha``; 1 is forward, 0 reverse.

    Raises:
        ValueError: the shapes differ, a parameter is out of range, or there is no divergence of that name.
    """
    match direction:
        case "jsd":
            return generalised_jsd(log_p, log_q, beta)
        case "skew_forward":
            return skew_forward_kl(log_p, log_q, skew)
        case "skew_reverse":
            return skew_reverse_kl(log_p, log_q, skew)
        case "alpha":
            return alpha_divergence(log_p, log_q, alpha)
    if direction not in _PLAIN:
        raise ValueError(f"no divergence is called '{direction}'; there are {', '.join(get_args(Divergence))}")
    return _PLAIN[direction](log_p, log_q)


def tempered_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float | Tensor = 1.0,
    direction: Divergence = "forward",
    *,
    beta: float = 0.5,
    skew: float = 0.1,
    alpha: float = 0.5,
    scale: bool = True,
) -> Tensor:
    """:func:`token_divergence` with a temperature of its own for each token, [...] or a number.

    Raises:
        ValueError: the shapes differ, a temperature is not positive, or a parameter is out of range.
    """
    same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    if isinstance(temperature, Tensor):
        same_shape(temperature=temperature, tokens=student_logits[..., 0])
    # Of one number this is known without waiting for an accelerator.
    if not (bool((temperature > 0).all()) if isinstance(temperature, Tensor) else temperature > 0):
        raise ValueError(f"temperature must be positive, got {temperature}")
    each = temperature[..., None] if isinstance(temperature, Tensor) else temperature
    log_p, log_q = log_softmax(teacher_logits, each), log_softmax(student_logits, each)
    value = divergence(log_p, log_q, direction, beta=beta, skew=skew, alpha=alpha)
    return value * temperature**2 if scale else value


@register("loss")
def token_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    direction: Literal[
        "forward",
        "reverse",
        "jsd",
        "skew_forward",
        "skew_reverse",
        "tvd",
        "jeffreys",
        "alpha",
        "hellinger",
    ] = "forward",
    temperature: float = 1.0,
    beta: float = 0.5,
    skew: float = 0.1,
    alpha: float = 0.5,
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
        alpha: of ``alpha``; 1 is forward, 0 reverse.
        scale: multiply by temperature squared, which keeps the gradient on the scale of cross-entropy.

    Raises:
        ValueError: the shapes differ, or a parameter is out of range.
    """
    return tempered_divergence(
        student_logits, teacher_logits, temperature, direction, beta=beta, skew=skew, alpha=alpha, scale=scale
    )


def truncated_divergence(
    student_logits: Tensor,
    topk: TopK,
    direction: Divergence = "forward",
    *,
    beta: float = 0.5,
    skew: float = 0.1,
    alpha: float = 0.5,
    scale: bool = True,
) -> Tensor:
    """The divergence over k + 1 buckets: the teacher's k likeliest tokens, and all others in one. [..., V] -> [...].

    No divergence of the bank grows when tokens are merged, so this is a lower bound of the whole one, and equal to it
    where k leaves out at most one token. Both sides have the temperature that the teacher was cut at.

    Raises:
        ValueError: shapes or numbers of tokens differ, or a parameter is out of range.
    """
    log_p, log_q = buckets(student_logits, topk)
    value = divergence(log_p, log_q, direction, beta=beta, skew=skew, alpha=alpha)
    return value * topk.temperature**2 if scale else value


_PLAIN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward": forward_kl,
    "reverse": reverse_kl,
    "tvd": total_variation,
    "jeffreys": jeffreys,
    "hellinger": squared_hellinger,
}


def _excess(log_p: Tensor, log_q: Tensor, power: float) -> Tensor:
    """``p ((p / q)^power - 1)``, which sums to the same as ``p^(1 + power) q^-power`` less 1; 0 where p is 0."""
    none = log_p == -math.inf
    log_p = log_p.masked_fill(none, 0.0)
    exponent = (power * (log_p - log_q)).masked_fill(none, 0.0)
    small = log_p.exp() * torch.expm1(exponent.clamp(max=_LARGE))
    large = torch.exp(log_p + exponent) - log_p.exp()
    return torch.where(exponent > _LARGE, large, small).masked_fill(none, 0.0)


def _log_mix(log_a: Tensor, log_b: Tensor, share: float) -> Tensor:
    """``log(share a + (1 - share) b)``."""
    same_shape(log_p=log_a, log_q=log_b)
    if share == 1:
        return log_a
    return torch.logaddexp(log_a.clamp(min=_FLOOR) + math.log(share), log_b.clamp(min=_FLOOR) + math.log1p(-share))


def _in_unit_interval(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")
