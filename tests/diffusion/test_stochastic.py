"""Samplers with noise: on one Gaussian they are affine, so that their law is known without drawing from it."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.diffusion import mixture, samplers
from limbeck.diffusion.mixture import GaussianMixture

f64 = torch.float64
MEAN, STD, HIGH, LOW = 1.0, 0.5, 10.0, 0.05
LAW = GaussianMixture(torch.ones(1, dtype=f64), torch.tensor([[MEAN]], dtype=f64), torch.tensor([[STD**2]], dtype=f64))
SDES = {
    "sde_dpmpp_1": samplers.sde_dpmpp_1,
    "sde_dpmpp_2m": samplers.sde_dpmpp_2m,
    "ancestral": samplers.ddim,
    "half": lambda *a, **k: samplers.ddim(*a, **k, eta=0.5),
    "churn": lambda *a, **k: samplers.churn(*a, **k, s_noise=1.0),
}


def law_of(sampler, grid, denoise=LAW.denoise) -> tuple[float, float]:
    """Mean and variance of where a sampler ends that begins with the noised law: one row for each source of noise."""
    steps = len(grid) - 1
    x = torch.full((steps + 2, 1), MEAN, dtype=f64)
    x[0] += math.sqrt(STD**2 + float(grid[0]) ** 2)
    noise = torch.zeros(steps, steps + 2, 1, dtype=f64)
    noise[range(steps), range(1, steps + 1)] = 1.0
    end = sampler(denoise, x, grid, noise=noise).samples
    centre = end[-1]  # of the row without any noise
    return float(centre), float((end[:-1] - centre).square().sum())


@pytest.mark.parametrize("name", SDES)
def test_the_law_comes_to_the_gaussians_own(name):
    wanted = STD**2 + LOW**2
    errors = []
    for steps in (64, 256):
        mean, variance = law_of(SDES[name], samplers.log_grid(steps, HIGH, LOW))
        assert mean == pytest.approx(MEAN, abs=1e-9)
        errors.append(abs(variance / wanted - 1))
    assert errors[1] < 0.025
    assert errors[1] < errors[0] / 3


def test_the_second_order_is_closer_than_the_first():
    grid = samplers.log_grid(64, HIGH, LOW)
    first, second = (abs(law_of(SDES[f"sde_dpmpp_{n}"], grid)[1] - STD**2 - LOW**2) for n in ("1", "2m"))
    assert second < first / 5


def test_ddim_is_euler_without_noise_and_the_first_order_with_all_of_it():
    x, grid = torch.randn(5, 1, dtype=f64), samplers.karras_grid(6, LOW, HIGH)
    noise = torch.randn(6, 5, 1, dtype=f64)
    ends = [samplers.ddim(LAW.denoise, x, grid, noise=noise, eta=eta).samples for eta in (0.0, 1.0)]
    torch.testing.assert_close(ends[0], samplers.euler(LAW.denoise, x, grid).samples)
    torch.testing.assert_close(ends[1], samplers.sde_dpmpp_1(LAW.denoise, x, grid, noise=noise).samples)


def test_churn_is_heun_where_it_may_not_churn_and_raises_a_level_by_so_much():
    x, grid = torch.randn(5, 1, dtype=f64), samplers.karras_grid(6, LOW, HIGH)
    noise = torch.randn(6, 5, 1, dtype=f64)
    plain = samplers.heun(LAW.denoise, x, grid)
    for off in ({"s_churn": 0.0}, {"s_min": 2 * HIGH, "s_max": 3 * HIGH}):
        assert torch.equal(samplers.churn(LAW.denoise, x, grid, noise=noise, **off).samples, plain.samples)
    seen = []
    watched = lambda x, sigma: seen.append(float(sigma[0])) or LAW.denoise(x, sigma)  # noqa: E731
    samplers.churn(watched, x, grid, noise=noise, s_churn=0.6, s_min=0.0, s_max=99.0)
    assert seen[0] == pytest.approx(1.1 * HIGH)
    samplers.churn(watched, x, grid, noise=noise, s_churn=99.0, s_min=0.0, s_max=99.0)
    assert seen[len(seen) // 2] == pytest.approx(math.sqrt(2) * HIGH)


def test_new_noise_on_the_end_of_the_flow_keeps_its_law():
    def end_of_flow(x, sigma):
        return MEAN + STD / (STD**2 + sigma[:, None] ** 2).sqrt() * (x - MEAN)

    mean, variance = law_of(samplers.renoise, samplers.karras_grid(4, LOW, HIGH), end_of_flow)
    assert (mean, variance) == (pytest.approx(MEAN), pytest.approx(STD**2))


@pytest.mark.parametrize(("name", "nfe"), [(n, 19 if n == "churn" else 10) for n in samplers.STOCHASTIC])
def test_noise_by_keys_does_not_depend_on_the_batch_and_every_call_is_counted(name, nfe):
    law = mixture.ring(4, 1.0, 0.2)
    z, ids = torch.randn(6, 2, dtype=f64), torch.arange(6)

    def ends(rows: slice) -> samplers.Solution:
        draws = samplers.Keyed(ids[rows], z[rows], "here")
        return samplers.sample(law.denoise, z[rows], steps=10, sampler=name, draws=draws)

    whole = ends(slice(None))
    assert whole.nfe == nfe
    assert whole.samples.dtype == f64
    torch.testing.assert_close(whole.samples[2:5], ends(slice(2, 5)).samples)
    with pytest.raises(ValueError, match="draws"):
        samplers.sample(law.denoise, z, steps=3, sampler=name)
