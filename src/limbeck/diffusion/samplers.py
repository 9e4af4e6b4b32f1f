"""Samplers of the probability flow ``dx/dsigma = (x - D(x, sigma)) / sigma`` in EDM space, with their cost.

A solver takes any denoiser, a start and a decreasing grid of noise levels; every evaluation of the network is counted.
Other paths and predictions enter through :func:`limbeck.diffusion.paths.to_edm`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from limbeck.diffusion.levels import karras
from limbeck.diffusion.paths import Denoise

Sampler = Literal["euler", "heun", "dpmpp_2m"]


class Solution(NamedTuple):
    """Where a solver ended, ``samples`` [B, *shape], and ``nfe``, its network evaluations per sample."""

    samples: Tensor
    nfe: int


def karras_grid(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """``steps + 1`` decreasing levels, float64: from ``sigma_max`` to ``sigma_min``, then 0 (arXiv 2206.00364, eq. 5).

    Raises:
        ValueError: fewer than one step, or levels that do not satisfy ``0 < sigma_min < sigma_max``.
    """
    _check_range(steps, sigma_min, sigma_max)
    levels = karras(torch.linspace(1, 0, steps, dtype=torch.float64), sigma_min, sigma_max, rho)
    return torch.cat([levels, torch.zeros_like(levels[:1])])


def log_grid(steps: int, sigma_from: float, sigma_to: float) -> Tensor:
    """``steps + 1`` levels, float64, evenly spaced in the logarithm; both ends positive, either direction."""
    if steps < 1 or sigma_from <= 0 or sigma_to <= 0:
        raise ValueError(f"a grid in log sigma needs a step and positive ends, not {steps}, {sigma_from}, {sigma_to}")
    return torch.exp(torch.linspace(math.log(sigma_from), math.log(sigma_to), steps + 1, dtype=torch.float64))


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, **condition: Tensor) -> Solution:
    """First order: DDIM without noise. ``x`` [B, *shape] at ``sigmas[0]``; one evaluation a step."""
    call = _Counted(denoise, condition)
    for now, following in _pairs(sigmas):
        x = _ddim(x, call(x, now), now, following)
    return Solution(x, call.nfe)


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, **condition: Tensor) -> Solution:
    """EDM's second order: the slope averaged over both ends of a step; two evaluations, one in a step to zero."""
    call = _Counted(denoise, condition)
    for now, following in _pairs(sigmas):
        slope = (x - call(x, now)) / now
        ahead = x + (following - now) * slope
        if following > 0:
            slope = (slope + (ahead - call(ahead, following)) / following) / 2
            ahead = x + (following - now) * slope
        x = ahead
    return Solution(x, call.nfe)


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, **condition: Tensor) -> Solution:
    """DPM-Solver++(2M) (arXiv 2211.01095): second order by extrapolation in log sigma; one evaluation a step.

    The first step and a step to zero are first order.
    """
    call = _Counted(denoise, condition)
    before: Tensor | None = None
    last = 0.0
    for now, following in _pairs(sigmas):
        denoised = call(x, now)
        if before is None or following == 0:
            x = _ddim(x, denoised, now, following)
        else:
            ratio = math.log(now / following) / last
            x = _ddim(x, denoised + (denoised - before) * (ratio / 2), now, following)
        before, last = denoised, math.log(now / following) if following > 0 else math.inf
    return Solution(x, call.nfe)


def rk4(denoise: Denoise, x: Tensor, sigmas: Tensor, **condition: Tensor) -> Solution:
    """Fourth order in ``s = log sigma``, where ``dx/ds = x - D``; four evaluations a step, all levels positive."""
    call = _Counted(denoise, condition)
    for now, following in _pairs(sigmas):
        h, middle = math.log(following / now), math.sqrt(now * following)
        k1 = x - call(x, now)
        x2 = x + h / 2 * k1
        k2 = x2 - call(x2, middle)
        x3 = x + h / 2 * k2
        k3 = x3 - call(x3, middle)
        x4 = x + h * k3
        k4 = x4 - call(x4, following)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return Solution(x, call.nfe)


SOLVERS: dict[str, Callable[..., Solution]] = {"euler": euler, "heun": heun, "dpmpp_2m": dpmpp_2m}


@torch.no_grad()
def sample(
    denoise: Denoise,
    noise: Tensor,
    *,
    steps: int,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    sampler: Sampler = "heun",
    label: Tensor | None = None,
) -> Solution:
    """Samples of the model from standard normal ``noise`` [B, *shape], down the Karras grid; no gradient."""
    condition = {} if label is None else {"label": label}
    grid = karras_grid(steps, sigma_min, sigma_max, rho)
    return SOLVERS[sampler](denoise, noise * sigma_max, grid, **condition)


@torch.no_grad()
def flow(denoise: Denoise, x: Tensor, source: float, target: float, steps: int = 256, **condition: Tensor) -> Tensor:
    """The flow's map from level ``source`` to ``target > 0``, by RK4 in log sigma: the reference for trajectories.

    In float64, 256 steps from 80 to 0.01 on a ring of eight Gaussians end within 1e-6 of the limit.
    """
    return rk4(denoise, x, log_grid(steps, source, target), **condition).samples


class _Counted:
    """A denoiser called at one level for the whole batch, with the evaluations it cost."""

    def __init__(self, denoise: Denoise, condition: dict[str, Tensor]) -> None:
        self.denoise = denoise
        self.condition = condition
        self.cost = int(getattr(denoise, "cost", 1))
        self.nfe = 0

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        self.nfe += self.cost
        return self.denoise(x, x.new_full((len(x),), sigma), **self.condition)


def _ddim(x: Tensor, denoised: Tensor, now: float, following: float) -> Tensor:
    return denoised + (following / now) * (x - denoised)


def _pairs(sigmas: Tensor) -> Iterator[tuple[float, float]]:
    return pairwise(sigmas.tolist())


def _check_range(steps: int, sigma_min: float, sigma_max: float) -> None:
    if steps < 1 or not 0 < sigma_min < sigma_max:
        raise ValueError(f"a grid needs a step and 0 < sigma_min < sigma_max, not {steps}, {sigma_min}, {sigma_max}")
