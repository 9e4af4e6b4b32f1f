"""Losses between the relations of samples against definitions written out by hand, in float64."""

from __future__ import annotations

import itertools

import pytest
import torch

from limbeck.vision.losses import rkd_angle, rkd_distance


def rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def huber(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def test_distances_are_the_papers() -> None:
    n, s, t = 5, rows(5, 3) * 4, rows(5, 6, seed=1)

    def distances(x: torch.Tensor) -> torch.Tensor:
        found = torch.stack([torch.stack([(a - b).norm() for b in x]) for a in x])
        return found / (found.sum() / (n * n - n))

    a, b = distances(s), distances(t)
    wanted = torch.stack([sum(huber(a[i, j] - b[i, j]) for j in range(n)) / n for i in range(n)])
    torch.testing.assert_close(rkd_distance(s, t), wanted)


def test_angles_are_the_papers() -> None:
    n, s, t = 4, rows(4, 3), rows(4, 6, seed=1)

    def cosine(x: torch.Tensor, i: int, j: int, k: int) -> torch.Tensor:
        if j in (i, k):
            return torch.zeros((), dtype=torch.float64)
        e, f = x[i] - x[j], x[k] - x[j]
        return (e / e.norm()) @ (f / f.norm())

    wanted = torch.zeros(n, dtype=torch.float64)
    for j, i, k in itertools.product(range(n), repeat=3):
        wanted[j] += huber(cosine(s, i, j, k) - cosine(t, i, j, k)) / n**2
    torch.testing.assert_close(rkd_angle(s, t), wanted)


@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle])
def test_samples_that_are_alike_give_finite_gradients(loss) -> None:
    s = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    loss(s, rows(3, 4)).sum().backward()
    assert torch.isfinite(s.grad).all()
    moved, turned = rows(5, 3) * 7 + 2, torch.linalg.qr(rows(3, 3, seed=2)).Q
    torch.testing.assert_close(loss(moved @ turned, rows(5, 3)), torch.zeros(5, dtype=torch.float64), atol=1e-9, rtol=0)
