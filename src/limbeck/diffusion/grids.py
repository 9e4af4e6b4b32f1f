"""Grids of noise levels that samplers go down: float64 tensors, falling from ``sigma_max``, with a last level of 0."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from limbeck.diffusion.levels import karras
from limbeck.diffusion.paths import FlowMatching, NoisePath

Grid = Literal["karras", "log_snr", "linear", "shifted"]


def karras_grid(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """``steps + 1`` decreasing levels, float64: from ``sigma_max`` to ``sigma_min``, then 0 (arXiv 2206.00364, eq. 5).

    Raises:
        ValueError: fewer than one step, or levels that do not satisfy ``0 < sigma_min < sigma_max``.
    """
    _check_range(steps, sigma_min, sigma_max)
    return _with_zero(karras(_falling(steps), sigma_min, sigma_max, rho))


def log_snr_grid(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Levels evenly spaced in the logarithm of the signal-to-noise ratio, then 0 (arXiv 2206.00927, section 4.1)."""
    _check_range(steps, sigma_min, sigma_max)
    return _with_zero(sigma_min * (sigma_max / sigma_min) ** _falling(steps))


def linear_grid(steps: int, sigma_min: float, sigma_max: float, path: NoisePath | None = None) -> Tensor:
    """Levels evenly spaced in the time of a path, by default that of rectified flow, then 0."""
    _check_range(steps, sigma_min, sigma_max)
    path = FlowMatching() if path is None else path
    low, high = path.time(torch.tensor([sigma_min, sigma_max], dtype=torch.float64))
    levels = path.level(low + (high - low) * _falling(steps))
    return _with_zero(_between(levels, sigma_min, sigma_max))


def shifted_grid(steps: int, sigma_min: float, sigma_max: float, shift: float = 3.0) -> Tensor:
    """Even times of rectified flow after ``t <- s t / (1 + (s - 1) t)``, then 0 (arXiv 2403.03206, eq. 23).

    The shift multiplies the level ``t / (1 - t)`` by ``s``; the even times are those whose ends it takes to
    ``sigma_max`` and ``sigma_min``.

    Raises:
        ValueError: the shift is not positive, or as :func:`karras_grid`.
    """
    if shift <= 0:
        raise ValueError(f"the shift of a grid must be positive, not {shift}")
    even = linear_grid(steps, sigma_min / shift, sigma_max / shift)
    return torch.cat([_between(shift * even[:-1], sigma_min, sigma_max), even[-1:]])


def log_grid(steps: int, sigma_from: float, sigma_to: float) -> Tensor:
    """``steps + 1`` levels, float64, evenly spaced in the logarithm; both ends positive, either direction."""
    if steps < 1 or sigma_from <= 0 or sigma_to <= 0:
        raise ValueError(f"a grid in log sigma needs a step and positive ends, not {steps}, {sigma_from}, {sigma_to}")
    return torch.exp(torch.linspace(math.log(sigma_from), math.log(sigma_to), steps + 1, dtype=torch.float64))


def grid_of(
    name: Grid, steps: int, sigma_min: float, sigma_max: float, *, rho: float = 7.0, shift: float = 3.0
) -> Tensor:
    """The grid of that name; ``rho`` is for ``karras``, ``shift`` for ``shifted``."""
    made: dict[str, Callable[[], Tensor]] = {
        "karras": lambda: karras_grid(steps, sigma_min, sigma_max, rho),
        "log_snr": lambda: log_snr_grid(steps, sigma_min, sigma_max),
        "linear": lambda: linear_grid(steps, sigma_min, sigma_max),
        "shifted": lambda: shifted_grid(steps, sigma_min, sigma_max, shift),
    }
    return made[name]()


def _falling(steps: int) -> Tensor:
    return torch.linspace(1, 0, steps, dtype=torch.float64)


def _with_zero(levels: Tensor) -> Tensor:
    return torch.cat([levels, torch.zeros_like(levels[:1])])


def _between(levels: Tensor, sigma_min: float, sigma_max: float) -> Tensor:
    # A path's time and back costs the last digits, and the ends are promised.
    return levels.clamp(sigma_min, sigma_max)


def _check_range(steps: int, sigma_min: float, sigma_max: float) -> None:
    if steps < 1 or not 0 < sigma_min < sigma_max:
        raise ValueError(f"a grid needs a step and 0 < sigma_min < sigma_max, not {steps}, {sigma_min}, {sigma_max}")
