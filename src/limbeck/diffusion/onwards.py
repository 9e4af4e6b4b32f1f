"""Points at a level that are noised further: what a fake score learns from where no clean sample stands behind them.

A point ``y`` at level ``mid`` becomes ``x = y + fresh eps`` at ``sigma``, with ``fresh^2 = sigma^2 - mid^2``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.diffusion.paths import like


def fresh_level(sigma: Tensor, mid: Tensor) -> Tensor:
    """``sqrt(sigma^2 - mid^2)`` [B], the noise to add from ``mid`` to ``sigma``."""
    return torch.sqrt((sigma**2 - mid**2).clamp_min(0))


def score_target(x: Tensor, eps: Tensor, sigma: Tensor, fresh: Tensor) -> Tensor:
    """A target [B, *shape] whose mean given ``x`` is ``x + sigma^2 score(x)``, whatever the law of the points.

    ``-eps / fresh`` has the score of the law of ``x`` as its mean, as in denoising score matching on a part of the
    path (arXiv 2510.27684); with ``mid = 0`` the target is the clean sample. Its noise grows as ``sigma / fresh``.
    """
    return x - like(sigma**2 / fresh, x) * eps


def importance(kept: Tensor, eps: Tensor, sigma: Tensor, mid: Tensor, bound: float = 10.0) -> Tensor:
    """How much likelier a sample's whole noise is than its fresh part, per dimension, within bounds [B].

    The noise in ``x`` is ``(mid kept + fresh eps) / sigma``, of which ``kept`` [B, *shape] is what the generator left:
    not fresh, and so not normal given the sample (arXiv 2503.06674).
    """
    fresh = fresh_level(sigma, mid)
    whole = like(mid / sigma, eps) * kept + like(fresh / sigma, eps) * eps
    lost = (eps.square() - whole.square()).flatten(1).mean(dim=1)
    return torch.exp(lost / 2).clamp(1 / bound, bound)
