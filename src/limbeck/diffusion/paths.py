"""Noise paths ``x_t = alpha(t) x0 + sigma(t) eps`` and the predictions a denoising network can make on them.

Time runs from 0 (data) up (noise). The family's one convention is the *EDM space*: ``alpha = 1``, the noise level
``sigma`` is the time, and a denoiser is a callable ``denoise(x [B, *shape], sigma [B]) -> E[x0 | x] [B, *shape]``.
Every other path is EDM after rescaling (``x / alpha`` at level ``sigma / alpha``), and every prediction is linear in
the denoiser at fixed ``(x, t)``, so a network of any kind becomes a denoiser at the boundary and stays one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Prediction = Literal["denoised", "eps", "score", "v", "v_rotated"]
"""What a network predicts. ``v`` is the velocity dx/dt of the probability flow, ``v_rotated`` the
``alpha eps - sigma x0`` of Salimans and Ho (arXiv 2202.00512), a velocity (up to a factor) on the cosine path only."""

Denoise = Callable[..., Tensor]
"""``denoise(x [B, *shape], sigma [B]) -> E[x0 | x]``; conditional ones also take ``label`` (int64 [B])."""


def like(values: Tensor | float, x: Tensor) -> Tensor:
    """``values`` ([B] or a scalar) in the dtype and on the device of ``x`` [B, *shape], shaped to multiply it.

    Raises:
        ValueError: there is neither one value nor one per sample.
    """
    values = torch.as_tensor(values, dtype=x.dtype, device=x.device)
    if values.dim() == 0:
        return values
    if values.shape != x.shape[:1]:
        raise ValueError(f"one value per sample is needed: got {tuple(values.shape)} for x of {tuple(x.shape)}")
    return values.reshape(-1, *[1] * (x.dim() - 1))


class Coefficients(NamedTuple):
    """A path at one time: signal, noise and their time derivatives."""

    alpha: Tensor
    sigma: Tensor
    alpha_dot: Tensor
    sigma_dot: Tensor


@dataclass(frozen=True)
class NoisePath(ABC):
    """``x_t = alpha(t) x0 + sigma(t) eps`` with ``eps ~ N(0, I)``. Times are tensors; results have their shape."""

    @abstractmethod
    def at(self, t: Tensor) -> Coefficients:
        """``alpha, sigma`` and their derivatives at time ``t``."""

    @abstractmethod
    def time(self, level: Tensor) -> Tensor:
        """The time at which the EDM noise level ``sigma / alpha`` is ``level``; the inverse of :meth:`level`."""

    def level(self, t: Tensor) -> Tensor:
        """The EDM noise level ``sigma / alpha`` at time ``t`` (infinite where nothing of the data is left)."""
        at = self.at(t)
        return at.sigma / at.alpha

    def noisy(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """``alpha x0 + sigma eps``, shape of ``x0``."""
        at = self._shaped(t, x0)
        return at.alpha * x0 + at.sigma * eps

    def _shaped(self, t: Tensor, x: Tensor) -> Coefficients:
        return Coefficients(*(like(c, x) for c in self.at(torch.as_tensor(t, dtype=x.dtype, device=x.device))))


@dataclass(frozen=True)
class EDM(NoisePath):
    """``alpha = 1, sigma = t``, the variance-exploding path (Karras et al., arXiv 2206.00364)."""

    def at(self, t: Tensor) -> Coefficients:  # noqa: D102
        one = torch.ones_like(t)
        return Coefficients(one, t, torch.zeros_like(t), one)

    def time(self, level: Tensor) -> Tensor:  # noqa: D102
        return level


@dataclass(frozen=True)
class VPLinear(NoisePath):
    """The variance-preserving path with linear beta (Song et al., arXiv 2011.13456), ``t`` in (0, 1].

    ``log alpha = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2`` and ``sigma^2 = 1 - alpha^2``.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def at(self, t: Tensor) -> Coefficients:  # noqa: D102
        slope = self.beta_max - self.beta_min
        log_alpha = -(t**2) * slope / 4 - t * self.beta_min / 2
        alpha, sigma = torch.exp(log_alpha), torch.sqrt(-torch.expm1(2 * log_alpha))
        alpha_dot = -alpha * (t * slope + self.beta_min) / 2
        return Coefficients(alpha, sigma, alpha_dot, -alpha * alpha_dot / sigma)

    def time(self, level: Tensor) -> Tensor:  # noqa: D102
        # The root of the quadratic in t, written so that small levels do not cancel.
        log1p = torch.log1p(level**2)
        slope = self.beta_max - self.beta_min
        return 2 * log1p / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * log1p))


@dataclass(frozen=True)
class VPCosine(NoisePath):
    """``alpha = cos(pi t / 2), sigma = sin(pi t / 2)``, ``t`` in [0, 1]; ``v`` is ``pi / 2`` times ``v_rotated``."""

    def at(self, t: Tensor) -> Coefficients:  # noqa: D102
        half = math.pi / 2
        cos, sin = torch.cos(half * t), torch.sin(half * t)
        return Coefficients(cos, sin, -half * sin, half * cos)

    def time(self, level: Tensor) -> Tensor:  # noqa: D102
        return torch.atan(level) * (2 / math.pi)


