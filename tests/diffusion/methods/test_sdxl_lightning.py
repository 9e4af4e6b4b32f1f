"""SDXL-Lightning: which judge is due, what each of them sees, and the steps that they compare."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.diffusion import steps
from limbeck.diffusion.gan import HEAD
from limbeck.diffusion.methods.sdxl_lightning import RELAXED
from limbeck.engine.method import Clock
from limbeck.errors import UserError
from toolkit.diffusion import batch, gaussian, made, student, values

LATE = Clock(step=35, total=40, seed=1)


class Line(nn.Module):
    """A denoiser that is the same line at every level."""

    shape = (1,)
    classes = None
    floor = 0.0
    sigma_data = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)

    def forward(self, x, sigma, label=None):
        return self.line(x)


def lightning(**args):
    torch.manual_seed(0)
    args = {"rounds": 2, "mse_rounds": 1, "width": 8, "depth": 1, **args}
    return made("sdxl_lightning", gaussian(), student(Line(), rule="ode"), from_teacher=False, **args)


def test_distance_first_then_the_whole_step_then_its_end_alone():
    method = lightning(rounds=4, mse_rounds=2, relaxed=0.4)
    due = [method.judge(Clock(k, 40)) for k in range(40)]
    assert due == [None] * 20 + ([HEAD] * 6 + [RELAXED] * 4) * 2
    kept = lightning(rounds=2, mse_rounds=1, relaxed=0.0)
    assert RELAXED not in {kept.judge(Clock(k, 40)) for k in range(40)}


def test_discriminators_begin_anew_with_each_round():
    method = lightning()
    again = [k for k in range(40) if method.before_step(Clock(k, 40))]
    assert again == [20]
    assert set(method.before_step(Clock(20, 40))) == {HEAD, RELAXED}
    assert not lightning(mse_rounds=2).before_step(Clock(20, 40))


def test_a_real_end_is_where_two_steps_of_the_rounds_teacher_arrive():
    method = lightning(mse_rounds=0)
    law = gaussian()
    for clock, denoise in ((Clock(3, 40), law), (LATE, method.slow.copy.net)):
        at = method.start(batch(), clock, "x")
        half = steps.jump(at.x, denoise(at.x, at.now), at.now, at.middle)
        end = steps.jump(half, denoise(half, at.middle), at.middle, at.then)
        torch.testing.assert_close(method.taught(at, clock), end.detach(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(method.arrived(at), steps.jump(at.x, method.student.net(at.x, 0), at.now, at.then))


def test_one_judge_sees_where_a_step_began_and_the_other_does_not():
    method = lightning()
    at = method.start(batch(), Clock(3, 40), "x")
    end = method.arrived(at).detach()
    moved = at._replace(x=at.x + 1)
    assert bool((method.logit(HEAD, end, moved) != method.logit(HEAD, end, at)).all())
    assert torch.equal(method.logit(RELAXED, end, moved), method.logit(RELAXED, end, at))
    assert bool((method.logit(RELAXED, end + 1, at) != method.logit(RELAXED, end, at)).all())


def test_fooling_has_the_gradient_of_its_value_and_leaves_the_judge_alone():
    method = lightning()
    first, second = method.updates(batch(0, 256), LATE)
    assert (first.role, second.role) == (RELAXED, "student")
    assert values(first).keys() == {"discriminator", "r1"}
    second.evaluate()["adversarial"].sum.backward()
    assert not [p for p in method.learners[RELAXED].parameters() if p.grad is not None]
    bias, ends = method.student.net.line.bias, []
    with torch.no_grad():
        for shift in (1e-2, -1e-2):
            bias += shift
            ends.append(values(second)["adversarial"])
            bias -= shift
    assert float(bias.grad) == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=0.02)


def test_rounds_by_distance_are_those_of_progressive_distillation():
    method = lightning()
    args = {"rounds": 2, "from_teacher": False}
    torch.manual_seed(0)
    plain = made("progressive_distillation", gaussian(), student(Line(), rule="ode"), **args)
    (own,), (theirs,) = (m.updates(batch(), Clock(3, 40)) for m in (method, plain))
    assert values(own) == values(theirs)


def test_more_rounds_by_distance_than_there_are_is_refused():
    with pytest.raises(UserError, match="mse_rounds"):
        lightning(mse_rounds=3)
