"""Divergences: their curvature, what they are the derivative of, and losses against exact gradients in float64."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from limbeck.diffusion.divergences import Divergence, curvature, implicit_matching, standard, weighted_fisher
from limbeck.diffusion.losses import identity_loss
from toolkit.diffusion import MEAN, STD

FUNCTIONS = {
    "reverse_kl": lambda r: -r.log(),
    "forward_kl": lambda r: r * r.log(),
    "js": lambda r: r * r.log() - (1 + r) * ((1 + r) / 2).log(),
    "jeffreys": lambda r: (r - 1) * r.log(),
    "chi2": lambda r: (r - 1) ** 2,
}
KINDS = get_args(Divergence)
X = torch.linspace(-9, 9, 6001, dtype=torch.float64)
CELL = float(X[1] - X[0])
A, B = 0.8, 0.4
"""Scale and shift of the generator whose law is compared."""


def log_normal(x: Tensor, mean, variance) -> Tensor:
    return -((x - mean) ** 2) / (2 * variance) - torch.log(2 * math.pi * torch.as_tensor(variance)) / 2


def laws(a, b, sigma: float) -> tuple[Tensor, Tensor]:
    """Log densities on the grid of the teacher's and the generator's law at a level."""
    return log_normal(X, MEAN, STD**2 + sigma**2), log_normal(X, b, a**2 + sigma**2)


def divergence(kind: str, a, b, sigma: float) -> Tensor:
    p, q = laws(a, b, sigma)
    return (q.exp() * FUNCTIONS[kind]((p - q).exp())).sum() * CELL


def gap_of_scores(a, b, sigma: float) -> Tensor:
    return -(X - MEAN) / (STD**2 + sigma**2) + (X - b) / (a**2 + sigma**2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_curvature_is_that_of_the_function(kind):
    r = torch.tensor([0.05, 0.4, 1.0, 3.0, 20.0], dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(FUNCTIONS[kind](r).sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r, create_graph=True)
    expected = r**2 * second
    (slope,) = torch.autograd.grad(expected.sum(), r)
    torch.testing.assert_close(curvature(r, kind).value, expected)
    torch.testing.assert_close(curvature(r, kind).slope, slope)
    assert float(standard(torch.ones(1), kind).value) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_divergence_falls_along_the_diffusion_by_the_weighted_fisher_divergence(kind):
    """Integrated over levels, the curvature times the squared gap of scores is the divergence that is lost."""
    low, high, count = 0.3, 0.9, 200
    a, b = torch.tensor(A, dtype=torch.float64), torch.tensor(B, dtype=torch.float64)
    lost = 0.0
    for k in range(count):
        sigma = low + (k + 0.5) * (high - low) / count
        p, q = laws(a, b, sigma)
        inner = q.exp() * curvature((p - q).exp(), kind).value * gap_of_scores(a, b, sigma) ** 2
        lost += sigma * float(inner.sum()) * CELL * (high - low) / count
    expected = float(divergence(kind, a, b, low) - divergence(kind, a, b, high))
    assert lost == pytest.approx(expected, rel=1e-4)


def drawn(sigma: float) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor, Tensor, Tensor]:
    """Generator's weights, samples and noised samples (stratified in two dimensions), and the two estimates."""
    side = 600
    grid = torch.special.ndtri((torch.arange(side, dtype=torch.float64) + 0.5) / side)
    z, eps = (t.reshape(-1, 1) for t in torch.meshgrid(grid, grid, indexing="ij"))
    a, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (A, B))
    samples = a * z + b
    x = samples + sigma * eps
    real = MEAN + STD**2 / (STD**2 + sigma**2) * (x - MEAN)
    fake = B + A**2 / (A**2 + sigma**2) * (x - B)
    return (a, b), samples, x, real, fake


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_by_identities_is_that_of_the_weighted_fisher_divergence(kind):
    sigma = 0.9
    weights, samples, x, real, fake = drawn(sigma)
    r = (log_normal(x, MEAN, STD**2 + sigma**2) - log_normal(x, B, A**2 + sigma**2)).exp().squeeze(1)
    got = torch.autograd.grad(weighted_fisher(samples, real, fake, r, kind).mean(), weights)
    a, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (A, B))
    p, q = laws(a, b, sigma)
    value = (q.exp() * standard((p - q).exp(), kind).value * gap_of_scores(a, b, sigma) ** 2).sum() * CELL * sigma**4
    expected = torch.autograd.grad(value, (a, b))
    for one, other in zip(got, expected, strict=True):
        assert float(one) == pytest.approx(float(other), rel=0.02)


def test_without_its_weights_the_loss_is_score_identity_distillation():
    torch.manual_seed(0)
    x, real, fake = torch.randn(3, 8, 2, dtype=torch.float64)
    loss = weighted_fisher(x, real, fake, torch.rand(8, dtype=torch.float64), "reverse_kl")
    torch.testing.assert_close(loss, 2 * identity_loss(x, real, fake, 0.5, normalise=False))
    square = implicit_matching(x, real, fake, distance="square")
    torch.testing.assert_close(square, 2 * identity_loss(x, real, fake, 1.0, normalise=False))


@pytest.mark.parametrize(("distance", "huber"), [("square", 1.0), ("pseudo_huber", 0.3), ("pseudo_huber", 1.0)])
def test_implicit_matching_is_the_gradient_of_a_distance_over_a_fixed_law(distance, huber):
    sigma = 0.9
    weights, samples, _, real, fake = drawn(sigma)
    loss = implicit_matching(samples, real, fake, distance=distance, huber=huber).mean()
    got = torch.autograd.grad(loss, weights)
    a, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (A, B))
    gap = sigma**2 * gap_of_scores(a, b, sigma)
    apart = gap**2 if distance == "square" else torch.sqrt(gap**2 + huber**2)
    fixed = laws(torch.tensor(A, dtype=torch.float64), torch.tensor(B, dtype=torch.float64), sigma)[1].exp()
    expected = torch.autograd.grad((fixed * apart).sum() * CELL, (a, b))
    for one, other in zip(got, expected, strict=True):
        assert float(one) == pytest.approx(float(other), rel=0.01, abs=1e-4)
