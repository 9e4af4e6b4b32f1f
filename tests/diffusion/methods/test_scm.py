"""sCM: the exact flow has no tangent, the update pulls against one, and one Gaussian's map is learnt."""

from __future__ import annotations

import pytest
import torch

from limbeck.errors import UserError
from toolkit.diffusion import CLOCK, ExactFlow, batch, descend, gaussian, made, student, values
from toolkit.flows import BentFlow


def scm(net=None, **args):
    net = ExactFlow() if net is None else net
    return made("scm", gaussian(), student(net), from_teacher=False, **{"warmup": 0.0, "std": 1.0, **args})


def cost(method) -> float:
    (update,) = method.updates(batch(0, 512), CLOCK)
    return values(update)["consistency"] / 512


def test_the_exact_flow_costs_nothing():
    assert cost(scm(tangent_floor=1.0)) < 1e-6
    assert cost(scm(BentFlow(1.2), tangent_floor=1.0)) > 1e-3
    assert cost(scm(tangent_floor=1.0, warmup=1.0)) > 1e-3  # a part of the tangent alone is not 0


def test_the_velocity_of_the_data_is_the_teachers_on_average():
    x, _, theirs, _ = scm().drawn(batch(0, 20_000), CLOCK, torch.full((20_000,), 0.5))
    same, _, own, _ = scm(points="data").drawn(batch(0, 20_000), CLOCK, torch.full((20_000,), 0.5))
    torch.testing.assert_close(x, same)
    assert float((own - theirs).abs().max()) > 0.1
    for other in (torch.ones_like(x), x):  # no correlation with the point
        assert float(((own - theirs) * other).mean()) == pytest.approx(0.0, abs=0.02)


def test_a_tangent_is_normalised_for_each_sample():
    method = scm(BentFlow(1.5), tangent_floor=1e-6)
    x, t, velocity, _ = method.drawn(batch(), CLOCK, torch.full((64,), 0.5))
    moved = method.against_tangent(x, t, velocity, None, 1.0) - method.field(x / method.sigma_data, t, None).detach()
    torch.testing.assert_close(moved.norm(dim=1), torch.ones(64), rtol=0.01, atol=0.01)


def test_the_weight_of_levels_learns_beside_the_student():
    method = scm(BentFlow(1.2))
    (update,) = method.updates(batch(), CLOCK)
    assert update.roles == ("student", "loss_weight")
    (term,) = update.evaluate().values()
    term.sum.backward()
    assert method.learners["loss_weight"].last.bias.grad.item() != 0
    assert "loss_weight" not in scm(learned_weight=False).learners


def test_a_network_with_a_floor_is_refused():
    with pytest.raises(UserError, match="floor"):
        scm(ExactFlow(floor=0.02))


def test_descent_comes_to_the_exact_map():
    net = BentFlow(1.4)
    descend(scm(net, mean=0.0, learned_weight=False), 40, lr=0.1, rows=64)
    assert float(net.power.detach()) == pytest.approx(1.0, abs=0.03)
