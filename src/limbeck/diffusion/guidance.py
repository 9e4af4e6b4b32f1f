"""Classifier-free guidance of any conditional denoiser."""

from __future__ import annotations

from torch import Tensor

from limbeck.diffusion.paths import Denoise


class Guided:
    """``D_null + scale (D_label - D_null)`` as a denoiser; ``scale = 1`` is the conditional model itself.

    Other conventions write ``1 + w`` or ``w`` on top of the conditional for this scale.

    Args:
        denoise: takes ``label`` (int64 [B]) or, without it, gives the unconditional estimate.
        scale: the strength of guidance; a tensor that multiplies samples [B, *shape] gives each its own.

    Attributes:
        cost: network evaluations of one call, which samplers count.
    """

    cost = 2

    def __init__(self, denoise: Denoise, scale: float | Tensor) -> None:
        self.denoise = denoise
        self.scale = scale

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        """The guided estimate of the clean sample, shape of ``x``."""
        free = self.denoise(x, sigma)
        return free + self.scale * (self.denoise(x, sigma, label=label) - free)
