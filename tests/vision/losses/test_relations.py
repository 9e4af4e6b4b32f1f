"""Losses between the relations of samples against definitions written out by hand, in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from limbeck.vision.losses.relations import congruence, pkt, rkd_angle, rkd_distance, similarity


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


def similarity_by_hand(x: torch.Tensor) -> torch.Tensor:
    n = len(x)
    g = torch.tensor([[float((x[i] * x[j]).sum()) for j in range(n)] for i in range(n)], dtype=torch.float64)
    return torch.stack([row / row.square().sum().sqrt() for row in g])


def test_similarities_are_the_papers() -> None:
    s, t = rows(5, 12).view(5, 3, 2, 2), rows(5, 6, seed=1)
    a, b = similarity_by_hand(s), similarity_by_hand(t)
    wanted = torch.stack([sum((a[i, j] - b[i, j]) ** 2 for j in range(5)) / 5 for i in range(5)])
    torch.testing.assert_close(similarity(s, t), wanted)


def neighbours_by_hand(x: torch.Tensor, i: int) -> list[float]:
    kernel = [(float(x[i] @ y / x[i].norm() / y.norm()) + 1) / 2 for y in x]
    total = sum(k for j, k in enumerate(kernel) if j != i)
    return [0.0 if j == i else k / total for j, k in enumerate(kernel)]


def test_neighbours_are_the_papers() -> None:
    n, s, t = 5, rows(5, 3), rows(5, 6, seed=1)
    wanted = []
    for i in range(n):
        p, q = neighbours_by_hand(t, i), neighbours_by_hand(s, i)
        wanted.append(sum(p[j] * math.log(p[j] / q[j]) for j in range(n) if j != i) / n)
    torch.testing.assert_close(pkt(s, t), torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize(("gamma", "order"), [(0.4, 2), (1.3, 1), (0.4, 3)])
def test_kernels_are_the_papers(gamma: float, order: int) -> None:
    n, s, t = 5, rows(5, 3), rows(5, 6, seed=1)

    def kernel(x: torch.Tensor, i: int, j: int) -> float:
        c = float(x[i] @ x[j] / x[i].norm() / x[j].norm())
        return sum(math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * c**p for p in range(order + 1))

    wanted = [sum((kernel(s, i, j) - kernel(t, i, j)) ** 2 for j in range(n)) / n for i in range(n)]
    got = congruence(s, t, gamma=gamma, order=order)
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64))


def test_the_expansion_tends_to_the_gaussian_kernel() -> None:
    """A teacher of equal embeddings has the kernel 1, so the loss shows the student's kernel."""
    s, same = rows(4, 3), torch.ones(4, 2, dtype=torch.float64)
    unit = s / s.norm(dim=1, keepdim=True)
    gaussian = torch.exp(-0.4 * torch.cdist(unit, unit).square())
    torch.testing.assert_close(congruence(s, same, order=20), (gaussian - 1).square().mean(1))


@pytest.mark.parametrize("loss", [similarity, pkt, congruence])
def test_directions_alone_matter_and_any_batch_gives_finite_gradients(loss) -> None:
    moved, turned = rows(5, 3) * 7, torch.linalg.qr(rows(3, 3, seed=2)).Q
    zero = torch.zeros(5, dtype=torch.float64)
    torch.testing.assert_close(loss(moved @ turned, rows(5, 3)), zero, atol=1e-9, rtol=0)
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    for case in (opposite, opposite[:1], torch.zeros(2, 2, dtype=torch.float64)):
        s = case.clone().requires_grad_()
        value = loss(s, rows(len(case), 4))
        value.sum().backward()
        assert value.isfinite().all() and s.grad.isfinite().all()
