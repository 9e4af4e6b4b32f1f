"""Images that a denoising network makes of noised prototypes, without a random number beside the first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from limbeck.engine.teacher import Teacher

Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From ``x = x0 + sigma eps`` [B, ...], sigma [B] and classes int64 [B] to ``E[x0 | x]`` [B, ...]."""
LOWEST, RHO = 0.002, 7.0
"""EDM's lowest level above 0, and the curvature of its grid."""


def falling_levels(start: float, steps: int) -> list[float]:
    """``steps`` noise levels from ``start`` to :data:`LOWEST`, and 0 (Karras et al. 2022, arXiv 2206.00364, eq. 5).

    Raises:
        ValueError: ``start`` is not above the lowest level, or there is no step.
    """
    if start <= LOWEST or steps < 1:
        raise ValueError(f"levels fall from above {LOWEST} in 1 step or more, not from {start} in {steps}")
    high, low = start ** (1 / RHO), LOWEST ** (1 / RHO)
    return [(high + k / max(steps - 1, 1) * (low - high)) ** RHO for k in range(steps)] + [0.0]


def flow(denoise: Denoise, x: Tensor, labels: Tensor, levels: Sequence[float]) -> Tensor:
    """Follow ``dx/dsigma = (x - D(x, sigma, label)) / sigma`` down the levels by Heun's rule, the step to 0 by Euler's.

    Args:
        denoise: the denoiser D.
        x: [B, ...] at the first level.
        labels: int64 [B].
        levels: falling noise levels.
    """

    def slope(at: Tensor, sigma: float) -> Tensor:
        return (at - denoise(at, at.new_full((len(at),), sigma), labels)) / sigma

    for now, following in pairwise(levels):
        first = slope(x, now)
        ahead = x + (following - now) * first
        if following > 0:
            ahead = x + (following - now) * (first + slope(ahead, following)) / 2
        x = ahead
    return x


def guided(teacher: Teacher, scale: float) -> Denoise:
    """A teacher's denoiser, without gradient, with ``D_none + scale (D_label - D_none)`` (Ho and Salimans 2022).

    A ``scale`` of 1 asks it with the class alone.
    """

    @torch.no_grad()
    def denoise(x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        with teacher.context():
            told: Tensor = teacher.module(x, sigma, label=labels)
            if scale == 1:
                return told
            free = teacher.module(x, sigma)
            return free + scale * (told - free)

    return denoise
