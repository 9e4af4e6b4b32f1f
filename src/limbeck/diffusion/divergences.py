"""What f-divergences and distances between scores make of distribution matching, as pure functions.

``r = p / q`` is the density of real over that of generated samples, and ``D_f = E_q[f(r)]``. Everything that a
divergence does to a gradient goes through its curvature ``h(r) = r^2 f''(r)``: the gradient of ``D_f`` is that of the
reverse KL weighted by ``h`` (arXiv 2502.15681, theorem 1), and along the noising diffusion with ``g^2 = 2 sigma`` it
changes by ``d D_f / d sigma = -sigma E_q[h |s_p - s_q|^2]`` (arXiv 2505.20755).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from limbeck.diffusion.paths import like

Divergence = Literal["reverse_kl", "forward_kl", "js", "jeffreys", "chi2"]
"""KL(q, p), KL(p, q), ``KL(q, m) + KL(p, m)`` with the mean m of both, ``KL(q, p) + KL(p, q)`` and
``E_q[(r - 1)^2]``."""


class Curvature(NamedTuple):
    """``h = r^2 f''(r)`` and its derivative in ``r``, each [B]."""

    value: Tensor
    slope: Tensor


def curvature(r: Tensor, kind: Divergence) -> Curvature:
    """Weight of each sample's pull, ``h(r) = r^2 f''(r)``, at ratios of densities ``r`` [B].

    Raises:
        ValueError: the divergence is unknown.
    """
    one, none = torch.ones_like(r), torch.zeros_like(r)
    if kind == "reverse_kl":
        return Curvature(one, none)
    if kind == "forward_kl":
        return Curvature(r, one)
    if kind == "js":
        return Curvature(r / (1 + r), 1 / (1 + r) ** 2)
    if kind == "jeffreys":
        return Curvature(1 + r, one)
    if kind == "chi2":
        return Curvature(2 * r**2, 4 * r)
    raise ValueError(f"unknown divergence '{kind}'")


def standard(r: Tensor, kind: Divergence) -> Curvature:
    """:func:`curvature` over its value at ``r = 1``: near the goal all divergences then pull alike."""
    at_one = curvature(torch.ones_like(r), kind).value
    return Curvature(*(part / at_one for part in curvature(r, kind)))


def weighted_fisher(samples: Tensor, real: Tensor, fake: Tensor, r: Tensor, kind: Divergence) -> Tensor:
    """A loss [B] whose gradient is that of ``sigma^4 E_q[h(r) |s_p - s_q|^2]`` for an exact critic and ratio.

    Gradients must pass from ``real``, ``fake`` and ``r`` to the noised samples and no further. What cannot be known,
    how score and density of the generator's own law move with its weights, is replaced by identities; with the
    denoisers' estimates (``real - fake`` is ``sigma^2 (s_p - s_q)``) there remains

    ``(h - r h') |real - fake|^2 + 2 h (real - fake) . (fake - x)``,

    of which ``h = 1`` is score identity distillation at ``alpha = 1/2``. Mean over dimensions.

    Args:
        samples: x [B, *shape], of the generator.
        real: the teacher's estimates [B, *shape].
        fake: the critic's estimates [B, *shape].
        r: density of real over generated at the noised samples, [B].
        kind: the divergence, standardised (:func:`standard`).
    """
    h, slope = standard(r, kind)
    gap = real - fake
    squared = gap.square().flatten(1).mean(dim=1)
    cross = (gap * (fake - samples)).flatten(1).mean(dim=1)
    return (h - r * slope) * squared + 2 * h * cross


def implicit_matching(
    samples: Tensor,
    real: Tensor,
    fake: Tensor,
    *,
    distance: Literal["pseudo_huber", "square"] = "pseudo_huber",
    huber: float = 0.1,
) -> Tensor:
    """A loss [B] whose gradient is that of a distance ``E d(real - fake)`` over a fixed law of noised samples.

    ``d'(real - fake) . (fake - x)`` (arXiv 2410.16794, eq. 9, with scores written as denoisers), where ``d'(y)`` is
    ``y / sqrt(|y|^2 + c^2)`` of the pseudo-Huber distance or ``2 y`` of the square. Over the number of dimensions.

    Args:
        samples: x [B, *shape], of the generator.
        real: the teacher's estimates [B, *shape].
        fake: the critic's estimates [B, *shape].
        distance: between the estimates.
        huber: ``c / sqrt(dimensions)``, in the data's unit.
    """
    gap = real - fake
    dimensions = gap[0].numel()
    if distance == "square":
        pull = 2 * gap
    else:
        c = huber * math.sqrt(dimensions)
        pull = gap / like(torch.sqrt(gap.square().flatten(1).sum(dim=1) + c**2), gap)
    return (pull * (fake - samples)).flatten(1).sum(dim=1) / dimensions