@dataclass(frozen=True)
class FlowMatching(NoisePath):
    """``alpha = 1 - t, sigma = t``, the straight path of rectified flow (arXiv 2209.03003); ``v = eps - x0``."""

    def at(self, t: Tensor) -> Coefficients:  # noqa: D102
        one = torch.ones_like(t)
        return Coefficients(1 - t, t, -one, one)

    def time(self, level: Tensor) -> Tensor:  # noqa: D102
        return level / (1 + level)


@dataclass(frozen=True)
class TrigFlow(NoisePath):
    """``alpha = cos t, sigma = sigma_data sin t``, ``t`` in [0, pi / 2] (Lu and Song, arXiv 2410.11081).

    A TrigFlow network F gives the velocity ``v = sigma_data F(x / sigma_data, t)``.
    """

    sigma_data: float = 1.0

    def at(self, t: Tensor) -> Coefficients:  # noqa: D102
        cos, sin = torch.cos(t), torch.sin(t)
        return Coefficients(cos, self.sigma_data * sin, -sin, self.sigma_data * cos)

    def time(self, level: Tensor) -> Tensor:  # noqa: D102
        return torch.atan(level / self.sigma_data)


def to_denoised(path: NoisePath, x: Tensor, t: Tensor, value: Tensor, kind: Prediction) -> Tensor:
    """``E[x0 | x_t]`` from any prediction at ``(x [B, *shape], t [B])``.

    ``eps``, ``score`` and ``v`` do not determine it where ``alpha`` is zero (the result is then not finite).
    """
    _same(x, value)
    at = path._shaped(t, x)
    if kind == "denoised":
        return value
    if kind == "eps":
        return (x - at.sigma * value) / at.alpha
    if kind == "score":
        return (x + at.sigma**2 * value) / at.alpha
    if kind == "v":
        return (at.sigma_dot * x - at.sigma * value) / (at.alpha * at.sigma_dot - at.alpha_dot * at.sigma)
    if kind == "v_rotated":
        return (at.alpha * x - at.sigma * value) / (at.alpha**2 + at.sigma**2)
    raise ValueError(f"unknown prediction '{kind}'")


def from_denoised(path: NoisePath, x: Tensor, t: Tensor, denoised: Tensor, kind: Prediction) -> Tensor:
    """The prediction of that kind from ``denoised = E[x0 | x_t]``; the inverse of :func:`to_denoised`.

    All but ``denoised`` itself need ``sigma > 0``.
    """
    _same(x, denoised)
    at = path._shaped(t, x)
    if kind == "denoised":
        return denoised
    eps = (x - at.alpha * denoised) / at.sigma
    if kind == "eps":
        return eps
    if kind == "score":
        return -eps / at.sigma
    if kind == "v":
        return at.alpha_dot * denoised + at.sigma_dot * eps
    if kind == "v_rotated":
        return at.alpha * eps - at.sigma * denoised
    raise ValueError(f"unknown prediction '{kind}'")


def convert(path: NoisePath, x: Tensor, t: Tensor, value: Tensor, source: Prediction, target: Prediction) -> Tensor:
    """Turn one prediction at ``(x, t)`` into another."""
    return from_denoised(path, x, t, to_denoised(path, x, t, value, source), target)


def on_path(denoise: Denoise, path: NoisePath) -> Denoise:
    """An EDM denoiser as the denoiser of another path: ``D(x_t, t) = D_EDM(x_t / alpha, sigma / alpha)``."""

    def denoised(x: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        t = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))
        return denoise(x / like(path.at(t).alpha, x), path.level(t), **condition)

    return denoised


def to_edm(network: Denoise, path: NoisePath, kind: Prediction) -> Denoise:
    """A network ``(x_t, t) -> prediction`` of any path and kind as an EDM denoiser ``(x, sigma) -> E[x0 | x]``."""

    def denoised(x: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor:
        t = path.time(torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x)))
        scaled = x * like(path.at(t).alpha, x)
        return to_denoised(path, scaled, t, network(scaled, t, **condition), kind)

    return denoised


class Preconditioning(NamedTuple):
    """EDM's scalings: ``D = c_skip x + c_out F(c_in x, c_noise)``."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def precondition(sigma: Tensor, sigma_data: float, floor: float = 0.0) -> Preconditioning:
    """Scalings for which F has input and target of unit variance at every ``sigma`` [B] (arXiv 2206.00364, table 1).

    Above 0, ``floor`` is the level at which D is the identity: ``c_skip = sigma_data^2 / ((sigma - floor)^2 +
    sigma_data^2)`` and ``c_out = sigma_data (sigma - floor) / sqrt(sigma^2 + sigma_data^2)`` (arXiv 2303.01469).
    """
    root = torch.sqrt(sigma**2 + sigma_data**2)
    above = sigma - floor
    c_skip = sigma_data**2 / (above**2 + sigma_data**2)
    return Preconditioning(c_skip, above * sigma_data / root, 1 / root, torch.log(sigma) / 4)


def _same(x: Tensor, value: Tensor) -> None:
    if x.shape != value.shape:
        raise ValueError(f"x {tuple(x.shape)} and the prediction {tuple(value.shape)} must have the same shape")
