"""Self-distilled kernel ridge regression against the published identities."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.vision.krr import best_label_weight, fit, limit, rbf, self_distilled

G = torch.Generator().manual_seed(3)
X = torch.linspace(0, 1, 11, dtype=torch.float64)[:, None]
Y = torch.sin(2 * math.pi * X[:, 0]) + 0.5 * torch.randn(11, generator=G, dtype=torch.float64)
K = rbf(X, X, 80.0)
RIDGE = 0.2


def test_the_kernel_is_its_definition() -> None:
    assert K[2, 5].item() == pytest.approx(math.exp(-80 * 0.3**2))
    assert rbf(X, X[:4], 80.0).shape == (11, 4)


def test_a_fit_minimises_the_penalised_squares() -> None:
    c = fit(K, Y, RIDGE).clone().requires_grad_()
    loss = 0.5 * (K @ c - Y).square().sum() + 0.5 * RIDGE * c @ K @ c
    (gradient,) = torch.autograd.grad(loss, c)
    assert gradient.abs().max() < 1e-10


def test_a_step_minimises_the_mixture_of_both_targets() -> None:
    a, (first, second) = 0.35, self_distilled(K, Y, RIDGE, [0.35, 0.35])
    previous, c = K @ first, second.clone().requires_grad_()
    f = K @ c
    loss = a / 2 * (f - Y).square().sum() + (1 - a) / 2 * (f - previous).square().sum() + RIDGE / 2 * c @ f
    assert torch.autograd.grad(loss, c)[0].abs().max() < 1e-10
    torch.testing.assert_close(first, fit(K, Y, RIDGE))


@pytest.mark.parametrize("a", [0.1, 0.35, 0.8, 1.0])
def test_the_limit_is_a_fit_with_the_ridge_over_the_label_weight(a: float) -> None:
    last = self_distilled(K, Y, RIDGE, [a] * 400)[-1]
    torch.testing.assert_close(K @ last, limit(K, Y, RIDGE, a), atol=1e-8, rtol=0)
    torch.testing.assert_close(limit(K, Y, RIDGE, a), K @ fit(K, Y, RIDGE / a), atol=1e-12, rtol=0)


def test_without_labels_everything_is_forgotten() -> None:
    norms = [float((K @ c).norm()) for c in self_distilled(K, Y, RIDGE, [0.0] * 3000)]
    assert norms == sorted(norms, reverse=True) and norms[-1] < 1e-3
    assert not limit(K, Y, RIDGE, 0.0).any()


def test_the_test_loss_has_the_published_shape() -> None:
    """Without labels it rises to that of predicting zero; with them it settles (the paper's table for a = 0.35)."""
    at = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]
    truth, cross = torch.sin(2 * math.pi * at[:, 0]), rbf(at, X, 80.0)

    def losses(a: float) -> list[float]:
        return [float((cross @ c - truth).square().mean()) for c in self_distilled(K, Y, RIDGE, [a] * 300)]

    free, damped = losses(0.0), losses(0.35)
    assert free[-1] > 2 * max(damped) and free[-1] == pytest.approx(0.495, abs=0.01)  # the mean square of the sine
    assert free[0] == damped[0] and abs(damped[-1] - damped[-2]) < 1e-12
    assert max(damped[3:]) - min(damped[3:]) < 0.1 * damped[0]


def test_the_best_weight_is_that_of_a_search() -> None:
    at = torch.rand(40, 1, generator=G, dtype=torch.float64)
    truth, cross = torch.sin(2 * math.pi * at[:, 0]), rbf(at, X, 80.0)
    previous = K @ fit(K, Y, RIDGE)
    found = float(best_label_weight(truth, cross @ fit(K, Y, RIDGE), cross @ fit(K, previous, RIDGE)))

    def loss(a: float) -> float:
        return float((cross @ fit(K, a * Y + (1 - a) * previous, RIDGE) - truth).square().sum())

    assert all(loss(found) < loss(found + step) for step in (-0.01, 0.01, -1e-3, 1e-3))


def test_several_outputs_are_fitted_side_by_side() -> None:
    both = torch.stack([Y, -2 * Y], 1)
    torch.testing.assert_close(fit(K, both, RIDGE)[:, 1], -2 * fit(K, Y, RIDGE))


def test_unlike_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[N, N\]"):
        fit(K[:5], Y, RIDGE)
    with pytest.raises(ValueError, match="same shape"):
        best_label_weight(Y, Y[:1], Y)
