"""The exact teacher: a Gaussian mixture, whose score, denoiser and flow are known at every noise level.

With ``p0 = sum_k w_k N(mu_k, S_k)`` (diagonal ``S_k``) the noisy law on any path is again a mixture,
``p_t = sum_k w_k N(alpha mu_k, C_k)`` with ``C_k = alpha^2 S_k + sigma^2``, and everything follows from the
responsibilities ``r_k(x) = softmax_k [log w_k + log N(x; alpha mu_k, C_k)]``.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from limbeck.diffusion.paths import like
from limbeck.engine import noise

LOG_2PI = math.log(2 * math.pi)


class Draw(NamedTuple):
    """Samples of a mixture [N, *shape] and the component each came from, int64 [N]."""

    samples: Tensor
    component: Tensor


class _Noisy(NamedTuple):
    """The mixture at some noise level, for a batch: log joint [B, K], offsets and variances [B, K, D]."""

    joint: Tensor
    offset: Tensor
    variance: Tensor
    alpha: Tensor

    @property
    def responsibility(self) -> Tensor:
        return torch.softmax(self.joint, dim=1)


class GaussianMixture(nn.Module):
    """A mixture of Gaussians with diagonal covariances, as an exact diffusion model.

    ``sigma`` and ``alpha`` are scalars or one value per sample; the result has the wider dtype of ``x`` and the
    mixture (call ``.double()`` for an oracle). ``label`` (int64 [B], -1 for none) restricts sample ``b`` to the
    components of its class.

    Args:
        weights: [K], positive; normalised here.
        means: [K, *shape].
        variances: [K, *shape], the diagonals; zero is allowed where ``sigma > 0`` (an empirical law).
        labels: int64 [K], the class of each component, or None.

    Raises:
        ValueError: shapes that do not agree, or weights that are not positive.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor
    labels: Tensor | None

    def __init__(self, weights: Tensor, means: Tensor, variances: Tensor, labels: Tensor | None = None) -> None:
        super().__init__()
        if means.shape != variances.shape or weights.shape != means.shape[:1]:
            raise ValueError(
                f"weights {tuple(weights.shape)}, means {tuple(means.shape)} and variances {tuple(variances.shape)} "
                "must be [K], [K, *shape] and [K, *shape]"
            )
        if labels is not None and labels.shape != weights.shape:
            raise ValueError(f"labels {tuple(labels.shape)} must have the shape {tuple(weights.shape)} of the weights")
        if not bool((weights > 0).all()) or bool((variances < 0).any()):
            raise ValueError("the weights of a mixture must be positive and its variances not negative")
        self.register_buffer("weights", weights / weights.sum())
        self.register_buffer("means", means)
        self.register_buffer("variances", variances)
        self.register_buffer("labels", labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return tuple(self.means.shape[1:])

    @property
    def classes(self) -> int | None:
        """How many classes the components have, if they have any."""
        return None if self.labels is None else int(self.labels.max()) + 1

    @property
    def sigma_data(self) -> float:
        """Standard deviation of the data per dimension, averaged over dimensions (quadratic mean)."""
        w = self.weights.reshape(-1, *[1] * len(self.shape))
        centre = (w * self.means).sum(0)
        return float((w * (self.variances + (self.means - centre) ** 2)).sum(0).mean().sqrt())

    def variance(self, label: Tensor | None = None) -> Tensor:
        """Variance of the data per dimension, averaged over dimensions, given each class (int64 [B], -1 for none): [B].

        Without classes the one of all the data, [1].
        """
        w = self._allowed(label, 1 if label is None else len(label)).softmax(dim=1)
        means, variances = self.means.flatten(1), self.variances.flatten(1)
        return (w @ (variances + means**2) - (w @ means) ** 2).mean(dim=1)

    def forward(self, x: Tensor, sigma: Tensor | float, label: Tensor | None = None) -> Tensor:
        """``E[x0 | x]`` at EDM level ``sigma``; the same as :meth:`denoise`."""
        return self.posterior_mean(x, 1.0, sigma, label)

    def denoise(self, x: Tensor, sigma: Tensor | float, label: Tensor | None = None) -> Tensor:
        """``E[x0 | x]`` for ``x = x0 + sigma eps``; ``[B, *shape]``."""
        return self.posterior_mean(x, 1.0, sigma, label)

    def posterior_mean(
        self, x: Tensor, alpha: Tensor | float, sigma: Tensor | float, label: Tensor | None = None
    ) -> Tensor:
        """``E[x0 | x]`` for ``x = alpha x0 + sigma eps``; ``[B, *shape]``."""
        at = self._at(x, alpha, sigma, label)
        means, variances = self._flat(at.offset)
        pull = means + at.alpha * variances * at.offset / at.variance
        return (at.responsibility[..., None] * pull).sum(1).reshape(x.shape)

    def score(
        self,
        x: Tensor,
        alpha: Tensor | float = 1.0,
        sigma: Tensor | float = 0.0,
        label: Tensor | None = None,
    ) -> Tensor:
        """Gradient of :meth:`log_prob` in ``x``; ``[B, *shape]``."""
        at = self._at(x, alpha, sigma, label)
        return -(at.responsibility[..., None] * at.offset / at.variance).sum(1).reshape(x.shape)

    def log_prob(
        self,
        x: Tensor,
        alpha: Tensor | float = 1.0,
        sigma: Tensor | float = 0.0,
        label: Tensor | None = None,
    ) -> Tensor:
        """Log density [B], in nats, of ``alpha x0 + sigma eps`` at ``x`` (by default of the data)."""
        return torch.logsumexp(self._at(x, alpha, sigma, label).joint, dim=1)

    def responsibilities(
        self,
        x: Tensor,
        alpha: Tensor | float = 1.0,
        sigma: Tensor | float = 0.0,
        label: Tensor | None = None,
    ) -> Tensor:
        """Probability [B, K] of each component given ``x``."""
        return self._at(x, alpha, sigma, label).responsibility

    def sample(self, count: int, seed: int = 0, *, first: int = 0, label: Tensor | None = None) -> Draw:
        """Exact samples ``first, ..., first + count - 1`` of the endless list that ``seed`` names."""
        return self.draw(torch.arange(first, first + count, device=self.means.device), seed, label)

    def draw(self, ids: Tensor, key: Hashable, label: Tensor | None = None) -> Draw:
        """The exact samples with these numbers (int64 [B]) of the endless list that ``key`` names."""
        u = noise.uniform(ids, (1,), (key, "mixture component")).to(self.means.dtype)
        weights = self._allowed(label, len(ids)).softmax(dim=1).cumsum(dim=1)
        component = torch.searchsorted(weights.contiguous(), u).squeeze(1).clamp_(max=len(self.weights) - 1)
        z = noise.normal(ids, self.shape, (key, "mixture noise")).to(self.means.dtype)
        return Draw(self.means[component] + self.variances[component].sqrt() * z, component)

    def entropy(self, count: int = 20_000, seed: int = 0) -> float:
        """Differential entropy in nats, by Monte Carlo over ``count`` exact samples."""
        return -float(self.log_prob(self.sample(count, seed).samples).mean())

    def flow(self, x: Tensor, source: float, target: float) -> Tensor:
        """The exact map of the probability flow from level ``source`` to ``target``, where it has a closed form.

        For one Gaussian it scales each axis; for a mixture in one dimension it carries quantiles to quantiles.

        Raises:
            ValueError: the mixture has several components in several dimensions (use ``samplers.flow``).
        """
        if len(self.weights) == 1:
            ratio = ((self.variances[0] + target**2) / (self.variances[0] + source**2)).sqrt()
            return self.means[0] + ratio * (x - self.means[0])
        if math.prod(self.shape) == 1:
            return _quantile_map(self, x.reshape(-1, 1), source, target).reshape(x.shape)
        raise ValueError("the flow of a mixture in several dimensions has no closed form; use samplers.flow")

    def tails(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Lower and upper tail probability [B] at ``x`` [B, 1] of a one-dimensional mixture at level ``sigma``."""
        means, variances = self._flat(x)
        # erfc, since torch's ndtr is 0 beyond eight standard deviations below.
        z = (x - means[:, 0]) / (2 * (variances[:, 0] + sigma**2)).sqrt()
        return (self.weights * torch.erfc(-z)).sum(1) / 2, (self.weights * torch.erfc(z)).sum(1) / 2

    def _flat(self, x: Tensor) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(x.dtype, self.means.dtype)
        return self.means.flatten(1).to(dtype), self.variances.flatten(1).to(dtype)

    def _allowed(self, label: Tensor | None, count: int) -> Tensor:
        """Log weights [B, K], minus infinity for components of another class."""
        log_weights = self.weights.log().expand(count, -1)
        if label is None:
            return log_weights
        if self.labels is None:
            raise ValueError("this mixture has no classes, but a label was given")
        other = (self.labels != label[:, None]) & (label[:, None] >= 0)
        return log_weights.masked_fill(other, -torch.inf)

    def _at(self, x: Tensor, alpha: Tensor | float, sigma: Tensor | float, label: Tensor | None) -> _Noisy:
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"x {tuple(x.shape)} must be [B, {', '.join(map(str, self.shape))}]")
        means, variances = self._flat(x)
        flat = x.flatten(1).to(means.dtype)[:, None]
        a, s = (like(c, flat) for c in (alpha, sigma))
        offset, variance = flat - a * means, a**2 * variances + s**2
        quadratic = (offset**2 / variance + variance.log()).sum(-1) + means.shape[1] * LOG_2PI
        return _Noisy(self._allowed(label, len(x)).to(means.dtype) - quadratic / 2, offset, variance, a)


def ring(modes: int, radius: float, std: float, classes: int | None = None) -> GaussianMixture:
    """Equal Gaussians on a circle in the plane, the class of mode ``k`` being ``k % classes``."""
    angle = torch.arange(modes, dtype=torch.float64) * (2 * math.pi / modes)
    return _equal(radius * torch.stack([angle.cos(), angle.sin()], dim=1), std, classes)


def grid(side: int, spacing: float, std: float, classes: int | None = None) -> GaussianMixture:
    """``side * side`` equal Gaussians on a centred square grid in the plane, with classes as in :func:`ring`."""
    ticks = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) * spacing
    return _equal(torch.cartesian_prod(ticks, ticks), std, classes)


def line(
    means: Sequence[float] = (-2.0, 1.5), stds: Sequence[float] = (0.4, 0.6), weights: Sequence[float] = (0.3, 0.7)
) -> GaussianMixture:
    """A mixture in one dimension, whose flow map is exact (:meth:`GaussianMixture.flow`)."""
    column = torch.tensor([means, stds], dtype=torch.float64).mT
    return GaussianMixture(torch.tensor(weights, dtype=torch.float64), column[:, :1], column[:, 1:] ** 2)


def _equal(means: Tensor, std: float, classes: int | None) -> GaussianMixture:
    labels = None if classes is None else torch.arange(len(means)) % classes
    weights = torch.ones(len(means), dtype=means.dtype)
    return GaussianMixture(weights, means, torch.full_like(means, std**2), labels)


def _quantile_map(mixture: GaussianMixture, x: Tensor, source: float, target: float, rounds: int = 100) -> Tensor:
    """Bisection for the ``y`` [B, 1] whose tail at ``target`` is that of ``x`` at ``source``, on the shorter tail."""
    below, above = mixture.tails(x, source)
    reach = (mixture.variances.max() + target**2).sqrt() * 40
    low = torch.full_like(x, float(mixture.means.min() - reach))
    high = torch.full_like(x, float(mixture.means.max() + reach))
    for _ in range(rounds):
        middle = (low + high) / 2
        under, over = mixture.tails(middle, target)
        too_low = torch.where(below < above, under < below, over > above)[:, None]
        low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)
    return (low + high) / 2
