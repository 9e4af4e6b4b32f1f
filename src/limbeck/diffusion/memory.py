"""The exact teacher of many points, such as the pictures of a data set: equal round Gaussians, by matrix products."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.diffusion.mixture import GaussianMixture
from limbeck.diffusion.paths import like


class Memory(GaussianMixture):
    """A Gaussian mixture whose components all have the covariance ``std^2 I``.

    The posterior mean then needs the products ``x m_k`` alone, not a difference for every pair of a point and a
    component: ``r_k ~ w_k exp[(alpha x m_k - alpha^2 |m_k|^2 / 2) / c]`` with ``c = alpha^2 std^2 + sigma^2``, and
    ``E[x0 | x] = (sigma^2 sum_k r_k m_k + alpha std^2 x) / c``.

    Args:
        weights: [K], positive.
        means: [K, *shape].
        std: of every Gaussian.
        labels: int64 [K], the class of each, or None.
    """

    def __init__(self, weights: Tensor, means: Tensor, std: float, labels: Tensor | None = None) -> None:
        super().__init__(weights, means, torch.full_like(means, std**2), labels)
        self.std = std

    def posterior_mean(
        self, x: Tensor, alpha: Tensor | float, sigma: Tensor | float, label: Tensor | None = None
    ) -> Tensor:
        """``E[x0 | x]`` for ``x = alpha x0 + sigma eps``; ``[B, *shape]``."""
        means, _ = self._flat(x)
        flat = x.flatten(1).to(means.dtype)
        a, s = (like(c, flat) for c in (alpha, sigma))
        variance = a**2 * self.std**2 + s**2
        near = (a * (flat @ means.T) - a**2 * means.square().sum(1) / 2) / variance
        weights = torch.softmax(self._allowed(label, len(x)).to(means.dtype) + near, dim=1)
        return ((s**2 * (weights @ means) + a * self.std**2 * flat) / variance).reshape(x.shape)
