"""How alike two sets of samples are: pure functions for judging generators.

All take points as rows ([N, D], flatten images or embed them first) and walk over pairs in blocks, so that 10 000
against 10 000 need seconds and little memory. Distances come from a matrix product of centred points in float64: of
two points that coincide it is 1e-8 of the spread at most, instead of 0.

Raises, for every function here: ``ValueError`` when the sets differ in width or are too small, ``UserError`` when a
point is not finite (a generator that diverged must not score well by accident).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.errors import UserError

BLOCK = 2**16
"""Entries of the distance matrix that are worked on at once: half a MiB, to stay in the processor's cache."""


def energy_distance(x: Tensor, y: Tensor, *, unbiased: bool = True) -> float:
    """Energy distance 2 E|X-Y| - E|X-X'| - E|Y-Y'| between two sets of points, in the points' unit.

    Zero when the laws are equal and positive otherwise (Székely and Rizzo, 2013).

    Args:
        x: [N, D].
        y: [M, D].
        unbiased: leave the zero distances of points to themselves out of the means (U-statistic: its mean over draws is
            the true value, so it can be a little negative). False keeps them (V-statistic: never negative, but biased
            upwards by about (E|X-X'|/N + E|Y-Y'|/M)).
    """
    x, y = _pair(x, y, least=2 if unbiased else 1)
    within = _within(x, torch.sqrt, unbiased) + _within(y, torch.sqrt, unbiased)
    return 2 * _across(x, y, torch.sqrt) - within


def mmd2(x: Tensor, y: Tensor, bandwidths: Sequence[float]) -> float:
    """Squared maximum mean discrepancy under a sum of Gaussian kernels exp(-|x-y|²/(2 s²)), one for each bandwidth s.

    The unbiased U-statistic (Gretton et al., JMLR 2012, eq. 3): its mean over draws is the true value, so it can be a
    little negative when the laws are equal.

    Args:
        x: [N, D].
        y: [M, D].
        bandwidths: the s of each kernel, in the points' unit.
    """
    if not bandwidths or min(bandwidths) <= 0:
        raise ValueError(f"bandwidths must be positive, at least one; got {list(bandwidths)}")
    x, y = _pair(x, y, least=2)

    def kernel(squares: Tensor) -> Tensor:
        total = torch.zeros_like(squares)
        for s in bandwidths:
            total += torch.mul(squares, -0.5 / s**2).exp_()
        return total

    return _within(x, kernel, True) + _within(y, kernel, True) - 2 * _across(x, y, kernel)


def sliced_wasserstein2(x: Tensor, y: Tensor, *, projections: int = 128, seed: int = 0) -> float:
    """Sliced Wasserstein distance of order 2, in the points' unit: the root of the mean of W2² over directions.

    Each one-dimensional W2 is exact, also for sets of unlike size (Bonneel et al., 2015).

    Args:
        x: [N, D].
        y: [M, D].
        projections: number of random directions.
        seed: of the directions; the same seed gives the same directions, so models can be compared.
    """
    x, y = _pair(x, y)
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(projections, x.shape[1], generator=generator, dtype=torch.float64)
    directions = directions / directions.norm(dim=1, keepdim=True)
    directions = directions.to(x.device)
    at_once = max(8, BLOCK // (len(x) + len(y)))
    total = sum(float(_w2_squared(x @ d.T, y @ d.T).sum()) for d in directions.split(at_once))
    return (total / projections) ** 0.5


class ModeCoverage(NamedTuple):
    """Where samples fall among the modes of a mixture.

    Attributes:
        shares: float64 [K], share of all samples that are nearest to each mode.
        coverage: share of the modes that are covered.
        tv: total variation ½ Σ|share - weight| between shares and weights, in [0, 1].
        outlier_rate: share of samples that are far from every mode.
    """

    shares: Tensor
    coverage: float
    tv: float
    outlier_rate: float


def mode_coverage(
    x: Tensor,
    means: Tensor,
    std: float | Tensor = 1.0,
    *,
    weights: Tensor | None = None,
    radius: float = 3.0,
    least: float = 0.1,
) -> ModeCoverage:
    """How samples spread over the modes of a mixture of round Gaussians.

    A sample belongs to the mode whose mean is nearest. It is an outlier when it is farther than ``radius`` standard
    deviations from every mode (of an exact sampler in two dimensions, exp(-4.5) = 1.1 % are). A mode is covered when
    the share of samples within its radius is at least ``least`` times its weight.

    Args:
        x: [N, D].
        means: [K, D].
        std: of the modes: one number or [K], in the points' unit.
        weights: of the modes [K], summing to 1; by default equal.
        radius: of a mode, in standard deviations.
        least: share of its weight that a mode must receive to count as covered.
    """
    x, means = _pair(x, means)
    modes = len(means)
    weights = torch.full((modes,), 1 / modes) if weights is None else weights
    weights, reach = weights.to(x), radius * torch.as_tensor(std).to(x).expand(modes)
    if weights.shape != (modes,) or abs(float(weights.sum()) - 1) > 1e-4:
        raise ValueError(f"weights must be [{modes}] and sum to 1, got {tuple(weights.shape)}, sum {weights.sum():.4g}")
    squares = torch.cat(list(_squares(x, means)))
    nearest, near = squares.argmin(1), squares <= reach.square()
    shares = torch.bincount(nearest, minlength=modes).double() / len(x)
    held = torch.bincount(nearest[near.gather(1, nearest[:, None]).squeeze(1)], minlength=modes).double() / len(x)
    covered = (held > 0) & (held >= least * weights)
    return ModeCoverage(
        shares=shares,
        coverage=float(covered.double().mean()),
        tv=0.5 * float((shares - weights).abs().sum()),
        outlier_rate=float((~near.any(1)).double().mean()),
    )


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Squared Fréchet distance between the Gaussians fitted to two sets of features (Heusel et al., arXiv 1706.08500).

    |m_x - m_y|² + tr(C_x + C_y - 2 (C_x C_y)^½), with covariances over N - 1. The trace of the root is the nuclear norm
    of R_x R_yᵀ, where C = RᵀR comes from a QR decomposition: no matrix root, no negative eigenvalue, and exact for
    singular covariances (fewer samples than features).

    Args:
        x: features [N, D].
        y: features [M, D].
    """
    x, y = _pair(x, y, least=2)
    shift = (x.mean(0) - y.mean(0)).square().sum()
    root_x, root_y = _covariance_root(x), _covariance_root(y)
    cross = torch.linalg.svdvals(root_x @ root_y.T).sum()
    return max(0.0, float(shift + root_x.square().sum() + root_y.square().sum() - 2 * cross))


class PrecisionRecall(NamedTuple):
    """``precision``: share of generated samples that look real; ``recall``: share of real ones that are generated."""

    precision: float
    recall: float


def precision_recall(real: Tensor, generated: Tensor, *, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall of a generator (Kynkäänniemi et al., arXiv 1904.06991, eq. 1 and 2).

    The support of a set is the union of balls around its points, each reaching to the point's k-th nearest neighbour.
    Precision is the share of generated points within the support of the real ones, recall the reverse.

    Args:
        real: features [N, D].
        generated: features [M, D].
        k: which neighbour sets the radius; each set needs more than ``k`` points.
    """
    real, generated = _pair(real, generated, least=k + 1)
    return PrecisionRecall(
        precision=_share_inside(generated, real, _radii(real, k)),
        recall=_share_inside(real, generated, _radii(generated, k)),
    )


def _pair(x: Tensor, y: Tensor, least: int = 1) -> tuple[Tensor, Tensor]:
    """The two sets, checked, in float64, and moved so that the second has its mean at 0 (it keeps digits)."""
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"two sets of points [N, D] of the same width are needed, got {[*x.shape]} and {[*y.shape]}")
    if min(len(x), len(y)) < least:
        raise ValueError(f"each set needs at least {least} points, got {len(x)} and {len(y)}")
    for points in (x, y):
        bad = int((~torch.isfinite(points)).any(1).sum())
        if bad:
            raise UserError(f"{bad} of {len(points)} samples are NaN or infinite: the generator has diverged")
    x, y = x.detach().double(), y.detach().double()
    centre = y.mean(0)
    return x - centre, y - centre


