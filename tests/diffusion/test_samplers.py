"""Samplers: their order of convergence, closed forms, and the cost that they report."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.diffusion import mixture, samplers
from limbeck.diffusion.guidance import Guided
from limbeck.diffusion.levels import karras, log_normal, log_uniform, within
from limbeck.diffusion.mixture import GaussianMixture

f64 = torch.float64


def start(sigma: float, count: int = 64) -> torch.Tensor:
    return sigma * torch.randn(count, 2, generator=torch.Generator().manual_seed(0), dtype=f64)


@pytest.fixture(scope="module")
def reference() -> tuple[GaussianMixture, torch.Tensor, torch.Tensor]:
    """The ring, points at noise 20 and where the flow takes them at noise 0.5 (there it is smooth)."""
    law, x = mixture.ring(8, 4.0, 0.3), start(20.0)
    return law, x, samplers.flow(law.denoise, x, 20.0, 0.5, steps=256)


ORDERS = {
    samplers.euler: 1,
    samplers.heun: 2,
    samplers.dpmpp_2m: 2,
    samplers.dpmpp_2s: 2,
    samplers.dpmpp_3m: 3,
    samplers.dpmpp_3s: 3,
    samplers.rk4: 4,
}


@pytest.mark.parametrize(
    ("solver", "order"), [*ORDERS.items(), (samplers.rk4, 4)], ids=lambda p: getattr(p, "__name__", p)
)
def test_the_error_falls_with_the_order_of_the_solver(solver, order, reference):
    law, x, exact = reference
    steps = torch.tensor([8, 16, 32, 64, 128] if order < 4 else [8, 16, 32])
    ends = [solver(law.denoise, x, samplers.log_grid(n, 20.0, 0.5)).samples for n in steps.tolist()]
    errors = torch.stack([(end - exact).norm(dim=1).mean() for end in ends]).log2()
    away = steps.double().log2() - steps.double().log2().mean()
    slope = float((away * errors).sum() / away.square().sum())
    assert -slope == pytest.approx(order, abs=0.25)


def parabola(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """A denoiser that knows the level alone: ``2 - 3 s + s^2`` with ``s = log sigma``."""
    s = sigma.log()[:, None].expand_as(x)
    return 2 - 3 * s + s**2


def test_the_parabola_of_3m_is_exact_and_the_published_one_is_not():
    """``x = D - D' + D''`` with derivatives in ``-s`` solves the flow; two steps of lower order come first."""

    def solution(sigma: float) -> float:
        s = math.log(sigma)
        return (2 - 3 * s + s**2) + (2 * s - 3) + 2

    x, grid = start(4.0), samplers.log_grid(6, 4.0, 0.3)
    there = samplers.dpmpp_3m(parabola, x, grid[:3]).samples
    exact = solution(float(grid[-1])) + grid[-1] / grid[2] * (there - solution(float(grid[2])))
    torch.testing.assert_close(samplers.dpmpp_3m(parabola, x, grid).samples, exact)
    assert float((samplers.dpmpp_3m(parabola, x, grid, published=True).samples - exact).abs().max()) > 1e-2


def test_lower_orders_at_the_end_are_those_of_the_steps_left(reference):
    law, x, _ = reference
    grid = samplers.log_grid(6, 20.0, 0.5)
    for solver, taken in [(samplers.dpmpp_2m, -2), (samplers.dpmpp_3m, -3)]:
        whole = solver(law.denoise, x, grid, lower_order_final=True).samples
        assert float((whole - solver(law.denoise, x, grid).samples).abs().max()) > 1e-4
        # As far as the orders are full, the steps are the same.
        last = samplers.euler(law.denoise, solver(law.denoise, x, grid[:-1]).samples, grid[-2:]).samples
        assert torch.allclose(whole, last) == (taken == -2)


@pytest.mark.parametrize("name", samplers.SOLVERS)
def test_one_gaussian_is_solved_to_its_closed_form(name):
    law = GaussianMixture(
        torch.ones(1, dtype=f64), torch.tensor([[1.0, -2.0]], dtype=f64), torch.tensor([[0.25, 4.0]], dtype=f64)
    )
    x = start(40.0)
    grid = samplers.karras_grid(250, 0.01, 40.0)[:-1]
    solved = samplers.SOLVERS[name](law.denoise, x, grid).samples
    torch.testing.assert_close(solved, law.flow(x, 40.0, 0.01), rtol=0.05, atol=0.05)


def test_sampling_the_exact_score_gives_the_law():
    law = mixture.ring(8, 4.0, 0.3)
    z = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0), dtype=f64)
    x = samplers.sample(law.denoise, z, steps=32).samples
    shares = torch.bincount(law.responsibilities(x).argmax(1), minlength=8) / len(x)
    assert float((shares - 1 / 8).abs().sum()) / 2 < 0.04
    assert -float(law.log_prob(x).mean()) == pytest.approx(law.entropy(), abs=0.05)


@pytest.mark.parametrize(
    ("name", "nfe"),
    [("euler", 10), ("heun", 19), ("dpmpp_2m", 10), ("dpmpp_3m", 10), ("dpmpp_2s", 19), ("dpmpp_3s", 28)],
)
def test_every_evaluation_is_counted_and_guidance_counts_twice(name, nfe):
    law, calls = mixture.ring(4, 1.0, 0.2, classes=2), []

    def counted(x, sigma, label=None):
        calls.append(sigma)
        assert sigma.shape == (3,)
        return law.denoise(x, sigma, label)

    z = torch.zeros(3, 2, dtype=f64)
    assert samplers.sample(counted, z, steps=10, sampler=name).nfe == len(calls) == nfe
    calls.clear()
    label = torch.tensor([0, 1, 0])
    assert samplers.sample(Guided(counted, 2.0), z, steps=10, sampler=name, label=label).nfe == len(calls) == 2 * nfe


def test_one_step_is_one_denoising():
    law, z = mixture.ring(8, 4.0, 0.3), torch.randn(5, 2, dtype=f64)
    torch.testing.assert_close(samplers.sample(law.denoise, z, steps=1).samples, law.denoise(80 * z, 80.0))


def test_laws_of_the_level_cover_their_range():
    u = torch.tensor([0.0, 0.5, 1.0], dtype=f64)
    assert karras(u, 0.002, 80.0).tolist() == pytest.approx([0.002, 2.5152, 80.0], rel=1e-4)
    assert log_uniform(u, 0.01, 100.0).tolist() == pytest.approx([0.01, 1.0, 100.0])
    assert within(u, 0.02, 0.98).tolist() == pytest.approx([0.02, 0.5, 0.98])
    assert log_normal(torch.zeros(1)).item() == pytest.approx(math.exp(-1.2))
