"""Steps between noise levels of each sample's own, as pure functions: what trajectory methods take their targets from.

Levels are tensors [B]; ``now`` is where a sample is, ``then`` the lower level it goes to.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from limbeck.diffusion.paths import Denoise, like
from limbeck.engine.progress import say

Order = Literal["euler", "heun"]


def jump(x: Tensor, heads_for: Tensor, now: Tensor, then: Tensor) -> Tensor:
    """From level ``now`` to ``then`` along the line to ``heads_for``: ``h + (then / now) (x - h)``, shape of ``x``.

    With the denoiser's estimate this is one step of DDIM (arXiv 2010.02502) or, the same, of Euler; with that of a
    two-level network it is the flow map of consistency trajectory models (arXiv 2310.02279, eq. 5).
    """
    return heads_for + like(then / now, x) * (x - heads_for)


def target_of(x: Tensor, arrived: Tensor, now: Tensor, then: Tensor) -> Tensor:
    """The point that a jump must head for to arrive at ``arrived``: the inverse of :func:`jump`, for ``then < now``."""
    ratio = like(then / now, x)
    return (arrived - ratio * x) / (1 - ratio)


def slope(x: Tensor, denoised: Tensor, now: Tensor) -> Tensor:
    """``dx / dsigma = (x - D) / sigma`` of the probability flow, shape of ``x``."""
    return (x - denoised) / like(now, x)


def step(
    denoise: Denoise, x: Tensor, now: Tensor, then: Tensor, *, order: Order = "heun", **condition: Tensor
) -> Tensor:
    """One step of a solver; ``heun`` falls back to its first half where ``then`` is 0."""
    slope_now = slope(x, denoise(x, now, **condition), now)
    width = like(then - now, x)
    ahead = x + width * slope_now
    if order == "euler":
        return ahead
    safe = torch.where(then > 0, then, now)
    slope_then = slope(ahead, denoise(ahead, safe, **condition), safe)
    corrected = x + width * (slope_now + slope_then) / 2
    return torch.where(like((then > 0).to(x.dtype), x) > 0, corrected, ahead)


def solve(
    denoise: Denoise,
    x: Tensor,
    now: Tensor,
    then: Tensor,
    *,
    steps: int = 1,
    order: Order = "heun",
    **condition: Tensor,
) -> Tensor:
    """Several steps of equal ratio from ``now`` to ``then > 0``; a single one may go to 0."""
    ratio = (then / now) ** (1 / steps)
    for k in range(steps):
        x = step(
            denoise, x, now * ratio**k, then if k == steps - 1 else now * ratio ** (k + 1), order=order, **condition
        )
    return x


def stochastic_step(
    denoise: Denoise,
    x: Tensor,
    now: Tensor,
    then: Tensor,
    noise: Tensor,
    *,
    strength: float = 1.0,
    **condition: Tensor,
) -> Tensor:
    """One step of the reverse diffusion with part of its noise: ``strength`` 0 is DDIM, 1 the ancestral sampler.

    ``x' = D + sqrt(then^2 - (strength b)^2) eps + strength b z`` with the posterior's variance ``b^2 = then^2 (1 -
    then^2 / now^2)`` (arXiv 2010.02502, eq. 16, on the EDM path).
    """
    denoised = denoise(x, now, **condition)
    added = strength * then * torch.sqrt((1 - (then / now) ** 2).clamp_min(0))
    kept = torch.sqrt((then**2 - added**2).clamp_min(0))
    return denoised + like(kept / now, x) * (x - denoised) + like(added, x) * noise


def renoise(denoised: Tensor, then: Tensor, noise: Tensor) -> Tensor:
    """A clean estimate at a level again: ``D + then z``, as consistency models sample in several steps."""
    return denoised + like(then, denoised) * noise


def tangent(
    call: Callable[..., Tensor], points: tuple[Tensor, ...], directions: tuple[Tensor, ...], *, width: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """``call(*points)`` and its derivative along ``directions``, without gradient for either.

    Forward-mode differentiation, with attention by plain products of matrices, because its fused kernels have no such
    derivative. Where the network has another operator without it, a central difference of ``width`` times the
    directions, with one warning; that is of use in float32, not in half precision.

    Returns:
        value and derivative, shaped like what ``call`` gives.
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        try:
            found = torch.func.jvp(call, points, directions)
            value, derivative = found[0], found[1]
        except (NotImplementedError, RuntimeError) as error:
            if not any(word in str(error) for word in ("forward AD", "functorch", "jvp")):
                raise
            _say_once(str(error).splitlines()[0])
            value = call(*points)
            ahead = call(*(p + width * d for p, d in zip(points, directions, strict=True)))
            behind = call(*(p - width * d for p, d in zip(points, directions, strict=True)))
            derivative = (ahead - behind) / (2 * width)
    return value.detach(), derivative.detach()


@cache
def _say_once(why: str) -> None:
    say(f"no forward-mode derivative here, so a finite difference is taken: {why}")
