"""ECT: the levels of a pair by stage, denoising at first, and weights that act as they should."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.engine.method import Clock
from limbeck.errors import UserError
from toolkit.diffusion import ExactFlow, batch, descend, gaussian, made, student, values
from toolkit.flows import BentFlow


def ect(net=None, **args):
    net = ExactFlow() if net is None else net
    return made("ect", gaussian(), student(net), from_teacher=False, **{"mean": 0.0, "std": 1.0, **args})


def cost(method, step: int = 0) -> float:
    (update,) = method.updates(batch(0, 512), Clock(step, 80))
    return values(update)["consistency"] / 512


def test_the_gap_is_all_of_the_level_at_first_and_halves_by_stage():
    method = ect()
    t = torch.tensor([0.5, 5.0])
    assert not method.lower(t, Clock(0, 80)).any()
    for stage in (4, 7):
        n = 1 + 8 / (1 + math.exp(0.5)), 1 + 8 / (1 + math.exp(5.0))
        expected = torch.tensor([v * (1 - k / 2**stage) for v, k in zip((0.5, 5.0), n, strict=True)])
        torch.testing.assert_close(method.lower(t, Clock(10 * stage, 80)), expected)
    assert ect(first_stage=7).stage(Clock(0, 80)) == 7


def test_the_first_stage_is_weighted_denoising():
    method = ect(c=0.1)
    ids = torch.arange(512)
    clock = Clock(0, 80)
    x0, _ = method.clean(batch(0, 512), clock, "data")
    t = torch.exp(clock.normal(ids, (1,), "level")).clamp(0.02, 10.0)
    error = (method.network(x0 + t * clock.normal(ids, (1,), "noise"), t[:, 0], None) - x0).squeeze(1)
    expected = (error**2 / torch.sqrt(error**2 + 0.01) / t[:, 0]).mean()
    assert cost(method) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_the_exact_map_costs_a_bias_that_falls_with_the_stages():
    early, late = (cost(ect(c=1.0), step) for step in (40, 79))
    assert late < early / 2


def test_descent_through_the_stages_comes_near_the_exact_map():
    net = BentFlow(1.4)
    descend(ect(net, spread=1.0), 120, lr=0.05)
    assert float(net.power.detach()) == pytest.approx(1.0, abs=0.1)


def test_a_network_with_a_floor_is_refused():
    with pytest.raises(UserError, match="floor"):
        ect(ExactFlow(floor=0.02))
