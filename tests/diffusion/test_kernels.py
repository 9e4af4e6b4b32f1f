"""Kernels and discrepancies of groups against their definitions, one pair at a time."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.diffusion.kernels import group_mmd, kernel


def value(x, y, w: float, kind: str) -> float:
    apart = math.dist(x.tolist(), y.tolist())
    d = len(x)
    return math.exp(-w * apart / d) if kind == "laplace" else math.exp(-(w**2) * apart**2 / (2 * d))


def points(count: int):
    return torch.randn(2, count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["laplace", "rbf"])
def test_the_mean_over_a_group_is_its_discrepancy_by_definition(kind):
    y, z = points(7)
    scale = torch.tensor([0.5, 9.0, 9.0, 2.0, 9.0, 9.0, 1.5], dtype=torch.float64)  # the first of a group counts
    rows = group_mmd(y, z, scale, 3, kind=kind)
    for first, last in ((0, 3), (3, 6), (6, 7)):
        w, n, total = float(scale[first]), last - first, 0.0
        for i in range(first, last):
            for j in range(first, last):
                total += value(y[i], y[j], w, kind) + value(z[i], z[j], w, kind) - 2 * value(y[i], z[j], w, kind)
        assert float(rows[first:last].mean()) == pytest.approx(total / n**2)


def test_unlike_classes_are_not_compared():
    y, z = points(4)
    scale = torch.ones(4, dtype=torch.float64)
    label = torch.tensor([0, 0, 1, 1])
    apart = group_mmd(y, z, scale, 4, label)
    torch.testing.assert_close(apart, group_mmd(y, z, scale, 2) / 2)


def test_points_that_coincide_have_a_gradient_that_is_a_number():
    y = torch.zeros(4, 2, requires_grad=True)
    group_mmd(y, torch.zeros(4, 2), torch.ones(4), 2).sum().backward()
    assert y.grad is not None and not y.grad.any()


def test_wrong_arguments_are_refused():
    y, z = points(4)
    with pytest.raises(ValueError, match="unlike shapes"):
        group_mmd(y, z[:2], torch.ones(4), 2)
    with pytest.raises(ValueError, match="unknown kernel"):
        kernel(y[None], z[None], torch.ones(1), "cosine")
