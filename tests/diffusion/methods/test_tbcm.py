"""TBCM: its points are the teacher's states with their velocities, and the exact flow has no tangent there."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.diffusion import samplers
from limbeck.errors import UserError
from limbeck.registry import Block
from toolkit.diffusion import CLOCK, MEAN, STD, ExactFlow, batch, descend, gaussian, made, student, values
from toolkit.flows import BentFlow


def tbcm(net=None, **args):
    net = ExactFlow() if net is None else net
    return made("tbcm", gaussian(), student(net), from_teacher=False, **{"warmup": 0.0, "pair_steps": 4, **args})


def cost(net=None, **args) -> float:
    (update,) = tbcm(net, tangent_floor=1.0, **args).updates(batch(0, 128), CLOCK)
    return values(update)["consistency"] / 128


def test_a_route_has_a_level_from_each_part_of_the_grid():
    method = tbcm()
    levels = method.route_levels(torch.rand(50, 4, generator=torch.Generator().manual_seed(0)))
    edges = method.levels(torch.linspace(1, 0, 5))
    torch.testing.assert_close(levels[:, 0], torch.full((50,), 10.0), rtol=1e-4, atol=0)
    for k in range(4):
        assert bool(((levels[:, k + 1] <= edges[k] * 1.0001) & (levels[:, k + 1] >= edges[k + 1] * 0.9999)).all())
    assert len(levels[:, 1].unique()) == 50


def test_states_come_to_the_exact_trajectory_with_their_number():
    def off(steps):
        method = tbcm(pair_steps=steps)
        x, t, velocity, sigma, _ = method.route({"id": torch.arange(16)}, CLOCK)
        y = x / torch.cos(t)[:, None]
        torch.testing.assert_close(sigma, STD * torch.tan(t))
        # The velocity is that of the trigonometric flow, in closed form for one Gaussian.
        denoised = gaussian()(y, sigma)
        torch.testing.assert_close(velocity, (torch.cos(t)[:, None] * x - denoised) / torch.sin(t)[:, None])
        which = (CLOCK.uniform(torch.arange(16), (1,), "pair").squeeze(1) * method.pairs).long()
        start = 10.0 * method.pair_start(which, CLOCK.seed)[0].repeat_interleave(steps, dim=0)
        exact = MEAN + torch.sqrt((STD**2 + sigma**2) / (STD**2 + 100))[:, None] * (start - MEAN)
        return float((y - exact).square().mean().sqrt())

    few, many = off(8), off(64)
    assert many < few / 4
    assert many < 0.02


def test_the_exact_flow_costs_nothing_also_where_states_are_off_it():
    assert cost() < 1e-6
    assert cost(BentFlow(1.2)) > 1e-3
    assert cost(points="teacher") < 1e-6
    assert cost(points="data") > 1e-3


def test_guidance_moves_the_trajectory():
    from limbeck.diffusion.mixture import ring

    law = ring(4, 2.0, 0.3, classes=2).float()
    net = Block("mlp_denoiser", {"width": 8, "classes": 2, "activation": "silu"})
    method = made("tbcm", law, student(net), guidance=3.0, pair_steps=48)
    x, t, _, sigma, label = method.route({"id": torch.arange(8)}, CLOCK)
    y = (x / torch.cos(t)[:, None]).reshape(8, 48, 2)[:, -1]
    which = (CLOCK.uniform(torch.arange(8), (1,), "pair").squeeze(1) * method.pairs).long()
    start, own = method.pair_start(which, CLOCK.seed)
    assert torch.equal(label, own.repeat_interleave(48))
    ends = samplers.flow(method.real, start * 10.0, 10.0, 0.02, 64, label=own)
    assert float((y - ends).norm(dim=1).median()) < 0.1
    assert not math.isnan(float(sigma.sum()))


def test_descent_comes_to_the_exact_map():
    net = BentFlow(1.4)
    descend(tbcm(net, learned_weight=False), 20, lr=0.15, rows=16)
    assert float(net.power.detach()) == pytest.approx(1.0, abs=0.03)


def test_a_trajectory_of_one_step_is_refused():
    with pytest.raises(UserError, match="pair_steps"):
        tbcm(pair_steps=1)
