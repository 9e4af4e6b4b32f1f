"""Consistency models: what a consistent function costs, the grids, and the map that is learnt on one Gaussian."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.engine.method import Clock
from limbeck.errors import UserError
from limbeck.registry import Block
from toolkit.diffusion import CLOCK, ExactFlow, batch, descend, gaussian, made, student, values


def consistency(net=None, **args):
    net = ExactFlow(floor=0.02) if net is None else net
    return made("consistency", gaussian(), student(net), from_teacher=False, **args)


def cost(method) -> float:
    (update,) = method.updates(batch(0, 512), CLOCK)
    return values(update)["consistency"] / 512


def test_the_exact_map_costs_nothing_but_the_solvers_error():
    exact = cost(consistency(solver_steps=8))
    assert exact < 1e-5
    assert cost(consistency(solver_steps=1)) > exact
    assert cost(consistency(order="euler")) > 10 * cost(consistency(order="heun"))


def test_a_wrong_map_costs_more():
    wrong = ExactFlow(floor=0.02)
    wrong.forward = lambda x, sigma, label=None: x  # not consistent: the identity everywhere
    assert cost(consistency(wrong)) > 1e-3


def test_points_of_the_data_share_the_noise_and_cost_a_bias_that_falls_with_the_levels():
    few, many = (cost(consistency(points="data", levels=n)) for n in (10, 80))
    assert 0 < many < few / 4


def test_pairs_are_neighbours_on_the_grid():
    method = consistency(levels=5)
    higher, lower = method.neighbours(torch.tensor([0.0, 0.24, 0.26, 0.99]), CLOCK)
    grid = method.levels(torch.linspace(0, 1, 5))
    torch.testing.assert_close(lower, grid[[0, 0, 1, 3]])
    torch.testing.assert_close(higher, grid[[1, 1, 2, 4]])
    assert float(lower.min()) == pytest.approx(0.02)


def test_the_grid_grows_from_few_levels_to_all():
    method = consistency(levels=150, first_levels=2)
    due = [method.due(Clock(k, 100)) for k in range(100)]
    assert due == sorted(due)
    assert due[0] == 2
    formula = math.ceil(math.sqrt(0.5 * (151**2 - 4) + 4) - 1) + 1
    assert due[50] == formula
    assert max(due) <= 150


def test_the_momentum_follows_the_grid():
    method = consistency(levels=20, first_levels=2, momentum=0.9)
    seen = []
    method.slow.follow = seen.append
    method.after_step(Clock(0, 10))
    assert seen == [pytest.approx(0.9)]
    method.after_step(Clock(9, 10))
    assert 0.9 < seen[1] < 1


def test_a_network_that_is_not_the_identity_at_the_floor_is_refused():
    with pytest.raises(UserError, match=r"floor: 0\.02"):
        consistency(ExactFlow(floor=0.0))


def test_a_small_network_learns_the_map_of_one_gaussian():
    torch.manual_seed(0)
    net = Block("mlp_denoiser", {"shape": [1], "width": 32, "depth": 2, "sigma_data": 0.5, "floor": 0.02})
    generator = student(net)
    method = made("consistency", gaussian(), generator, from_teacher=False, levels=12)
    z = torch.randn(512, 1)
    exact = gaussian().flow(10 * z, 10.0, 0.02)
    before = float((generator(z) - exact).detach().square().mean().sqrt())
    descend(method, 250, lr=1e-2)
    after = float((generator(z) - exact).detach().square().mean().sqrt())
    assert after < min(0.12, before / 2)
