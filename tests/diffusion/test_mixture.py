"""The exact teacher against autograd, quadrature, Monte Carlo and closed forms: the family's claims rest on it."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.diffusion import mixture, samplers
from limbeck.diffusion.guidance import Guided
from limbeck.diffusion.mixture import GaussianMixture

f64 = torch.float64


def uneven() -> GaussianMixture:
    """Three components with unlike weights and axes."""
    g = torch.Generator().manual_seed(0)
    means = 2 * torch.randn(3, 2, generator=g, dtype=f64)
    variances = torch.rand(3, 2, generator=g, dtype=f64) + 0.05
    return GaussianMixture(torch.tensor([0.2, 0.5, 0.3], dtype=f64), means, variances, torch.tensor([0, 1, 1]))


def points(count: int, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(count, 2, generator=torch.Generator().manual_seed(1), dtype=f64)


levels = [(1.0, 0.0), (1.0, 0.3), (1.0, 5.0), (0.4, 0.9)]


@pytest.mark.parametrize(("alpha", "sigma"), levels)
def test_score_is_the_gradient_of_log_prob(alpha, sigma):
    law, x = uneven(), points(20).requires_grad_()
    given = torch.autograd.grad(law.log_prob(x, alpha, sigma).sum(), x)[0]
    torch.testing.assert_close(law.score(x.detach(), alpha, sigma), given)


@pytest.mark.parametrize(("alpha", "sigma"), levels[1:])
def test_the_denoiser_obeys_tweedie(alpha, sigma):
    law, x = uneven(), points(20)
    torch.testing.assert_close(law.posterior_mean(x, alpha, sigma), (x + sigma**2 * law.score(x, alpha, sigma)) / alpha)


def test_log_prob_is_that_of_the_torch_distribution():
    law, x = uneven(), points(20)
    parts = torch.distributions.Independent(torch.distributions.Normal(law.means, law.variances.sqrt()), 1)
    truth = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(law.weights), parts)
    torch.testing.assert_close(law.log_prob(x), truth.log_prob(x))


@pytest.mark.parametrize("sigma", [0.0, 0.7])
def test_the_density_integrates_to_one(sigma):
    law = mixture.line()
    x = torch.linspace(-12, 12, 4001, dtype=f64)[:, None]
    assert float(torch.trapezoid(law.log_prob(x, sigma=sigma).exp(), x[:, 0])) == pytest.approx(1, abs=1e-9)


def test_the_denoiser_is_the_posterior_mean_by_monte_carlo():
    law, sigma = uneven(), 0.8
    x0 = law.sample(200_000).samples
    x = torch.tensor([[0.5, -1.0], [2.0, 1.0]], dtype=f64)
    weight = torch.softmax(-((x[:, None] - x0) ** 2).sum(-1) / (2 * sigma**2), dim=1)
    torch.testing.assert_close(law.denoise(x, sigma), weight @ x0, atol=0.02, rtol=0)


def test_far_points_and_tiny_noise_stay_finite():
    law = mixture.ring(8, 4.0, 0.3).float()
    x = torch.tensor([[1e4, -1e4], [0.0, 0.0]])
    for sigma in (1e-4, 0.002, 80.0):
        assert torch.isfinite(law.denoise(x, sigma)).all()
        assert torch.isfinite(law.score(x, 1.0, sigma)).all()


def test_an_empirical_law_remembers_its_points():
    data = points(5)
    law = GaussianMixture(torch.ones(5, dtype=f64), data, torch.zeros_like(data))
    torch.testing.assert_close(law.denoise(data + 0.001, 0.01), data)


def test_levels_may_differ_by_sample_and_shapes_are_kept():
    law, x = uneven(), points(4)
    sigma = torch.tensor([0.1, 0.5, 2.0, 9.0], dtype=f64)
    each = torch.cat([law.denoise(x[i : i + 1], float(s)) for i, s in enumerate(sigma)])
    torch.testing.assert_close(law.denoise(x, sigma), each)
    image = GaussianMixture(torch.ones(2), torch.randn(2, 1, 3, 3), torch.ones(2, 1, 3, 3))
    assert image.denoise(torch.randn(5, 1, 3, 3), 1.0).shape == (5, 1, 3, 3)


def test_samples_have_the_law_and_do_not_depend_on_how_they_are_cut():
    law = uneven()
    drawn = law.sample(50_000, seed=3)
    shares = torch.bincount(drawn.component, minlength=3) / 50_000
    torch.testing.assert_close(shares.double(), law.weights, atol=0.01, rtol=0)
    inside = drawn.samples[drawn.component == 1]
    torch.testing.assert_close(inside.mean(0), law.means[1], atol=0.03, rtol=0)
    torch.testing.assert_close(inside.var(0), law.variances[1], atol=0.03, rtol=0)
    torch.testing.assert_close(law.sample(10, seed=3, first=100).samples, drawn.samples[100:110])


def test_a_label_restricts_to_the_components_of_its_class():
    law, x = uneven(), points(6)
    alone = GaussianMixture(law.weights[1:], law.means[1:], law.variances[1:])
    ones, none = torch.ones(6, dtype=torch.long), torch.full((6,), -1)
    torch.testing.assert_close(law.denoise(x, 0.5, ones), alone.denoise(x, 0.5))
    torch.testing.assert_close(law.denoise(x, 0.5, none), law.denoise(x, 0.5))
    assert set(law.sample(100, label=torch.ones(100, dtype=torch.long)).component.tolist()) == {1, 2}


def test_guidance_interpolates_between_free_and_conditional():
    law, x, label = uneven(), points(6), torch.tensor([0, 1, 1, 0, 1, 0])
    free, bound = law.denoise(x, 0.5), law.denoise(x, 0.5, label)
    torch.testing.assert_close(Guided(law.denoise, 1.0)(x, 0.5, label), bound)
    torch.testing.assert_close(Guided(law.denoise, 0.0)(x, 0.5, label), free)
    torch.testing.assert_close(Guided(law.denoise, 3.0)(x, 0.5, label), free + 3 * (bound - free))


def test_sigma_data_and_entropy_are_those_of_the_law():
    law = mixture.ring(8, 4.0, 0.3)
    assert law.sigma_data == pytest.approx(float(law.sample(100_000).samples.std()), abs=0.02)
    one = torch.ones(1, 2, dtype=f64)
    single = GaussianMixture(one[:, 0], 0 * one, 0.09 * one)
    assert single.entropy() == pytest.approx(1 + math.log(2 * math.pi * 0.09), abs=0.02)


@pytest.mark.parametrize(("source", "target"), [(5.0, 0.1), (0.1, 3.0)])
def test_the_quantile_map_solves_the_flow(source, target):
    law = mixture.line()
    x = law.sample(50).samples + source * torch.randn(50, 1, dtype=f64, generator=torch.Generator().manual_seed(2))
    numeric = samplers.flow(law.denoise, x, source, target, steps=150)
    torch.testing.assert_close(law.flow(x, source, target), numeric, atol=1e-5, rtol=1e-5)


def test_the_quantile_map_is_exact_far_out_in_both_tails():
    single = GaussianMixture(torch.ones(1, dtype=f64), torch.zeros(1, 1, dtype=f64), torch.ones(1, 1, dtype=f64))
    twice = GaussianMixture(torch.ones(2, dtype=f64), torch.zeros(2, 1, dtype=f64), torch.ones(2, 1, dtype=f64))
    x = torch.tensor([[-30.0], [0.0], [30.0]], dtype=f64)
    torch.testing.assert_close(twice.flow(x, 3.0, 0.2), single.flow(x, 3.0, 0.2), rtol=1e-9, atol=1e-9)


def test_a_flow_without_closed_form_is_refused():
    with pytest.raises(ValueError, match=r"samplers\.flow"):
        uneven().flow(points(2), 1.0, 0.5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weights": torch.ones(2)}, "must be"),
        ({"weights": torch.tensor([1.0, 0.0, 1.0])}, "positive"),
        ({"variances": -torch.ones(3, 2)}, "not negative"),
        ({"labels": torch.zeros(2, dtype=torch.long)}, "labels"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused(change, says):
    args = {"weights": torch.ones(3), "means": torch.zeros(3, 2), "variances": torch.ones(3, 2), **change}
    with pytest.raises(ValueError, match=says):
        GaussianMixture(**args)


def test_wrong_shapes_and_labels_without_classes_are_refused():
    law = mixture.ring(4, 1.0, 0.1)
    with pytest.raises(ValueError, match="must be"):
        law.denoise(torch.zeros(3, 4), 1.0)
    with pytest.raises(ValueError, match="no classes"):
        law.denoise(torch.zeros(3, 2), 1.0, torch.zeros(3, dtype=torch.long))
