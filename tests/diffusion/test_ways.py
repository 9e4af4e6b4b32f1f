"""The ways that samples take: where they begin and end, and to what scale they are shown."""

from __future__ import annotations

import torch

from limbeck.diffusion.ways import ways
from limbeck.registry import Block, build
from toolkit.diffusion import MEAN, STD, ExactFlow, gaussian, student

GRID = {"sigma_data": 1.0, "steps": 6, "sigma_min": 0.02, "sigma_max": 10.0, "rho": 7.0}


def test_a_denoiser_goes_from_noise_to_a_sample_by_heuns_method():
    z = torch.linspace(-2, 2, 5)[:, None]
    found = ways(gaussian(), z, None, **{**GRID, "steps": 32})
    assert found.shape == (5, 33, 1)
    torch.testing.assert_close(found[:, 0], 10 * z / (1 + 10.0**2) ** 0.5)
    exact = MEAN + STD / (STD**2 + 100) ** 0.5 * (10 * z - MEAN)
    torch.testing.assert_close(found[:, -1], exact, rtol=0, atol=0.01)


def test_a_generator_shows_the_levels_of_its_calls_and_ends_at_its_sample():
    z = torch.randn(5, 1)
    generator = student(ExactFlow(), nfe=3, rule="map")
    found = ways(generator, z, None, **GRID)
    assert found.shape == (5, 4, 1)
    torch.testing.assert_close(found[:, -1], generator(z).detach())
    level = generator.levels[1]
    there = gaussian().flow(10 * z, 10.0, level) / (1 + level**2) ** 0.5
    torch.testing.assert_close(found[:, 1], there.float(), rtol=1e-3, atol=1e-3)


def test_every_kind_of_generator_ends_its_way_at_its_sample():
    torch.manual_seed(0)
    net = Block("mlp_denoiser", {"width": 8, "depth": 1, "sigma_data": 1.0})
    grid = {"sigma_min": 0.02, "sigma_max": 10.0}
    kinds = {"few_step": {"nfe": 2, **grid}, "posterior_steps": {"nfe": 2, **grid}, "idempotent": {"again": [0.5]}}
    for name, args in kinds.items():
        made = build("model", Block(name, {"net": net, **args}))
        z = torch.randn(4, *made.noise_shape)
        torch.testing.assert_close(made.visits(z)[-1][1], made(z))


def test_what_does_not_tell_its_way_has_none():
    assert ways(torch.nn.Linear(1, 1), torch.randn(2, 1), None, **GRID) is None
