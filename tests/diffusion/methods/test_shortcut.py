"""Shortcut models: the dyadic steps, what a long one has to be, and the map that is learnt."""

from __future__ import annotations

import pytest
import torch

from limbeck.errors import UserError
from toolkit.diffusion import CLOCK, ExactFlow, batch, descend, gaussian, made, student, values
from toolkit.flows import BentFlow


def shortcut(net=None, **args):
    net = ExactFlow() if net is None else net
    return made("shortcut", gaussian(), student(net, rule="map"), from_teacher=False, **{"momentum": 0.0, **args})


def cost(method) -> float:
    (update,) = method.updates(batch(0, 512), CLOCK)
    return values(update)["shortcut"] / 512


def test_the_exact_map_costs_nothing_but_the_finest_steps():
    coarse, fine = (cost(shortcut(consistency=1.0, mesh=mesh)) for mesh in (16, 128))
    assert 0 < fine < coarse / 4
    assert cost(shortcut(consistency=0.0)) < 1e-7


def test_steps_are_dyadic_and_fit_the_way():
    method = shortcut(consistency=0.5, mesh=8)
    at = method.steps(torch.rand(4000, 3, generator=torch.Generator().manual_seed(0)))
    way = 10 / 11
    width, place = (at.t - at.r)[at.long] / way, (at.t / way)[at.long]
    assert set(width.mul(4).round().long().tolist()) == {1, 2, 4}  # a half of the finest is no step
    torch.testing.assert_close(place / width, (place / width).round(), rtol=1e-4, atol=1e-4)
    assert bool((at.r >= 0).all() and (at.t <= way + 1e-6).all())
    assert float(at.long.float().mean()) == pytest.approx(0.5, abs=0.03)
    assert bool((at.t == at.r)[~at.long].all())
    assert not bool(at.halves[at.long][width < 0.3].any())
    assert bool(at.halves[at.long][width > 0.3].all())


def test_a_long_step_is_the_mean_of_its_halves():
    method = shortcut(BentFlow(1.3), mesh=8)
    at = method.steps(torch.tensor([[0.0, 0.0, 0.5]]))
    z = torch.tensor([[0.7]])
    u = method.average(z, at.t, at.half, None)
    middle = z - (at.t - at.half)[:, None] * u
    arrived = middle - at.half[:, None] * method.average(middle, at.half, torch.zeros(1), None)
    torch.testing.assert_close(z - at.t[:, None] * method.two_halves(z, at, None), arrived)


def test_the_velocity_is_of_the_data_or_the_teacher():
    assert cost(shortcut(consistency=0.0, points="data")) > 0.01


def test_descent_comes_to_the_exact_map():
    net = BentFlow(1.4)
    descend(shortcut(net, consistency=0.5), 40, lr=0.1, rows=64)
    assert float(net.power.detach()) == pytest.approx(1.0, abs=0.03)


def test_a_mesh_that_does_not_halve_is_refused():
    with pytest.raises(UserError, match="power of 2"):
        shortcut(mesh=12)
