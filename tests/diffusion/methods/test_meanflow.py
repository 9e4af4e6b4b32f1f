"""Mean flows: the identity holds for the exact map, and a gradient that leads to it."""

from __future__ import annotations

import pytest
import torch

from limbeck.errors import UserError
from toolkit.diffusion import CLOCK, ExactFlow, batch, descend, gaussian, made, student, values
from toolkit.flows import BentFlow


def meanflow(net=None, **args):
    net = ExactFlow() if net is None else net
    return made("meanflow", gaussian(), student(net, rule="map"), from_teacher=False, **args)


def cost(method) -> float:
    (update,) = method.updates(batch(0, 512), CLOCK)
    return values(update)["mean_velocity"] / 512


def test_the_exact_map_costs_nothing():
    assert cost(meanflow(same=0.0, power=0.0)) < 1e-7
    assert cost(meanflow(BentFlow(1.2), same=0.0, power=0.0)) > 1e-3


def test_where_both_times_are_the_same_the_target_is_the_velocity():
    method = meanflow(BentFlow(1.2), same=1.0, power=0.0)
    t = method.within_range(torch.sigmoid(-0.4 + CLOCK.normal(torch.arange(512), (2,), "times"))).max(dim=1).values
    z, velocity, _ = method.on_line(batch(0, 512), CLOCK, t)
    off = (method.average(z, t, t, None) - velocity).square().mean()
    assert cost(method) == pytest.approx(float(off.detach()), rel=1e-4)


def test_one_velocity_of_the_data_costs_its_variance():
    assert cost(meanflow(same=1.0, power=0.0, points="data")) > 0.01


def test_the_adaptive_weight_levels_the_samples():
    wrong = BentFlow(1.2)
    assert cost(meanflow(wrong, same=0.0, power=1.0)) == pytest.approx(1.0, abs=0.2)


def test_a_network_of_one_level_is_refused():
    with pytest.raises(UserError, match="jumps"):
        made("meanflow", gaussian(), student(ExactFlow(), rule="ode"))


def test_descent_comes_to_the_exact_map():
    net = BentFlow(1.4)
    descend(meanflow(net, mean=0.5, same=0.5, power=0.5), 40, lr=0.1, rows=64)
    assert float(net.power.detach()) == pytest.approx(1.0, abs=0.03)
