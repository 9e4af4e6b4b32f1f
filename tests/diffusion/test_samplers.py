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


@pytest.mark.parametrize(
    ("solver", "order"),
    [(samplers.euler, 1), (samplers.heun, 2), (samplers.dpmpp_2m, 2), (samplers.rk4, 4)],
    ids=["euler", "heun", "dpmpp_2m", "rk4"],
)
def test_the_error_falls_with_the_order_of_the_solver(solver, order, reference):
    law, x, exact = reference
    steps = [16, 32] if order == 4 else [64, 128]
    ends = [solver(law.denoise, x, samplers.log_grid(n, 20.0, 0.5)).samples for n in steps]
    errors = [float((end - exact).norm(dim=1).mean()) for end in ends]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m"])
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


@pytest.mark.parametrize(("name", "nfe"), [("euler", 10), ("heun", 19), ("dpmpp_2m", 10)])
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


def test_the_grid_is_that_of_the_paper():
    grid = samplers.karras_grid(18, 0.002, 80.0)
    assert len(grid) == 19
    assert grid[-1] == 0
    i = 5
    by_hand = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert float(grid[i]) == pytest.approx(by_hand, rel=1e-12)
    assert [float(g) for g in (grid[0], grid[-2])] == pytest.approx([80, 0.002])
    assert samplers.karras_grid(1, 0.002, 80.0).tolist() == pytest.approx([80.0, 0.0])


def test_one_step_is_one_denoising():
    law, z = mixture.ring(8, 4.0, 0.3), torch.randn(5, 2, dtype=f64)
    torch.testing.assert_close(samplers.sample(law.denoise, z, steps=1).samples, law.denoise(80 * z, 80.0))


@pytest.mark.parametrize("args", [(0, 0.1, 1.0), (4, 0.0, 1.0), (4, 2.0, 1.0)])
def test_impossible_grids_are_refused(args):
    with pytest.raises(ValueError, match="grid needs"):
        samplers.karras_grid(*args)


def test_laws_of_the_level_cover_their_range():
    u = torch.tensor([0.0, 0.5, 1.0], dtype=f64)
    assert karras(u, 0.002, 80.0).tolist() == pytest.approx([0.002, 2.5152, 80.0], rel=1e-4)
    assert log_uniform(u, 0.01, 100.0).tolist() == pytest.approx([0.01, 1.0, 100.0])
    assert within(u, 0.02, 0.98).tolist() == pytest.approx([0.02, 0.5, 0.98])
    assert log_normal(torch.zeros(1)).item() == pytest.approx(math.exp(-1.2))
