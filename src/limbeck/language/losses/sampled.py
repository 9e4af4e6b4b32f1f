"""Divergences estimated from the tokens that were drawn, where whole distributions are not at hand.

All take log-probabilities of one drawn token per position, [...], and give one value per position, unreduced.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from limbeck.losses import same_shape

Estimator = Literal["k1", "k2", "k3"]


def sampled_kl(log_a: Tensor, log_b: Tensor, *, estimator: Estimator = "k1", log_drawn: Tensor | None = None) -> Tensor:
    """Estimate of ``KL(a || b)`` from a token drawn from a; the estimators are Schulman's (2020).

    ``k1`` is ``log a/b``: unbiased, of either sign. ``k3`` is ``b/a - 1 - log b/a``: unbiased where a gives every token
    of b some mass, never negative. ``k2`` is ``(log a/b)^2 / 2``: biased, never negative.

    The value is the estimate. Its gradient is not always: with a the teacher (forward KL) that of ``k1`` is unbiased;
    with a the student (reverse KL) the draw itself depends on the student, and :func:`score_gradient` has the gradient.

    Args:
        log_a: log-probability of the drawn token under a.
        log_b: the same under b.
        estimator: which.
        log_drawn: the same under the distribution that it was drawn from, when that was not a: each estimate is
            weighted by ``a / drawn``, which keeps it unbiased.

    Raises:
        ValueError: the shapes differ, or no estimator has that name.
    """
    same_shape(log_a=log_a, log_b=log_b)
    ratio = log_b - log_a
    if estimator == "k1":
        value = -ratio
    elif estimator == "k2":
        value = 0.5 * ratio.square()
    elif estimator == "k3":
        value = torch.expm1(ratio) - ratio
    else:
        raise ValueError(f"no estimator is called '{estimator}'; there are k1, k2 and k3")
    return value if log_drawn is None else _weight(log_a, log_drawn) * value


def score_gradient(log_q: Tensor, log_p: Tensor, *, log_drawn: Tensor | None = None) -> Tensor:
    """A loss whose gradient is an unbiased estimate of that of ``KL(q || p)``, from a token drawn from q.

    ``sg[log q/p] log q``: the score function with the log-ratio for a cost. Its value means nothing.

    Args:
        log_q: the student's log-probability of the drawn token, with gradient.
        log_p: the teacher's.
        log_drawn: that of the student's at the time of the draw, when it has changed since; the gradient is then
            weighted by their ratio.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape(log_q=log_q, log_p=log_p)
    cost = (log_q - log_p).detach()
    weight = 1.0 if log_drawn is None else _weight(log_q, log_drawn).detach()
    return weight * cost * log_q


def _weight(log_a: Tensor, log_drawn: Tensor) -> Tensor:
    same_shape(log_a=log_a, log_drawn=log_drawn)
    return (log_a - log_drawn).exp()
