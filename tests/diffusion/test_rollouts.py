"""Rollouts: the solver comes to the exact flow, DDIM is Euler on the circle, and fresh noise keeps a law."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.diffusion.mixture import line
from limbeck.diffusion.rollouts import go_down, ladder, renoised, visited

LAW = line()
X = 8.0 * torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None]


def test_the_solver_follows_the_exact_flow_to_each_samples_own_level():
    ends = torch.tensor([0.1, 0.3, 1.0, 2.0, 4.0, 7.9, 8.0], dtype=torch.float64)
    place = torch.log(ends / 0.1) / math.log(80)
    levels = [0.1 * 80**u for u in ladder(place, 64)]
    torch.testing.assert_close(levels[0], torch.full_like(ends, 8.0))
    torch.testing.assert_close(levels[-1], ends)
    found = go_down(LAW, X, levels)
    exact = torch.stack([LAW.flow(x[None], 8.0, float(end))[0] for x, end in zip(X, ends, strict=True)])
    assert float((found - exact).abs().max()) < 3e-3
    rough = go_down(LAW, X, levels, order="euler")
    assert float((rough - exact).abs().max()) > 3 * float((found - exact).abs().max())


def test_a_visited_trajectory_is_eulers_on_the_circle():
    angles = torch.tensor([1.4, 1.1, 0.7, 0.2], dtype=torch.float64)
    path = visited(LAW, X, [torch.full((7,), math.tan(t), dtype=torch.float64) for t in angles])
    assert path.states.shape == path.estimates.shape == (7, 4, 1)
    x = X * math.cos(1.4)
    for k, t in enumerate(angles.tolist()):
        torch.testing.assert_close(path.states[:, k] * math.cos(t), x)
        denoised = LAW(x / math.cos(t), torch.full((7,), math.tan(t), dtype=torch.float64))
        torch.testing.assert_close(path.estimates[:, k], denoised)
        if k < 3:
            velocity = (math.cos(t) * x - denoised) / math.sin(t)  # of the trigonometric flow
            turn = t - float(angles[k + 1])
            x = math.cos(turn) * x - math.sin(turn) * velocity


def test_fresh_noise_on_the_ends_of_the_flow_keeps_its_law():
    law, g = line((0.5,), (0.6,), (1.0,)), torch.Generator().manual_seed(0)
    draws = torch.randn(3, 40_000, 1, generator=g, dtype=torch.float64)
    levels = [torch.full((40_000,), s, dtype=torch.float64) for s in (8.0, 3.0, 1.0)]
    exact = lambda x, s: 0.5 + 0.6 / torch.sqrt(0.36 + s[:, None] ** 2) * (x - 0.5)  # noqa: E731
    found = renoised(exact, 0.5 + math.sqrt(0.36 + 64) * draws[0], levels, draws[1:])
    assert float(found.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(found.var()) == pytest.approx(0.36 + 1, rel=0.03)
    other = renoised(law, 0.5 + math.sqrt(0.36 + 64) * draws[0], levels, draws[1:])
    assert float(other.var()) < 1.2  # a denoiser's estimates are too near the mean
