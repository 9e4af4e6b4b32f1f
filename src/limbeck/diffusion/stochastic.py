"""Samplers that add noise on the way. Their marginal laws are right, their paths are not the flow's.

No generator: ``noise`` is anything whose item ``k`` is the standard normal noise [B, *shape] of step ``k``, a tensor
[steps, B, *shape] or :class:`Keyed`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Protocol

from torch import Tensor

from limbeck.diffusion.paths import Denoise
from limbeck.diffusion.solvers import Counted, Solution, ddim_step, heun_step, pairs
from limbeck.engine import noise as numbers


class Noise(Protocol):
    """The noise of every step."""

    def __getitem__(self, step: int, /) -> Tensor:
        """Standard normal, [B, *shape]."""
        ...


class Keyed:
    """Noise that depends on the sample, the step and ``key`` alone; the same however a batch is cut.

    Args:
        ids: of the samples, int64 [B].
        like: a tensor [B, *shape] of the dtype and on the device that is wanted.
        key: anything printable.
    """

    def __init__(self, ids: Tensor, like: Tensor, key: Hashable) -> None:
        self.ids = ids
        self.like = like
        self.key = key

    def __getitem__(self, step: int, /) -> Tensor:
        """Standard normal, [B, *shape]."""
        return numbers.normal(self.ids, tuple(self.like.shape[1:]), (self.key, step)).to(self.like)


def sde_dpmpp_1(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise, **condition: Tensor) -> Solution:
    """SDE-DPM-Solver++(1) (arXiv 2211.01095): the reverse diffusion with the estimate held still over a step.

    ``x' = r^2 x + (1 - r^2) D + sigma' sqrt(1 - r^2) z`` with ``r = sigma' / sigma``: on this path the ancestral
    sampler, that is :func:`ddim` with ``eta = 1``.
    """
    call = Counted(denoise, condition)
    for k, (now, following) in enumerate(pairs(sigmas)):
        x = _reverse(x, call(x, now), now, following, noise, k)
    return Solution(x, call.nfe)


def sde_dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise, **condition: Tensor) -> Solution:
    """SDE-DPM-Solver++(2M): likewise, with the estimate extrapolated to the middle of the step in log sigma."""
    call = Counted(denoise, condition)
    before: tuple[Tensor, float] | None = None
    for k, (now, following) in enumerate(pairs(sigmas)):
        denoised = call(x, now)
        ahead = denoised
        h = math.log(now / following) if following > 0 else math.inf
        if before is not None and following > 0:
            ahead = denoised + (denoised - before[0]) * (h / before[1] / 2)
        x = _reverse(x, ahead, now, following, noise, k)
        before = denoised, h
    return Solution(x, call.nfe)


def ddim(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise, eta: float = 1.0, **condition: Tensor
) -> Solution:
    """DDIM with the share ``eta`` of the posterior's noise (arXiv 2010.02502, eq. 16); 0 is Euler, 1 ancestral."""
    call = Counted(denoise, condition)
    for k, (now, following) in enumerate(pairs(sigmas)):
        denoised = call(x, now)
        added = eta * following * math.sqrt(max(1 - (following / now) ** 2, 0.0))
        kept = math.sqrt(max(following**2 - added**2, 0.0))
        x = denoised + (kept / now) * (x - denoised)
        if added > 0:
            x = x + added * noise[k]
    return Solution(x, call.nfe)


def churn(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    s_churn: float = 40.0,
    s_min: float = 0.05,
    s_max: float = 50.0,
    s_noise: float = 1.003,
    **condition: Tensor,
) -> Solution:
    """EDM's stochastic sampler (arXiv 2206.00364, algorithm 2): noise is added before each step of Heun's method.

    ``s_churn`` is shared by the steps, of which each raises its level by a factor of the square root of 2 at most,
    where the level lies between ``s_min`` and ``s_max``; ``s_noise`` scales the noise.
    """
    call = Counted(denoise, condition)
    most = min(s_churn / (len(sigmas) - 1), math.sqrt(2) - 1)
    for k, (now, following) in enumerate(pairs(sigmas)):
        raised = now * (1 + most) if s_min <= now <= s_max else now
        if raised > now:
            x = x + s_noise * math.sqrt(raised**2 - now**2) * noise[k]
        x = heun_step(call, x, raised, following)
    return Solution(x, call.nfe)


def renoise(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise, **condition: Tensor) -> Solution:
    """Fresh noise on every clean estimate, as consistency models sample in several steps.

    For a denoiser the law is right only where it is certain of the clean sample: this is a sampler for maps.
    """
    call = Counted(denoise, condition)
    for k, (now, following) in enumerate(pairs(sigmas)):
        x = call(x, now)
        if following > 0:
            x = x + following * noise[k]
    return Solution(x, call.nfe)


STOCHASTIC: dict[str, Callable[..., Solution]] = {
    "sde_dpmpp_1": sde_dpmpp_1,
    "sde_dpmpp_2m": sde_dpmpp_2m,
    "ddim": ddim,
    "churn": churn,
    "renoise": renoise,
}
"""Samplers that take noise, by name."""


def _reverse(x: Tensor, denoised: Tensor, now: float, following: float, noise: Noise, k: int) -> Tensor:
    """A step of the reverse diffusion, exact where the denoiser is constant."""
    if following == 0:
        return ddim_step(x, denoised, now, following)
    ratio = (following / now) ** 2
    return ratio * x + (1 - ratio) * denoised + following * math.sqrt(1 - ratio) * noise[k]
