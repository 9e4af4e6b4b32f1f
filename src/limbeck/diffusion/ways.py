"""The ways that samples take from noise: what a page draws for points in the plane."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limbeck.diffusion import samplers
from limbeck.diffusion.base import conditioned


@torch.no_grad()
def ways(
    model: nn.Module,
    start: Tensor,
    label: Tensor | None,
    *,
    sigma_data: float,
    steps: int,
    sigma_min: float,
    sigma_max: float,
    rho: float,
) -> Tensor | None:
    """Where samples are at each noise level of a model, all to the scale of the data: [B, levels + 1, *shape].

    Points at level sigma are divided by ``sqrt(1 + (sigma / sigma_data)^2)``, so that noise is as wide as the data.

    Args:
        model: a denoiser, which Heun's method samples, or a ``few_step`` generator; None for any other.
        start: standard normal noise, as the model takes it.
        label: int64 [B].
        sigma_data: standard deviation of the data.
        steps: of Heun's method.
        sigma_min: lowest level of its grid.
        sigma_max: highest level of its grid.
        rho: curvature of its grid.
    """
    if callable(visits := getattr(model, "visits", None)):
        seen: list[tuple[float, Tensor]] = visits(start, label)
    elif callable(denoise := getattr(model, "denoise", None)):
        seen = _down(denoise, start, label, samplers.karras_grid(steps, sigma_min, sigma_max, rho))
    else:
        return None
    shown = [x.cpu() / (1 + (sigma / sigma_data) ** 2) ** 0.5 for sigma, x in seen]
    return torch.stack(shown, dim=1)


def _down(denoise: Any, start: Tensor, label: Tensor | None, grid: Tensor) -> list[tuple[float, Tensor]]:
    x = start * float(grid[0])
    seen = [(float(grid[0]), x)]
    for k in range(len(grid) - 1):
        x = samplers.heun(denoise, x, grid[k : k + 2], **conditioned(label)).samples
        seen.append((float(grid[k + 1]), x))
    return seen
