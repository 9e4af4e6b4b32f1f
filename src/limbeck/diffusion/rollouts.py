"""States that trajectories pass through: the teacher's own by its solver, and the student's own with fresh noise.

Levels are each sample's own, [B].
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.diffusion.paths import Denoise
from limbeck.diffusion.steps import Order, jump, renoise, step


class Visited(NamedTuple):
    """States and the denoiser's estimates there, both [B, K, *shape], at K levels."""

    states: Tensor
    estimates: Tensor


def go_down(
    denoise: Denoise, x: Tensor, levels: Sequence[Tensor], *, order: Order = "heun", **condition: Tensor
) -> Tensor:
    """From the first level to the last, by a step of the solver between any two."""
    for now, then in pairwise(levels):
        x = step(denoise, x, now, then, order=order, **condition)
    return x


def visited(denoise: Denoise, x: Tensor, levels: Sequence[Tensor], **condition: Tensor) -> Visited:
    """All states of a trajectory by DDIM with what the denoiser said there, ``x`` itself being the first.

    On the trigonometric path a step is ``cos(d) x - sin(d) dx/dt`` over an angle d, Euler's on the circle (arXiv
    2511.20410).
    """
    states, estimates = [x], [denoise(x, levels[0], **condition)]
    for now, then in pairwise(levels):
        states.append(jump(states[-1], estimates[-1], now, then))
        estimates.append(denoise(states[-1], then, **condition))
    return Visited(torch.stack(states, dim=1), torch.stack(estimates, dim=1))


def renoised(denoise: Denoise, x: Tensor, levels: Sequence[Tensor], noises: Sequence[Tensor]) -> Tensor:
    """From the first level to the last, each time by the clean estimate and fresh noise, as consistency models sample.

    Args:
        denoise: a consistency function, or a denoiser.
        x: points at the first level.
        levels: K of them, falling.
        noises: K - 1 draws of standard normal noise, shaped like ``x``.
    """
    for now, then, noise in zip(levels, levels[1:], noises, strict=False):
        x = renoise(denoise(x, now), then, noise)
    return x


def ladder(now: Tensor, steps: int) -> list[Tensor]:
    """Positions from 1 down to ``now`` [B], ``steps`` equal steps of each sample's own."""
    return [1 - (1 - now) * (k / steps) for k in range(steps + 1)]
