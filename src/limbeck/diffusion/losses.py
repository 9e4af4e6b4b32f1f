"""Losses and gradients of diffusion distillation, as pure functions in EDM space.

Per-sample results are means over the dimensions of a sample, so that weights mean the same at every resolution.
"""

from __future__ import annotations

import math
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


def pseudo_huber(prediction: Tensor, target: Tensor, huber: float = 0.00054) -> Tensor:
    """``(sqrt(|p - t|^2 + c^2) - c) / d`` of each sample [B], with ``c = huber sqrt(d)`` of its ``d`` dimensions.

    arXiv 2310.14189, eq. 7, there without the division.
    """
    _same(prediction, target)
    difference = (prediction - target).flatten(1)
    dimensions = difference.shape[1]
    c = huber * math.sqrt(dimensions)
    return (torch.sqrt(difference.square().sum(dim=1) + c**2) - c) / dimensions


def adaptive(errors: Tensor, dimensions: int, power: float = 1.0, floor: float = 1e-3) -> Tensor:
    """Squared errors [B], as means over ``dimensions``, weighted by ``1 / sg[|d|^2 + floor]^power`` (arXiv 2505.13447).

    With a power of 1/2 it is the gradient of a pseudo-Huber distance; with 1 all samples pull alike.
    """
    return errors / (errors.detach() * dimensions + floor) ** power


def identity_loss(samples: Tensor, real: Tensor, fake: Tensor, alpha: float, *, normalise: bool = True) -> Tensor:
    """The generator's loss of score identity distillation, [B] (arXiv 2404.04057, eq. 23).

    ``w <real - fake, fake - x> + (1 - alpha) w |real - fake|^2`` over the dimensions, with the estimates at noised
    ``samples`` that let gradients pass to them, and ``w = 1 / sg[mean |x - real|]``. At ``alpha`` 1/2 and without
    ``normalise``, twice its gradient is that of ``|real - fake|^2`` for a perfect critic.

    Args:
        samples: x [B, *shape], of the generator.
        real: the teacher's estimates [B, *shape].
        fake: the critic's estimates [B, *shape].
        alpha: 1 is the choice that hardly fails, 1.2 the paper's best.
        normalise: whether to weigh by ``w``.
    """
    _same(samples, real)
    _same(samples, fake)
    gap = real - fake
    value = (gap * (fake - samples) + (1 - alpha) * gap.square()).flatten(1).mean(dim=1)
    if not normalise:
        return value
    scale = (samples - real).detach().abs().flatten(1).mean(dim=1)
    return value / scale.clamp_min(1e-5)


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
