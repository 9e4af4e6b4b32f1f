"""Progressive distillation: two steps into one, rounds of a training, and a student that comes to the closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.diffusion import steps
from limbeck.engine.method import Clock
from limbeck.errors import UserError
from toolkit.diffusion import CLOCK, ExactFlow, batch, descend, gaussian, made, student, values


def halving(net=None, nfe=1, **args):
    net = Linear() if net is None else net
    return made("progressive_distillation", gaussian(), student(net, rule="ode", nfe=nfe), from_teacher=False, **args)


class Linear(nn.Module):
    """A denoiser that is the same line at every level."""

    shape = (1,)
    classes = None
    floor = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)

    def forward(self, x, sigma, label=None):
        return self.line(x)


def test_one_step_to_the_target_is_two_of_the_teacher():
    method, law = halving(rounds=3), gaussian()
    x = torch.randn(16, 1, generator=torch.Generator().manual_seed(0))
    now, middle, then = (torch.full((16,), v) for v in (2.0, 1.0, 0.4))
    half = x + (middle - now)[:, None] * (x - law(x, now)) / now[:, None]
    end = half + (then - middle)[:, None] * (half - law(half, middle)) / middle[:, None]
    target = method.target(x, now, middle, then, None, first=True)
    torch.testing.assert_close(steps.jump(x, target, now, then), end)
    later = method.target(x, now, middle, then, None, first=False)
    assert not torch.allclose(later, target)  # by the copy of the student


def test_each_round_has_half_the_steps_and_ends_at_zero():
    method = halving(rounds=3, nfe=2)
    u = torch.linspace(0, 0.999, 200)
    for k, count in ((0, 8), (3, 4), (6, 2)):
        now, middle, then = method.three(u, Clock(k, 9))
        assert len(now.unique()) == count
        assert float(now.max()) == pytest.approx(10.0, rel=1e-4)
        assert bool((now > middle).all() and (middle > then).all())
        assert not float(then.min())
    torch.testing.assert_close(
        now.unique().flip(0), torch.tensor(method.learners["student"].levels), rtol=1e-4, atol=1e-5
    )


def test_the_student_becomes_the_teacher_between_rounds_alone():
    method = halving(rounds=2)
    before = method.slow.copy.net.line.weight.clone()
    with torch.no_grad():
        method.learners["student"].net.line.weight.add_(1.0)
    for k in (0, 1, 4):
        method.before_step(Clock(k, 10))
        method.after_step(Clock(k, 10))
        assert torch.equal(method.slow.copy.net.line.weight, before)
    method.before_step(Clock(5, 10))
    torch.testing.assert_close(method.slow.copy.net.line.weight, before + 1)
    method.before_step(Clock(6, 10))
    assert [round(method.pace(Clock(k, 10)), 6) for k in (0, 4, 5, 9)] == [0.0, 0.8, 0.0, 0.8]


def test_the_weight_is_of_the_signal_to_noise_ratio():
    sigma = torch.tensor([0.5, 2.0])
    torch.testing.assert_close(halving().weight(sigma), torch.tensor([4.0, 1.0]))
    torch.testing.assert_close(halving(weighting="snr_plus_one").weight(sigma), torch.tensor([5.0, 1.25]))


def test_a_student_of_one_step_comes_to_two_steps_of_the_teacher():
    torch.manual_seed(0)
    method = halving(rounds=1)
    descend(method, 200, lr=0.1)
    law, z = gaussian(), torch.linspace(-2, 2, 5)[:, None]
    top, half = torch.full((5,), 10.0), method.levels(torch.full((5,), 0.5))
    between = steps.jump(10 * z, law(10 * z, top), top, half)
    torch.testing.assert_close(method.student(z).detach(), law(between, half), rtol=0.02, atol=0.02)


def test_a_sampler_with_fresh_noise_is_refused():
    with pytest.raises(UserError, match="rule: ode"):
        made("progressive_distillation", gaussian(), student(ExactFlow(), rule="renoise", nfe=2))


def test_a_step_evaluates():
    (update,) = halving(ExactFlow()).updates(batch(), CLOCK)
    assert values(update)["halving"] > 0
