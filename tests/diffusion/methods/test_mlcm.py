"""MLCM: its points are on the teacher's trajectories, also under guidance; exact jumps cost nothing."""

from __future__ import annotations

import pytest
import torch

from limbeck.diffusion import mixture, samplers
from limbeck.diffusion.few_step import FewStep
from limbeck.diffusion.guidance import Guided
from limbeck.errors import UserError
from limbeck.registry import Block
from toolkit.diffusion import CLOCK, ExactFlow, batch, descend, gaussian, made, student, values
from toolkit.flows import BentFlow

LAW = mixture.ring(4, 2.0, 0.3, classes=2).float()


def mlcm(net=None, **args):
    net = ExactFlow() if net is None else net
    return made("mlcm", gaussian(), student(net, rule="map"), from_teacher=False, **{"pair_steps": 6, **args})


def cost(**args) -> float:
    (update,) = mlcm(**args).updates(batch(0, 512), CLOCK)
    return values(update)["consistency"] / 512


def test_points_are_where_guided_trajectories_are():
    block = Block("mlp_denoiser", {"width": 8, "classes": 2})
    method = made("mlcm", LAW, student(block, nfe=2, rule="ode"), guidance=3.0, pair_steps=32)
    ids = {"id": torch.arange(32)}
    top, label = method.points_at(torch.full((32,), 10.0), ids, CLOCK)
    x, same = method.points_at(torch.full((32,), 0.5), ids, CLOCK)
    assert torch.equal(label, same)
    assert len(label.unique()) == 2
    exact = samplers.flow(Guided(LAW.double(), 3.0), top.double(), 10.0, 0.5, 32, label=label)
    LAW.float()
    torch.testing.assert_close(x.double(), exact, rtol=0.01, atol=0.02)


def test_every_draw_is_one_of_so_many():
    method = mlcm(pairs=3)
    x, _ = method.points_at(torch.full((64,), 1.0), batch(), CLOCK)
    assert len(x.unique()) == 3


def test_exact_jumps_cost_nothing_but_the_solvers_error():
    assert cost(solver_steps=4) < 1e-5
    assert cost(net=BentFlow(1.3), solver_steps=4) > 1e-4
    assert cost(order="euler") > 10 * cost()


def test_descent_comes_to_the_exact_jumps():
    net = BentFlow(1.4)
    descend(mlcm(net, segments=(4, 1), levels=16), 25, lr=0.1, rows=64)
    assert float(net.power.detach()) == pytest.approx(1.0, abs=0.05)


def test_steps_are_those_of_the_last_stage_unless_the_network_jumps():
    one = FewStep(ExactFlow(), [10.0], "ode", sigma_min=0.02)
    with pytest.raises(UserError, match="nfe: 2"):
        made("mlcm", gaussian(), one)
    made("mlcm", gaussian(), one, segments=(4, 1))
    mlcm()  # one step of a network that jumps
