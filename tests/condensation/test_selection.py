"""Coreset selection against plain definitions."""

from __future__ import annotations

import itertools

import pytest
import torch

from limbeck.condensation.selection import herding, k_center, k_means


def points(count: int = 12, width: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_herding(x: torch.Tensor, count: int) -> list[int]:
    mean, chosen = x.mean(0), []
    for _ in range(count):
        free = [i for i in range(len(x)) if i not in chosen]
        chosen.append(min(free, key=lambda i: float((mean - x[[*chosen, i]].mean(0)).norm())))
    return chosen


def brute_k_center(x: torch.Tensor, count: int) -> list[int]:
    chosen = [min(range(len(x)), key=lambda i: float((x[i] - x.mean(0)).norm()))]
    while len(chosen) < count:
        free = [i for i in range(len(x)) if i not in chosen]
        chosen.append(max(free, key=lambda i: min(float((x[i] - x[j]).norm()) for j in chosen)))
    return chosen


@pytest.mark.parametrize("seed", range(4))
def test_herding_is_greedy_for_the_mean(seed):
    assert herding(points(seed=seed), 7).tolist() == brute_herding(points(seed=seed), 7)


@pytest.mark.parametrize("seed", range(4))
def test_k_center_is_farthest_first(seed):
    assert k_center(points(seed=seed), 7).tolist() == brute_k_center(points(seed=seed), 7)


def test_k_means_takes_one_row_from_each_separate_cluster():
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]], dtype=torch.float64)
    x = torch.cat([c + 0.1 * points(5, 2, i) for i, c in enumerate(centres)])
    chosen = k_means(x, 3)
    assert sorted((chosen // 5).tolist()) == [0, 1, 2]
    for row in chosen.tolist():
        own = x[row // 5 * 5 : row // 5 * 5 + 5]
        assert (own - own.mean(0)).norm(dim=1).argmin() == row % 5


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@pytest.mark.parametrize("select", [herding, k_center, k_means])
def test_no_row_twice_even_among_equal_rows(select):
    x = points(4).repeat_interleave(3, 0)
    chosen = select(x, 12).tolist()
    assert sorted(chosen) == list(range(12))
    with pytest.raises(ValueError, match="13 rows asked of 12"):
        select(x, 13)


def test_herding_of_one_is_the_row_nearest_to_the_mean():
    x = points()
    assert herding(x, 1).tolist() == k_center(x, 1).tolist()
    gaps = [float((x[list(c)].mean(0) - x.mean(0)).norm()) for c in itertools.combinations(range(12), 1)]
    assert int(herding(x, 1)) == gaps.index(min(gaps))
