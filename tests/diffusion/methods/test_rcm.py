"""rCM: its tangent, its rollouts, when the two losses begin, and where each of them leads."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from limbeck.diffusion.flows import trig_tangent
from limbeck.diffusion.generators import CRITIC
from limbeck.diffusion.methods.rcm import rcm_tangent
from limbeck.engine.method import Clock
from limbeck.errors import UserError
from toolkit.diffusion import (
    CLOCK,
    MEAN,
    STD,
    Affine,
    ExactFlow,
    FakeScore,
    batch,
    descend,
    gaussian,
    made,
    student,
    values,
)
from toolkit.flows import BentFlow


def rcm(net=None, **args):
    net = ExactFlow() if net is None else net
    return made("rcm", gaussian(), student(net), from_teacher=False, **{"warmup": 0.0, "std": 1.0, **args})


def test_the_tangent_is_scms_at_the_end_of_the_warm_up_and_learns_the_velocity_before():
    g = torch.Generator().manual_seed(0)
    x, v, field, change = torch.randn(4, 8, 2, generator=g, dtype=torch.float64)
    t = torch.linspace(0.1, 1.5, 8, dtype=torch.float64)
    torch.testing.assert_close(
        rcm_tangent(x, t, v, field, change, 0.7, 1.0), trig_tangent(x, t, v, field, change, 0.7, 1.0)
    )
    cos = torch.cos(t)[:, None]
    torch.testing.assert_close(rcm_tangent(x, t, v, field, change, 0.7, 0.0), -cos * (0.7 * field - v))
    half = rcm_tangent(x, t, v, field, change, 0.7, 0.5)
    assert not torch.allclose(half, trig_tangent(x, t, v, field, change, 0.7, 0.5))


def test_the_exact_flow_has_no_tangent():
    def cost(net, **args):
        method = rcm(net, tangent_floor=1.0, distribution_weight=0.0, **args)
        return values(next(iter(method.updates(batch(0, 512), CLOCK))))["consistency"] / 512

    assert cost(ExactFlow()) < 1e-6
    assert cost(BentFlow(1.2)) > 1e-3


def test_rollouts_of_the_exact_flow_have_the_teachers_law():
    method = rcm(rollout=3)
    lengths, calls = set(), []
    network = method.network
    method.network = lambda *given: (calls.append(given[1]), network(*given))[1]
    for step in range(8):
        calls.clear()
        made_by = method.generate(batch(0, 8000), Clock(step, 10, seed=1), "generator")[0].detach()
        lengths.add(len(calls))
        assert all(bool((a > b).all()) for a, b in pairwise(calls))
        assert float(calls[0].min()) == pytest.approx(10.0, rel=1e-4)
        assert float(made_by.mean()) == pytest.approx(MEAN, abs=0.08)
        assert float(made_by.std()) == pytest.approx(STD, rel=0.04)
    assert lengths == {1, 2, 3}


def test_matching_begins_after_the_warm_up_and_has_a_critic():
    method = rcm(warmup=0.5)
    early, late = ([u.role for u in method.updates(batch(), Clock(k, 10))] for k in (1, 9))
    assert early == late == ["student", CRITIC]
    names = [values(next(iter(method.updates(batch(), Clock(k, 10))))).keys() for k in (1, 9)]
    assert names == [{"consistency"}, {"consistency", "distribution"}]
    assert CRITIC not in rcm(distribution_weight=0.0).learners
    with pytest.raises(UserError, match="critic_updates"):
        rcm(critic_updates=0)


@pytest.mark.parametrize("gain", [0.7, 1.0, 1.4])
def test_matching_pulls_towards_the_teachers_law(gain):
    net = ExactFlow(gain=gain)
    method = rcm(net, rollout=1, distribution_weight=1.0)
    share = gain * STD / (STD**2 + 100) ** 0.5
    method.learners[CRITIC] = FakeScore(Affine(10 * share, MEAN - share * MEAN))
    term = next(iter(method.updates(batch(0, 4000), CLOCK))).evaluate()["distribution"]
    (term.sum / term.count).backward()
    slope = float(net.gain.grad)
    assert slope == pytest.approx(0, abs=0.02) if gain == 1 else slope * (gain - 1) > 0.02


def test_descent_comes_to_the_exact_map():
    net = BentFlow(1.4)
    descend(rcm(net, mean=0.0, distribution_weight=0.0), 20, lr=0.15, rows=64)
    assert float(net.power.detach()) == pytest.approx(1.0, abs=0.03)
