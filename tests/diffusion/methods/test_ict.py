"""iCT: the law of its levels, the doubling grid, weights, and the map that is learnt from data."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from limbeck.engine.method import Clock
from limbeck.errors import UserError
from toolkit.diffusion import CLOCK, ExactFlow, batch, descend, gaussian, made, student, values
from toolkit.flows import BentFlow


def ict(net=None, **args):
    net = ExactFlow(floor=0.02) if net is None else net
    return made("ict", gaussian(), student(net), from_teacher=False, **args)


def cost(method, clock=CLOCK) -> float:
    (update,) = method.updates(batch(0, 512), clock)
    return values(update)["consistency"] / 512


def test_the_grid_doubles_at_equal_shares():
    method = ict(levels=1280, first_levels=10)
    due = [method.due(Clock(k, 80)) for k in range(80)]
    assert due == [10 * 2 ** (k // 10) for k in range(80)]
    assert ict(levels=100, first_levels=10).due(Clock(79, 80)) == 80
    assert ict(levels=100, first_levels=100).due(Clock(0, 80)) == 100
    assert ict(levels=4, first_levels=10).due(Clock(0, 80)) == 4


def test_levels_have_the_discretised_law():
    method = ict(levels=10, mean=0.0, std=1.0)
    higher, lower = method.neighbours((torch.arange(100_000) + 0.5) / 100_000, Clock(0, 80))
    grid = [float(v) for v in method.levels(torch.linspace(0, 1, 11, dtype=torch.float64))]
    below = [math.erf(math.log(level) / math.sqrt(2)) for level in grid]
    mass = [b - a for a, b in pairwise(below)]
    for k in range(10):
        at = (lower - grid[k]).abs() < 1e-6 * (1 + grid[k])
        assert float(at.float().mean()) == pytest.approx(mass[k] / sum(mass), abs=1e-3)
        torch.testing.assert_close(higher[at], torch.full_like(higher[at], grid[k + 1]))


def test_the_loss_is_the_weighted_pseudo_huber_distance():
    method = ict(BentFlow(1.4, floor=0.02), huber=0.3)
    ids, clock = torch.arange(512), CLOCK
    x0, _ = method.clean(batch(0, 512), clock, "data")
    eps = clock.normal(ids, (1,), "noise")
    higher, lower = method.neighbours(clock.uniform(ids, (1,), "level").squeeze(1), clock)
    ends = [method.network(x0 + s[:, None] * eps, s, None) for s in (higher, lower)]
    apart = torch.sqrt((ends[0] - ends[1]).squeeze(1) ** 2 + 0.09) - 0.3
    assert cost(method) == pytest.approx(float((apart / (higher - lower)).mean().detach()), rel=1e-3)


def test_the_exact_map_has_a_bias_that_falls_with_the_levels():
    few, many = (cost(ict(levels=n, first_levels=n, huber=1.0)) for n in (10, 160))
    assert many < few / 4


def test_descent_comes_near_the_exact_map():
    net = BentFlow(1.4, floor=0.02)
    descend(ict(net, mean=0.0, std=1.0, levels=80, first_levels=10, huber=0.1), 120, lr=0.05)
    assert float(net.power.detach()) == pytest.approx(1.0, abs=0.1)


def test_a_network_that_is_not_the_identity_at_the_floor_is_refused():
    with pytest.raises(UserError, match=r"floor: 0\.02"):
        ict(ExactFlow(floor=0.0))
