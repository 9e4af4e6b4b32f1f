"""The distribution-matching gradient against the exact KL divergence, and the small losses around it."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from limbeck.diffusion.losses import denoising_weight, matching_direction, squared_error, surrogate
from limbeck.diffusion.mixture import GaussianMixture
from limbeck.diffusion.paths import precondition

f64 = torch.float64
MU, S = torch.tensor([1.0, -0.5], dtype=f64), torch.tensor([0.6, 1.7], dtype=f64)


def quadrature(dims: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Nodes [N, dims] and weights [N] that integrate polynomials of degree five against a standard normal exactly."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    points = torch.tensor(list(product(nodes, repeat=dims)), dtype=f64)
    mass = torch.tensor([np.prod(w) for w in product(weights / weights.sum(), repeat=dims)], dtype=f64)
    return points, mass


def affine() -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.tensor([[0.9, 0.4], [-0.2, 1.3]], dtype=f64, requires_grad=True),
        torch.tensor([0.3, 0.7], dtype=f64, requires_grad=True),
    )


def exact_kl(weight: torch.Tensor, shift: torch.Tensor, sigma: float) -> torch.Tensor:
    """KL between the noised laws of x = weight z + shift and of the teacher N(MU, diag S)."""
    noise = sigma**2 * torch.eye(2, dtype=f64)
    q = torch.distributions.MultivariateNormal(shift, weight @ weight.T + noise)
    p = torch.distributions.MultivariateNormal(MU, torch.diag(S) + noise)
    return torch.distributions.kl_divergence(q, p)


@pytest.mark.parametrize("sigma", [0.05, 0.8, 6.0])
def test_the_matching_gradient_is_that_of_the_exact_kl(sigma):
    A, b = affine()
    truth = torch.autograd.grad(exact_kl(A, b, sigma), (A, b))

    points, mass = quadrature(4)
    samples = points[:, :2] @ A.T + b
    noisy = samples.detach() + sigma * points[:, 2:]
    teacher = GaussianMixture(torch.ones(1, dtype=f64), MU[None], S[None])
    with torch.no_grad():
        spread = A @ A.T + sigma**2 * torch.eye(2, dtype=f64)
        fake = noisy - sigma**2 * torch.linalg.solve(spread, (noisy - b).T).T
    direction = matching_direction(samples, teacher.denoise(noisy, sigma), fake, normalise=False) / sigma**2
    loss = (mass * surrogate(samples, direction)).sum() * samples.shape[1]
    torch.testing.assert_close(torch.autograd.grad(loss, (A, b)), truth, rtol=1e-9, atol=1e-9)


def test_the_exact_kl_of_these_tests_falls_along_its_gradient():
    A, b = affine()
    h, gradient = 1e-6, torch.autograd.grad(exact_kl(A, b, 0.8), b)[0]
    step = h * gradient / gradient.norm()
    with torch.no_grad():
        rise = (exact_kl(A, b + step, 0.8) - exact_kl(A, b - step, 0.8)) / (2 * h)
    assert float(rise) == pytest.approx(float(gradient.norm()), rel=1e-5)


def test_the_normaliser_is_per_sample_over_all_dimensions():
    g = torch.Generator().manual_seed(0)
    samples, real, fake = torch.randn(3, 5, 2, 4, 4, generator=g, dtype=f64)
    direction = matching_direction(samples, real, fake)
    for i in range(5):
        size = np.abs((samples[i] - real[i]).numpy()).mean()
        torch.testing.assert_close(direction[i], (fake[i] - real[i]) / size)


def test_the_gradient_of_the_surrogate_is_the_direction():
    samples = torch.randn(4, 3, 2, dtype=f64, requires_grad=True)
    direction = torch.randn(4, 3, 2, dtype=f64)
    gradient = torch.autograd.grad(surrogate(samples, direction).sum(), samples)[0]
    torch.testing.assert_close(gradient, direction / 6)
    torch.testing.assert_close(surrogate(samples, direction).detach(), direction.square().flatten(1).mean(1) / 2)


def test_an_undefined_direction_is_zero_instead_of_nan():
    point = torch.ones(2, 2)
    assert torch.equal(matching_direction(point, point, point), torch.zeros(2, 2))
    assert torch.equal(matching_direction(point, point, point + 1), torch.zeros(2, 2))


def test_no_gradient_reaches_teacher_or_critic_through_the_direction():
    samples, real, fake = (torch.randn(2, 2, requires_grad=True) for _ in range(3))
    assert not matching_direction(samples, real, fake).requires_grad


def test_half_precision_samples_are_compared_in_float32():
    samples, real, fake = torch.randn(3, 2, 2).bfloat16()
    assert matching_direction(samples, real, fake).dtype == torch.float32
    assert surrogate(samples, torch.zeros(2, 2)).dtype == torch.float32


def test_weights_are_those_of_the_papers():
    sigma, sd = torch.tensor([0.1, 1.0, 10.0], dtype=f64), 0.5
    edm = denoising_weight(sigma, "edm", sd)
    torch.testing.assert_close(edm, (sigma**2 + sd**2) / (sigma * sd) ** 2)
    torch.testing.assert_close(edm * precondition(sigma, sd).c_out ** 2, torch.ones(3, dtype=f64))
    x0, eps = torch.randn(2, 3, 4, dtype=f64)
    x, guess = x0 + sigma[:, None] * eps, x0 + 0.3
    guessed_eps = (x - guess) / sigma[:, None]
    snr = denoising_weight(sigma, "snr", sd)
    torch.testing.assert_close(snr * squared_error(guess, x0), squared_error(guessed_eps, eps))
    assert torch.equal(denoising_weight(sigma, "uniform", sd), torch.ones(3, dtype=f64))


def test_shapes_are_not_broadcast():
    with pytest.raises(ValueError, match="same"):
        squared_error(torch.zeros(4, 2), torch.zeros(4, 1))
    with pytest.raises(ValueError, match="same"):
        matching_direction(torch.zeros(4, 2), torch.zeros(1, 2), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="unknown"):
        denoising_weight(torch.ones(2), "min-snr", 0.5)
