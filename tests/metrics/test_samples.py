from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import scipy
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from limbeck.errors import UserError
from limbeck.metrics import samples
from limbeck.metrics.samples import (
    energy_distance,
    frechet_distance,
    mmd2,
    mode_coverage,
    precision_recall,
    sliced_wasserstein2,
)

SHAPES = [(40, 30, 2), (25, 31, 1), (20, 20, 80)]


def two_sets(n: int, m: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    return x, 0.7 * torch.randn(m, d, generator=g, dtype=torch.float64) + 0.5


@pytest.fixture(params=[2**16, 64], ids=["one block", "many blocks"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "BLOCK", request.param)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.usefixtures("block")
def test_energy_distance_is_the_mean_over_pairs(shape: tuple[int, int, int], unbiased: bool) -> None:
    x, y = two_sets(*shape)

    def mean(a: Tensor, b: Tensor) -> float:
        pairs = [(i, j) for i, j in product(range(len(a)), range(len(b))) if not (a is b and unbiased and i == j)]
        return sum(math.dist(a[i].tolist(), b[j].tolist()) for i, j in pairs) / len(pairs)

    expected = 2 * mean(x, y) - mean(x, x) - mean(y, y)
    assert energy_distance(x, y, unbiased=unbiased) == pytest.approx(expected, abs=1e-7)


def test_energy_distance_of_one_dimension_is_that_of_scipy() -> None:
    x, y = two_sets(30, 20, 1)
    squared = scipy.stats.energy_distance(x[:, 0], y[:, 0]) ** 2
    assert energy_distance(x, y, unbiased=False) == pytest.approx(squared, abs=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("block")
def test_mmd_is_the_mean_over_unlike_pairs(shape: tuple[int, int, int]) -> None:
    x, y = two_sets(*shape)
    scales = [0.5, 1.0, 3.0]

    def kernel(a: Tensor, b: Tensor) -> np.ndarray:
        square = cdist(a, b, "sqeuclidean")
        return sum(np.exp(-square / (2 * s * s)) for s in scales)

    n, m = len(x), len(y)
    kx, ky = kernel(x, x), kernel(y, y)
    within = (kx.sum() - np.trace(kx)) / (n * (n - 1)) + (ky.sum() - np.trace(ky)) / (m * (m - 1))
    assert mmd2(x, y, scales) == pytest.approx(within - 2 * kernel(x, y).mean(), abs=1e-10)


def test_unbiased_estimates_average_to_zero_for_equal_laws() -> None:
    g = torch.Generator().manual_seed(1)
    draws = [(torch.randn(20, 2, generator=g), torch.randn(20, 2, generator=g)) for _ in range(150)]
    for estimate in (energy_distance, lambda x, y: mmd2(x, y, [1.0])):
        values = torch.tensor([estimate(x, y) for x, y in draws])
        assert abs(values.mean()) < 3 * values.std() / len(values) ** 0.5
    biased = torch.tensor([energy_distance(x, y, unbiased=False) for x, y in draws])
    assert (biased > 0).all() and biased.mean() > 0.1


def test_far_from_the_origin_close_points_keep_their_distance() -> None:
    x, y = two_sets(50, 50, 2)
    here, there = energy_distance(x, y), energy_distance(x + 1e6, y + 1e6)
    assert there == pytest.approx(here, abs=1e-6)


@pytest.mark.usefixtures("block")
def test_sliced_wasserstein_of_one_dimension_matches_sorted_samples() -> None:
    x, y = two_sets(30, 30, 1)
    expected = (x[:, 0].sort().values - y[:, 0].sort().values).square().mean().sqrt()
    assert sliced_wasserstein2(x, y, projections=3) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.usefixtures("block")
def test_sliced_wasserstein_of_unlike_sizes_is_the_optimal_plan() -> None:
    x, y = two_sets(12, 8, 1)
    copies = x.repeat_interleave(2, 0), y.repeat_interleave(3, 0)  # 24 each: the plan becomes an assignment
    cost = cdist(*copies, "sqeuclidean")
    rows, columns = scipy.optimize.linear_sum_assignment(cost)
    expected = math.sqrt(cost[rows, columns].mean())
    assert sliced_wasserstein2(x, y) == pytest.approx(expected, abs=1e-12)


def test_sliced_wasserstein_of_a_shift_is_its_length_over_root_dimension() -> None:
    x = two_sets(200, 1, 4)[0]
    shift = torch.tensor([3.0, 0, 0, 4.0], dtype=torch.float64)
    found = sliced_wasserstein2(x, x + shift, projections=4000)
    assert found == pytest.approx(5 / math.sqrt(4), rel=0.03)
    assert sliced_wasserstein2(x, x + shift, seed=1) == sliced_wasserstein2(x, x + shift, seed=1)
    assert sliced_wasserstein2(x, x[torch.randperm(200)]) == pytest.approx(0, abs=1e-12)


def ring(n: int, weights: Tensor, std: float = 0.3, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    angle = torch.arange(len(weights)) * 2 * math.pi / len(weights)
    means = 4 * torch.stack([angle.cos(), angle.sin()], 1)
    which = torch.multinomial(weights, n, replacement=True, generator=g)
    return means[which] + std * torch.randn(n, 2, generator=g), means


def test_an_exact_sampler_covers_all_modes() -> None:
    x, means = ring(20_000, torch.full((8,), 1 / 8))
    found = mode_coverage(x, means, 0.3)
    assert found.coverage == 1 and found.tv < 0.02
    assert found.outlier_rate == pytest.approx(math.exp(-4.5), abs=0.003)
    torch.testing.assert_close(found.shares, torch.full((8,), 1 / 8, dtype=torch.float64), atol=0.01, rtol=0)


def test_dropped_modes_are_seen() -> None:
    weights = torch.tensor([0.25, 0.25, 0.25, 0.25, 0, 0, 0, 0])
    x, means = ring(4000, weights)
    found = mode_coverage(x, means, 0.3)
    assert found.coverage == 0.5 and found.tv == pytest.approx(0.5, abs=0.02)
    assert mode_coverage(x, means, 0.3, weights=weights).tv < 0.02


def test_modes_by_brute_force() -> None:
    x, means = ring(300, torch.full((5,), 0.2), std=0.8)
    weights, std = torch.tensor([0.1, 0.2, 0.3, 0.2, 0.2]), torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    distance = cdist(x, means)
    shares = np.bincount(distance.argmin(1), minlength=5) / 300
    found = mode_coverage(x, means, std, weights=weights, radius=2.0)
    assert found.shares.tolist() == pytest.approx(shares.tolist(), abs=1e-12)
    assert found.tv == pytest.approx(0.5 * np.abs(shares - weights.numpy()).sum(), abs=1e-7)
    assert found.outlier_rate == pytest.approx((distance > 2 * std.numpy()).all(1).mean(), abs=1e-12)


def test_samples_between_the_modes_cover_none() -> None:
    x, means = ring(100, torch.full((4,), 0.25))
    found = mode_coverage(x * 0.5, means, 0.3)
    assert found.outlier_rate == 1 and found.coverage == 0


def test_weights_of_modes_must_fit() -> None:
    x, means = ring(10, torch.full((4,), 0.25))
    with pytest.raises(ValueError, match=r"weights must be \[4\]"):
        mode_coverage(x, means, weights=torch.ones(3) / 3)
    with pytest.raises(ValueError, match="sum to 1"):
        mode_coverage(x, means, weights=torch.ones(4))


@pytest.mark.parametrize(("n", "m", "d"), [(200, 150, 5), (60, 80, 1), (12, 9, 20)])
def test_frechet_distance_with_a_matrix_root(n: int, m: int, d: int) -> None:
    x, y = two_sets(n, m, d)
    a, b = (np.atleast_2d(np.cov(z.numpy(), rowvar=False)) for z in (x, y))
    values = np.linalg.eigvals(a @ b).real.clip(0)
    expected = float((x.mean(0) - y.mean(0)).square().sum()) + np.trace(a) + np.trace(b) - 2 * np.sqrt(values).sum()
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-5)
    if n > d:
        root = scipy.linalg.sqrtm(a @ b)
        assert np.trace(root).real == pytest.approx(np.sqrt(values).sum(), rel=1e-9)


def test_frechet_distance_of_known_gaussians() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 3, generator=g, dtype=torch.float64)
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T  # exactly N(0, I) moments
    scale, shift = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([1.0, 0.0, 2.0]).double()
    assert frechet_distance(x, x * scale + shift) == pytest.approx(5 + (0 + 1 + 4), abs=1e-9)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x.float() + 100, x.float() + 100) >= 0


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.usefixtures("block")
def test_precision_and_recall_by_brute_force(k: int) -> None:
    real, generated = two_sets(60, 45, 2)

    def inside(points: Tensor, support: Tensor) -> float:
        radii = np.sort(cdist(support, support), axis=1)[:, k]
        return float((cdist(points, support) <= radii).any(1).mean())

    found = precision_recall(real, generated, k=k)
    assert found.precision == pytest.approx(inside(generated, real), abs=1e-12)
    assert found.recall == pytest.approx(inside(real, generated), abs=1e-12)
    assert found.precision > found.recall, "the generated set is the narrower one"


def test_a_generator_that_copies_is_precise_and_one_far_away_is_not() -> None:
    real = two_sets(50, 1, 3)[0]
    assert precision_recall(real, real.flip(0)) == (1, 1)
    assert precision_recall(real.repeat(5, 1), real.repeat(5, 1)) == (1, 1), "copies of copies have radius 0"
    assert precision_recall(real, real + 100) == (0, 0)
    one = precision_recall(real, real[:1].repeat(50, 1))
    assert one.precision == 1 and one.recall == pytest.approx(1 / 50)


PAIRWISE: list[Callable[[Tensor, Tensor], Any]] = [
    energy_distance, lambda x, y: mmd2(x, y, [1.0]), sliced_wasserstein2, frechet_distance, precision_recall,
    mode_coverage,
]  # fmt: skip


@pytest.mark.parametrize("of", PAIRWISE)
def test_a_diverged_generator_is_refused_and_not_scored(of: Callable[[Tensor, Tensor], Any]) -> None:
    x, y = two_sets(20, 20, 2)
    x[3, 0], x[5, 1] = float("nan"), float("inf")
    with pytest.raises(UserError, match="2 of 20 samples are NaN or infinite"):
        of(x, y)


@pytest.mark.parametrize("of", PAIRWISE)
def test_sets_of_unlike_width_are_refused(of: Callable[[Tensor, Tensor], Any]) -> None:
    x, y = two_sets(20, 20, 2)
    with pytest.raises(ValueError, match=r"\[20, 2\] and \[20, 1\]"):
        of(x, y[:, :1])
    with pytest.raises(ValueError, match=r"\[20\]"):
        of(x[:, 0], y[:, 0])


@pytest.mark.parametrize("of", PAIRWISE)
def test_sets_that_are_too_small_are_refused(of: Callable[[Tensor, Tensor], Any]) -> None:
    x, y = two_sets(20, 20, 2)
    with pytest.raises(ValueError, match="needs at least"):
        of(x[:0], y)


def test_bandwidths_must_be_positive() -> None:
    x, y = two_sets(5, 5, 2)
    for wrong in ([], [0.0], [1.0, -1.0]):
        with pytest.raises(ValueError, match="bandwidths"):
            mmd2(x, y, wrong)


def test_single_precision_samples_score_like_double() -> None:
    x, y = two_sets(40, 30, 2)
    assert energy_distance(x.float(), y.float()) == pytest.approx(energy_distance(x, y), abs=1e-6)
    assert frechet_distance(x.float(), y.float()) == pytest.approx(frechet_distance(x, y), abs=1e-6)
