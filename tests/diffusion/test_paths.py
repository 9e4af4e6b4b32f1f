"""Noise paths as identities in float64: one sign or factor wrong here spoils every method of the family."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from limbeck.diffusion import mixture, paths

PATHS = [paths.EDM(), paths.VPLinear(), paths.VPCosine(), paths.FlowMatching(), paths.TrigFlow(0.7)]
KINDS = ["denoised", "eps", "score", "v", "v_rotated"]
times = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
by_name = pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)


def states(path: paths.NoisePath, shape: tuple[int, ...] = (3,)) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, len(times), *shape, generator=g, dtype=torch.float64)
    return x0, eps, path.noisy(x0, eps, times)


@by_name
def test_the_derivatives_are_those_of_the_coefficients(path):
    t = times.clone().requires_grad_()
    at = path.at(t)
    for value, slope in ((at.alpha, at.alpha_dot), (at.sigma, at.sigma_dot)):
        given = torch.autograd.grad((value + 0 * t).sum(), t, retain_graph=True)[0]
        torch.testing.assert_close(slope.detach(), given)


@by_name
def test_time_inverts_level(path):
    torch.testing.assert_close(path.time(path.level(times)), times, rtol=1e-12, atol=1e-12)


def test_small_levels_of_the_vp_path_keep_their_digits():
    level = torch.tensor([1e-6], dtype=torch.float64)
    torch.testing.assert_close(paths.VPLinear().level(paths.VPLinear().time(level)), level, rtol=1e-9, atol=0)


def test_the_vp_path_is_that_of_its_published_constants():
    at = paths.VPLinear().at(torch.ones(1, dtype=torch.float64))
    assert float(at.alpha**2) == pytest.approx(math.exp(-10.05))


@by_name
@pytest.mark.parametrize(("source", "target"), product(KINDS, KINDS))
def test_predictions_convert_there_and_back(path, source, target):
    x0, eps, x = states(path)
    at = path._shaped(times, x)
    truth = {
        "denoised": x0,
        "eps": eps,
        "score": -eps / at.sigma,
        "v": at.alpha_dot * x0 + at.sigma_dot * eps,
        "v_rotated": at.alpha * eps - at.sigma * x0,
    }
    torch.testing.assert_close(paths.convert(path, x, times, truth[source], source, target), truth[target])


@by_name
def test_velocity_is_the_time_derivative_of_the_path(path):
    x0, eps, x = states(path)
    v = paths.from_denoised(path, x, times, x0, "v")
    h = 1e-6
    moved = (path.noisy(x0, eps, times + h) - path.noisy(x0, eps, times - h)) / (2 * h)
    torch.testing.assert_close(v, moved, rtol=1e-6, atol=1e-6)


def test_the_cosine_path_has_the_rotated_velocity_up_to_half_pi():
    path = paths.VPCosine()
    x0, _, x = states(path)
    v = paths.from_denoised(path, x, times, x0, "v")
    torch.testing.assert_close(v, math.pi / 2 * paths.from_denoised(path, x, times, x0, "v_rotated"))


def test_flow_matching_predicts_noise_less_data():
    path = paths.FlowMatching()
    x0, eps, x = states(path)
    torch.testing.assert_close(paths.from_denoised(path, x, times, x0, "v"), eps - x0)


def test_trigflow_network_output_is_the_velocity_over_sigma_data():
    path = paths.TrigFlow(0.7)
    x0, _, x = states(path)
    F = paths.from_denoised(path, x, times, x0, "v") / 0.7
    torch.testing.assert_close(torch.cos(times)[:, None] * x - 0.7 * torch.sin(times)[:, None] * F, x0)


def test_rectified_flow_becomes_trigflow_by_the_published_change_of_variables():
    x0, _, x = states(paths.FlowMatching())
    v = paths.from_denoised(paths.FlowMatching(), x, times, x0, "v")
    k = torch.sqrt(times**2 + (1 - times) ** 2)[:, None]
    tau, scaled = torch.atan(times / (1 - times)), x / k
    F = k * v - (2 * times - 1)[:, None] * x / k
    torch.testing.assert_close(paths.from_denoised(paths.TrigFlow(), scaled, tau, x0, "v"), F)


@by_name
def test_an_edm_denoiser_serves_every_path(path):
    law = mixture.ring(3, 2.0, 0.4)
    _, _, x = states(path, (2,))
    at = path.at(times)
    direct = law.posterior_mean(x, at.alpha, at.sigma)
    torch.testing.assert_close(paths.on_path(law.denoise, path)(x, times), direct)


@by_name
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_any_path_and_kind_becomes_an_edm_denoiser(path, kind):
    law = mixture.ring(3, 2.0, 0.4)

    def network(x, t):
        at = path.at(t)
        return paths.from_denoised(path, x, t, law.posterior_mean(x, at.alpha, at.sigma), kind)

    sigma = torch.tensor([0.1, 0.5, 3.0, 20.0], dtype=torch.float64)
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * sigma[:, None]
    torch.testing.assert_close(paths.to_edm(network, path, kind)(x, sigma), law.denoise(x, sigma))


def test_preconditioning_gives_the_network_unit_variance_in_and_out():
    sigma, sigma_data = torch.tensor([0.01, 0.5, 3.0, 80.0], dtype=torch.float64), 0.8
    c = paths.precondition(sigma, sigma_data)
    torch.testing.assert_close(c.c_in**2 * (sigma_data**2 + sigma**2), torch.ones(4, dtype=torch.float64))
    target = ((1 - c.c_skip) ** 2 * sigma_data**2 + c.c_skip**2 * sigma**2) / c.c_out**2
    torch.testing.assert_close(target, torch.ones(4, dtype=torch.float64))


def test_coefficients_are_not_broadcast_over_the_wrong_axis():
    with pytest.raises(ValueError, match="one value per sample"):
        paths.like(torch.ones(3), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="same shape"):
        paths.to_denoised(paths.EDM(), torch.zeros(4, 3), torch.ones(4), torch.zeros(4, 1), "eps")
