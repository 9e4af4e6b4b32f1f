"""Hyper-SD: segments of every stage, what exact jumps cost, and the finish with its feedback."""

from __future__ import annotations

import pytest
import torch

from limbeck.diffusion import mixture
from limbeck.engine.method import Clock
from limbeck.errors import UserError
from limbeck.registry import Block
from toolkit.diffusion import CLOCK, ExactFlow, batch, descend, gaussian, made, student, values
from toolkit.flows import BentFlow

LAW = mixture.ring(4, 2.0, 0.3, classes=2).float()


def hyper(net=None, **args):
    net = ExactFlow() if net is None else net
    return made("hyper_sd", gaussian(), student(net, rule="map"), from_teacher=False, **args)


def cost(clock=CLOCK, **args) -> float:
    update = next(iter(hyper(**args).updates(batch(0, 512), clock)))
    return values(update)["consistency"] / 512


@pytest.mark.parametrize("step", [0, 9])
def test_exact_jumps_cost_nothing_but_the_solvers_error(step):
    clock = Clock(step, 10)
    assert cost(clock, solver_steps=4) < 1e-5
    assert cost(clock, net=BentFlow(1.3), solver_steps=4) > 1e-4
    assert cost(clock, skip=4) > 3 * cost(clock)


def test_each_stage_has_its_segments_and_the_lowest_ends_at_zero():
    method = made("hyper_sd", gaussian(), student(ExactFlow(), rule="ode", nfe=2), segments=(4, 2), levels=8)
    u = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    for stage, count in ((0, 4), (1, 2)):
        now, then, end = method.pair_levels(u, stage)
        assert bool((now > then).all())
        assert bool((then >= end).all())
        edges = method.levels(torch.arange(count) / count)
        torch.testing.assert_close(end.unique(), torch.cat([torch.zeros(1), edges[1:]]))
    assert sorted(end.unique().tolist()) == pytest.approx([0.0, method.student.levels[1]], rel=1e-4)


def test_stages_and_the_finish_anneal_anew():
    method = hyper(segments=(2, 1), finish=0.5)
    assert [method.stage(Clock(k, 8))[0] for k in range(8)] == [0, 0, 1, 1, 2, 2, 2, 2]
    assert [method.pace(Clock(k, 8)) for k in range(8)] == [0, 0.5, 0, 0.5, 0, 0.25, 0.5, 0.75]
    roles = [[u.role for u in method.updates(batch(), Clock(k, 8))] for k in (0, 2, 4)]
    assert roles == [["student"], ["student", "fake_score"], ["student", "fake_score"]]
    assert "fake_score" not in hyper().learners


def test_feedback_is_the_gradient_of_the_probability_of_the_class():
    net = Block("mlp_denoiser", {"width": 8, "classes": 2})
    method = made("hyper_sd", LAW, student(net), finish=0.5, feedback=0.3)
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    sigma, label = torch.linspace(0.5, 3, 16), torch.arange(16) % 2
    chance = LAW.log_prob(x, sigma=sigma, label=label) - LAW.log_prob(x, sigma=sigma)
    (gradient,) = torch.autograd.grad(chance.sum(), x)
    found = method.disliked(x.detach(), sigma, label)
    torch.testing.assert_close(found, -(sigma[:, None] ** 2) * gradient, rtol=1e-3, atol=1e-4)
    update = next(iter(method.updates(batch(), Clock(9, 10))))
    assert values(update).keys() == {"distribution", "feedback"}


def test_descent_comes_to_the_exact_jumps():
    net = BentFlow(1.4)
    descend(hyper(net, segments=(4, 1), levels=16), 25, lr=0.1, rows=64)
    assert float(net.power.detach()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    ("args", "says"),
    [({"segments": (2, 4)}, "falling"), ({"levels": 20}, "divide"), ({"finish": 0.5, "critic_updates": 0}, "finish")],
)
def test_stages_that_cannot_be_are_refused(args, says):
    with pytest.raises(UserError, match=says):
        hyper(**args)


def test_a_student_of_other_steps_is_refused():
    with pytest.raises(UserError, match="nfe: 1"):
        made("hyper_sd", gaussian(), student(ExactFlow(), rule="ode", nfe=2))
