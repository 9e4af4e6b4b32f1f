"""Losses and gradients of diffusion distillation, as pure functions in EDM space.

Per-sample results are means over the dimensions of a sample, so that weights mean the same at every resolution.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from limbeck.diffusion.paths import like

Weighting = Literal["edm", "snr", "uniform"]
"""How a denoising loss weighs noise levels: see :func:`denoising_weight`."""


def denoising_weight(sigma: Tensor, kind: Weighting, sigma_data: float) -> Tensor:
    """Weight [B] of ``|D - x0|^2`` at the levels ``sigma`` [B].

    ``edm`` is ``(sigma^2 + sigma_data^2) / (sigma sigma_data)^2`` (arXiv 2206.00364), which makes the loss of the
    preconditioned network of unit size at every level; ``snr`` is ``1 / sigma^2``, the loss on eps; ``uniform`` is 1.
    """
    if kind == "edm":
        return 1 / sigma**2 + 1 / sigma_data**2
    if kind == "snr":
        return 1 / sigma**2
    if kind == "uniform":
        return torch.ones_like(sigma)
    raise ValueError(f"unknown weighting '{kind}'")


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of each sample, [B]."""
    _same(prediction, target)
    return (prediction - target).square().flatten(1).mean(dim=1)


def matching_direction(samples: Tensor, real: Tensor, fake: Tensor, *, normalise: bool = True) -> Tensor:
    """The direction in which the reverse KL from the generator's law to the teacher's grows, [B, *shape].

    With the denoisers' estimates ``real`` (teacher) and ``fake`` (critic) at the noised ``samples``, all
    [B, *shape], it is ``fake - real``, which is ``sigma^2`` times the difference of the scores. ``normalise`` divides
    it by the mean absolute distance of each sample to ``real`` (arXiv 2311.18828, eq. 8), so that all noise levels
    pull alike. Non-finite entries become zero. No gradient passes.

    Raises:
        ValueError: the shapes differ.
    """
    _same(samples, real)
    _same(samples, fake)
    with torch.no_grad():
        samples, real, fake = (t.detach().to(_wide(t)) for t in (samples, real, fake))
        direction = fake - real
        if normalise:
            direction = direction / like((samples - real).abs().flatten(1).mean(dim=1), samples)
        return torch.nan_to_num(direction, nan=0.0, posinf=0.0, neginf=0.0)


def surrogate(samples: Tensor, direction: Tensor) -> Tensor:
    """A loss [B] whose gradient in ``samples`` [B, *shape] is ``direction`` over the number of dimensions.

    ``1/2 mean |x - sg[x - g]|^2``: so a gradient that is known without a loss can train a generator.
    """
    _same(samples, direction)
    samples = samples.to(_wide(samples))
    return squared_error(samples, (samples - direction).detach()) / 2


def _wide(t: Tensor) -> torch.dtype:
    return torch.promote_types(t.dtype, torch.float32)


def _same(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"shapes must be the same, got {tuple(a.shape)} and {tuple(b.shape)}")
