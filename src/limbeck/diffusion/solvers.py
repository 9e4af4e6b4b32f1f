"""Solvers of the probability flow ``dx/dsigma = (x - D(x, sigma)) / sigma`` in EDM space, with their cost.

Between two levels, with ``u`` the distance travelled in ``-log sigma`` and ``h`` the whole of it, the flow is
``x' = e^-h x + int_0^h e^(u - h) D du``: what a solver of the family DPM-Solver++ (arXiv 2211.01095) approximates is
``D`` along the way, and the integrals are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from limbeck.diffusion.paths import Denoise


class Solution(NamedTuple):
    """Where a solver ended, ``samples`` [B, *shape], and ``nfe``, its network evaluations per sample."""

    samples: Tensor
    nfe: int


class Counted:
    """A denoiser called at one level for the whole batch, with the evaluations it cost."""

    def __init__(self, denoise: Denoise, condition: dict[str, Tensor]) -> None:
        self.denoise = denoise
        self.condition = condition
        self.cost = int(getattr(denoise, "cost", 1))
        self.nfe = 0

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """``E[x0 | x]`` [B, *shape] at one level."""
        self.nfe += self.cost
        return self.denoise(x, x.new_full((len(x),), sigma), **self.condition)


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, **condition: Tensor) -> Solution:
    """First order: DDIM without noise. ``x`` [B, *shape] at ``sigmas[0]``; one evaluation a step."""
    call = Counted(denoise, condition)
    for now, following in pairs(sigmas):
        x = ddim_step(x, call(x, now), now, following)
    return Solution(x, call.nfe)


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, **condition: Tensor) -> Solution:
    """EDM's second order: the slope averaged over both ends of a step; two evaluations, one in a step to zero."""
    call = Counted(denoise, condition)
    for now, following in pairs(sigmas):
        x = heun_step(call, x, now, following)
    return Solution(x, call.nfe)


def dpmpp_2m(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, lower_order_final: bool = False, **condition: Tensor
) -> Solution:
    """DPM-Solver++(2M) (arXiv 2211.01095): second order by extrapolation in log sigma; one evaluation a step.

    The first step and a step to zero are first order, and so is any last one with ``lower_order_final``.
    """
    return _multistep(denoise, x, sigmas, condition, 2, lower_order_final=lower_order_final)


def dpmpp_3m(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    lower_order_final: bool = False,
    published: bool = False,
    **condition: Tensor,
) -> Solution:
    """DPM-Solver++(3M): a parabola through the last three estimates in log sigma; one evaluation a step.

    The orders of the first steps rise from one, a step to zero is first order, and with ``lower_order_final`` those of
    the last ones fall to it likewise. In the authors' code, and in those that follow it, the term of the second
    derivative has half the weight that it should have, which leaves second order; ``published`` does as they do.
    """
    return _multistep(
        denoise, x, sigmas, condition, 3, lower_order_final=lower_order_final, bend=0.5 if published else 1.0
    )


def dpmpp_2s(denoise: Denoise, x: Tensor, sigmas: Tensor, **condition: Tensor) -> Solution:
    """DPM-Solver++(2S) with the midpoint in log sigma; two evaluations a step, one in a step to zero."""
    call = Counted(denoise, condition)
    for now, following in pairs(sigmas):
        denoised = call(x, now)
        if following > 0:
            middle = math.sqrt(now * following)
            denoised = call(ddim_step(x, denoised, now, middle), middle)
        x = ddim_step(x, denoised, now, following)
    return Solution(x, call.nfe)


