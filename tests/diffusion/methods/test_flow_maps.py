"""Flow maps: the exact one obeys all three equations, and each equation leads to it."""

from __future__ import annotations

import pytest
import torch

from limbeck.diffusion.flows import flow_step
from toolkit.diffusion import CLOCK, ExactFlow, batch, descend, gaussian, made, student, values
from toolkit.flows import BentFlow

KINDS = ("lagrangian", "eulerian", "semigroup")


def flow_maps(net=None, **args):
    net = ExactFlow() if net is None else net
    return made("flow_maps", gaussian(), student(net, rule="map"), from_teacher=False, **args)


def costs(method) -> dict[str, float]:
    (update,) = method.updates(batch(0, 512), CLOCK)
    return {k: v / 512 for k, v in values(update).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_exact_map_obeys_every_equation(kind):
    assert costs(flow_maps(kind=kind))[kind] < 1e-5
    assert costs(flow_maps(kind=kind))["velocity"] < 1e-7


@pytest.mark.parametrize("kind", KINDS)
def test_a_map_that_is_no_flow_costs_and_costs_what_its_equation_says(kind):
    """Against the equation by finite differences, in float64."""
    net = BentFlow(1.3).double()
    method = made("flow_maps", gaussian().double(), student(net, rule="map"), from_teacher=False, kind=kind)
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    t, r, s, h = (torch.full((9,), v, dtype=torch.float64) for v in (0.8, 0.3, 0.5, 1e-5))
    jump = lambda z, t, r: flow_step(z, method.average(z, t, r, None), t, r)  # noqa: E731
    with torch.no_grad():
        v = method.velocity(z, t, None)
        found = method.average(z, t, r, None) - method.target(z, v, t, r, s, None)
        if kind == "lagrangian":
            arrived = jump(z, t, r)
            residual = (jump(z, t, r + h) - jump(z, t, r - h)) / (2 * h[:, None]) - method.velocity(arrived, r, None)
        elif kind == "eulerian":
            ahead, behind = (jump(z + e[:, None] * v, t + e, r) for e in (h, -h))
            residual = -(ahead - behind) / (2 * h[:, None])
        else:
            residual = (jump(jump(z, t, s), s, r) - jump(z, t, r)) / (t - r)[:, None]
    if kind == "semigroup":  # this map composes: it is the flow of another field
        assert float(found.abs().max()) < 1e-9
    else:
        assert float(found.abs().max()) > 0.01
    # u is solved for: the sign is that of u in the equation.
    torch.testing.assert_close(found, residual, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_descent_comes_to_the_exact_map(kind):
    net = BentFlow(1.4)
    descend(flow_maps(net, kind=kind, mean=0.5), 30, lr=0.1, rows=64)
    assert float(net.power.detach()) == pytest.approx(1.0, abs=0.05)


def test_without_a_teachers_velocity_the_networks_own_moves_the_points():
    net = BentFlow(1.3)
    own, theirs = (costs(flow_maps(net, kind="lagrangian", points=p))["lagrangian"] for p in ("data", "teacher"))
    assert own < 1e-5 < theirs  # a flow of its own field, which is not the teacher's
