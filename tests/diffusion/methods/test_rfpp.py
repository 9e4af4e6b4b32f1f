"""2-RF++: the law of times, the distance by its formula, and what stays of rectified flow."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.diffusion.methods.rfpp import u_shaped
from limbeck.engine.method import Clock
from limbeck.registry import Block
from toolkit.diffusion import CLOCK, ExactFlow, batch, descend, gaussian, made, student, values
from toolkit.flows import BentFlow

A = 4.0


def rfpp(net=None, **args):
    given = {"pairs": 256, "pair_steps": 24, **args}
    return made("rfpp", gaussian(), student(net or ExactFlow(), rule="ode"), from_teacher=False, **given)


def test_times_have_the_law_of_the_paper():
    u = torch.linspace(0, 1, 2001, dtype=torch.float64)
    t = u_shaped(u, A)
    assert t[[0, 1000, 2000]].tolist() == pytest.approx([0, 0.5, 1], abs=1e-12)
    # The share below t, by the integral of the density that the paper names, each half of it normalised.
    share = (torch.expm1(A * t) / math.expm1(A) + torch.expm1(-A * t) / math.expm1(-A)) / 2
    torch.testing.assert_close(share, u)
    assert torch.equal(u_shaped(u, 0.0), u)
    torch.testing.assert_close(u_shaped(u, 1e-5), u)


def test_the_distance_is_that_of_velocities_and_samples():
    g = torch.Generator().manual_seed(0)
    answer, x0 = torch.randn(2, 7, 3, generator=g, dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, 7, dtype=torch.float64)
    found = rfpp(huber=0.2, sample_weight=0.5).line_error(answer, x0, t)
    c = 0.2 * 3**0.5
    far = (answer - x0).norm(dim=1)
    huber = [(torch.sqrt(d**2 + c**2) - c) / 3 for d in (far / t, far)]
    torch.testing.assert_close(found, (1 - t) * huber[0] + 0.5 * huber[1] / t)
    plain = rfpp(distance="square", sample_weight=0.0).line_error(answer, x0, t)
    torch.testing.assert_close(plain, far**2 / 3 / t**2)


def test_without_its_three_changes_it_is_rectified_flow():
    args = {"pairs": 64, "pair_steps": 4, "distil": 0.5, "from_teacher": False}
    ours, plain = (
        made(name, gaussian(), student(BentFlow(0.8), rule="ode"), **args, **more)
        for name, more in (
            ("rfpp", {"steepness": 0.0, "distance": "square", "sample_weight": 0.0}),
            ("rectified_flow", {}),
        )
    )
    for step in (0, 9):
        costs = [values(next(iter(m.updates(batch(), Clock(step, 10))))) for m in (ours, plain)]
        assert costs[0] == pytest.approx(costs[1], rel=1e-4)
    steep = made("rfpp", gaussian(), student(BentFlow(0.8), rule="ode"), **args, distance="square", sample_weight=0.0)
    assert values(next(iter(steep.updates(batch(), CLOCK)))) != pytest.approx(costs[1], rel=0.05)


def test_a_small_network_follows_the_pairs_in_one_step():
    torch.manual_seed(0)
    net = Block("mlp_denoiser", {"shape": [1], "width": 32, "depth": 1, "sigma_data": 0.5})
    generator = student(net, rule="ode")
    z = torch.linspace(-2, 2, 65)[:, None]
    exact = gaussian().flow(10 * z, 10.0, 0.02)
    descend(made("rfpp", gaussian(), generator, pairs=512, pair_steps=18), 200, lr=2e-2, rows=128)
    assert float((generator(z) - exact).detach().square().mean().sqrt()) < 0.1