def dpmpp_3s(denoise: Denoise, x: Tensor, sigmas: Tensor, **condition: Tensor) -> Solution:
    """DPM-Solver++(3S) with points at a third and two thirds of the way; three evaluations a step, one to zero."""
    call = Counted(denoise, condition)
    for now, following in pairs(sigmas):
        denoised = call(x, now)
        if following == 0:
            x = ddim_step(x, denoised, now, following)
            continue
        h = math.log(now / following)
        first, second = now * math.exp(-h / 3), now * math.exp(-2 * h / 3)
        gap = call(ddim_step(x, denoised, now, first), first) - denoised
        ahead = ddim_step(x, denoised, now, second) + gap * (2 * slope_weight(2 * h / 3) / (2 * h / 3))
        gap = call(ahead, second) - denoised
        x = ddim_step(x, denoised, now, following) + gap * (1.5 * slope_weight(h) / h)
    return Solution(x, call.nfe)


def rk4(denoise: Denoise, x: Tensor, sigmas: Tensor, **condition: Tensor) -> Solution:
    """Fourth order in ``s = log sigma``, where ``dx/ds = x - D``; four evaluations a step, all levels positive."""
    call = Counted(denoise, condition)
    for now, following in pairs(sigmas):
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


SOLVERS: dict[str, Callable[..., Solution]] = {
    "euler": euler,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
    "dpmpp_2s": dpmpp_2s,
    "dpmpp_3s": dpmpp_3s,
}
"""Deterministic solvers, by name."""


# -- pieces ------------------------------------------------------------------------------------------------------------


def ddim_step(x: Tensor, denoised: Tensor, now: float, following: float) -> Tensor:
    """Along the line to the clean estimate: exact where the denoiser is constant."""
    return denoised + (following / now) * (x - denoised)


def heun_step(call: Counted, x: Tensor, now: float, following: float) -> Tensor:
    """One step of EDM's solver."""
    slope = (x - call(x, now)) / now
    ahead = x + (following - now) * slope
    if following > 0:
        slope = (slope + (ahead - call(ahead, following)) / following) / 2
        ahead = x + (following - now) * slope
    return ahead


def pairs(sigmas: Tensor) -> Iterator[tuple[float, float]]:
    """Neighbouring levels."""
    return pairwise(sigmas.tolist())


def slope_weight(h: float) -> float:
    """``int_0^h e^(u - h) u du``: what a slope of one in the denoiser adds over a step of ``h`` in log sigma."""
    return h + math.expm1(-h)


def bend_weight(h: float) -> float:
    """``int_0^h e^(u - h) u^2 du``."""
    return h**2 - 2 * slope_weight(h)


def _multistep(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    condition: dict[str, Tensor],
    order: int,
    *,
    lower_order_final: bool,
    bend: float = 1.0,
) -> Solution:
    call = Counted(denoise, condition)
    steps = len(sigmas) - 1
    before: list[tuple[Tensor, float]] = []
    """Estimates, the newest first, each with the distance in log sigma that was travelled after it."""
    for k, (now, following) in enumerate(pairs(sigmas)):
        denoised = call(x, now)
        due = min(order, len(before) + 1, steps - k if lower_order_final else order)
        if following == 0:
            return Solution(ddim_step(x, denoised, now, following), call.nfe)
        h = math.log(now / following)
        if due == 2:
            (last, width), *_ = before
            # Half a slope at the whole of the step, rather than a slope's integral: the same to second order.
            x = ddim_step(x, denoised + (denoised - last) * (h / width / 2), now, following)
        elif due == 3:
            x = ddim_step(x, denoised, now, following) + _parabola(denoised, before, h, bend)
        else:
            x = ddim_step(x, denoised, now, following)
        before = [(denoised, h), *before[: order - 2]]
    return Solution(x, call.nfe)


def _parabola(denoised: Tensor, before: list[tuple[Tensor, float]], h: float, bend: float) -> Tensor:
    """What a parabola through three estimates adds to the first of them over a step."""
    (last, near), (older, far) = before
    slope, earlier = (denoised - last) / near, (last - older) / far
    curve = (slope - earlier) / (near + far)
    return slope_weight(h) * (slope + near * curve) + bend * bend_weight(h) * curve
