"""Laws of the noise level that training draws from: pure maps from uniform numbers to EDM levels ``sigma``.

They take uniform (or normal) numbers instead of drawing them, so that a method can use noise that depends on the
sample alone (:meth:`limbeck.engine.method.Clock.uniform`).
"""

from __future__ import annotations

import torch
from torch import Tensor


def karras(u: Tensor, sigma_min: float | Tensor, sigma_max: float | Tensor, rho: float = 7.0) -> Tensor:
    """The level at the position ``u`` in [0, 1] of EDM's grid; 0 gives ``sigma_min``, 1 ``sigma_max``.

    These may be each sample's own.

    Uniform ``u`` is what the distribution-matching methods draw for EDM teachers. Half of the positions of
    ``[0.002, 80]`` at ``rho = 7`` lie below 2.5.
    """
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (low + u * (high - low)) ** rho


def log_uniform(u: Tensor, sigma_min: float, sigma_max: float) -> Tensor:
    """The level whose logarithm lies at the position ``u`` between those of ``sigma_min`` and ``sigma_max``."""
    return sigma_min * (sigma_max / sigma_min) ** u


def log_normal(z: Tensor, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """``exp(mean + std z)`` of standard normal ``z``: EDM's training law (arXiv 2206.00364)."""
    return torch.exp(mean + std * z)


def within(u: Tensor, low: float, high: float) -> Tensor:
    """Positions ``u`` in [0, 1] squeezed into ``[low, high]``, as the 0.02 to 0.98 of distribution matching."""
    return low + u * (high - low)