def _squares(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Rows of the matrix of squared Euclidean distances between x and y, in blocks [n, M]."""
    norms, columns = y.square().sum(1), y.T.contiguous()
    worth_a_product = min(x.shape[1], 256)  # rows: with fewer, wide points would be fetched more than multiplied
    for rows in x.split(max(1, BLOCK // len(y), worth_a_product)):
        base = rows.square().sum(1, keepdim=True) + norms
        yield base.addmm_(rows, columns, alpha=-2).clamp_(min=0)


def _across(x: Tensor, y: Tensor, of: Callable[[Tensor], Tensor]) -> float:
    """Mean of ``of(squared distance)`` over all pairs of a point of x and a point of y."""
    total = sum(float(of(squares).sum()) for squares in _squares(x, y))
    return total / (len(x) * len(y))


def _within(x: Tensor, of: Callable[[Tensor], Tensor], unbiased: bool) -> float:
    """Mean of ``of(squared distance)`` over the pairs of x, without those of a point and itself when ``unbiased``."""
    mean = _across(x, x, of)
    if not unbiased:
        return mean
    itself = float(of(torch.zeros((), dtype=torch.float64)))
    return (mean * len(x) - itself) / (len(x) - 1)


def _w2_squared(x: Tensor, y: Tensor) -> Tensor:
    """W2² between the columns of x [N, P] and y [M, P] as one-dimensional samples: [P].

    The optimal plan matches quantiles: both quantile functions are constant between the multiples of 1/N and of 1/M,
    counted here in units of 1/(N M) so that the pieces are exact.
    """
    n, m = len(x), len(y)
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique().to(x.device)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    mass = (ends - starts).to(x.dtype) / (n * m)
    gap = x.sort(0).values[starts // m] - y.sort(0).values[starts // n]
    return (mass[:, None] * gap.square()).sum(0)


def _covariance_root(x: Tensor) -> Tensor:
    """R with RᵀR the covariance of x [N, D]: [min(N, D), D]."""
    centred = (x - x.mean(0)) / (len(x) - 1) ** 0.5
    return torch.linalg.qr(centred, mode="r").R


def _radii(x: Tensor, k: int) -> Tensor:
    """Squared distance of each point to its k-th nearest other point: [N]."""
    radii, start = [], 0
    for squares in _squares(x, x):
        rows = torch.arange(len(squares), device=x.device)
        squares[rows, start + rows] = float("inf")
        radii.append(squares.topk(k, dim=1, largest=False).values[:, -1])
        start += len(squares)
    return torch.cat(radii)


def _share_inside(points: Tensor, support: Tensor, radii: Tensor) -> float:
    """Share of the points within the (squared) radius of a point of the support, give or take the rounding error."""
    reach = radii + 1e-13 * (points.square().sum(1).mean() + support.square().sum(1).mean())
    inside = [(squares <= reach).any(1) for squares in _squares(points, support)]
    return float(torch.cat(inside).double().mean())
