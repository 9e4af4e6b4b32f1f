"""Distillation of guided models: two stages, the strength all along, rounds, and the sampler with noise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.diffusion import mixture, steps
from limbeck.diffusion.few_step import FewStep, few_levels
from limbeck.diffusion.guidance import Guided
from limbeck.diffusion.methods.guided_distill import stochastic_samples
from limbeck.engine.method import Clock
from toolkit.diffusion import MEAN, STD, batch, gaussian, made, values

LAW = mixture.ring(4, 2.0, 0.3, classes=2).float()
GRID = {"sigma_min": 0.02, "sigma_max": 10.0}


class Told(nn.Module):
    """The guided mixture as a network that is told the strength; ``off`` is added to it."""

    shape, classes, guided, sigma_data, floor = (2,), 2, True, 1.5, 0.0

    def __init__(self, off: float = 0.0) -> None:
        super().__init__()
        self.off = nn.Parameter(torch.tensor(off))

    def forward(self, x, sigma, label=None, *, scale=None):
        strength = torch.ones_like(sigma) if scale is None else scale
        return Guided(LAW, (strength + self.off)[:, None])(x, sigma, label)


def method(off: float = 0.0, nfe: int = 1, **args):
    generator = FewStep(Told(off), few_levels(nfe, **GRID), "ode", scale=3.0, **GRID)
    return made("guided_distill", LAW, generator, **{"first": 0.4, "rounds": 3, **args})


def test_stage_one_is_guidance_distillation_and_rounds_follow():
    ours = method(0.5)
    generator = FewStep(Told(0.5), few_levels(1, **GRID), "ode", **GRID)
    alone = made("guidance_distillation", LAW, generator)
    early = [values(next(iter(m.updates(batch(), Clock(3, 10))))) for m in (ours, alone)]
    assert early[0] == early[1]
    assert early[0]["guidance"] > 0
    assert [ours.round(Clock(k, 10)) for k in range(10)] == [-1] * 4 + [0, 0, 1, 1, 2, 2]
    assert [round(ours.pace(Clock(k, 10)), 6) for k in (0, 2, 4, 5, 6)] == [0.0, 0.5, 0.0, 0.5, 0.0]
    assert [len(ours.three(torch.linspace(0, 0.999, 99), Clock(k, 10))[0].unique()) for k in (4, 6, 8)] == [4, 2, 1]
    assert method(first=1.0).round(Clock(9, 10)) == -1


def test_the_network_becomes_the_teacher_before_each_round():
    ours = method()
    kept = []
    for k in range(10):
        with torch.no_grad():
            ours.learners["student"].net.off.fill_(float(k))
        ours.before_step(Clock(k, 10))
        ours.after_step(Clock(k, 10))
        kept.append(float(ours.slow.copy.net.off))
    assert kept == [0.0] * 4 + [4.0, 4.0, 6.0, 6.0, 8.0, 8.0]


def test_one_step_to_the_target_is_two_of_the_guided_teacher_at_the_same_strength():
    ours = method()
    g = torch.Generator().manual_seed(0)
    x, label = 2 * torch.randn(16, 2, generator=g), torch.arange(16) % 2
    now, middle, then = (torch.full((16,), v) for v in (2.0, 1.0, 0.4))
    scale = torch.linspace(1, 5, 16)
    guided = Guided(LAW, scale[:, None])
    half = x + (middle - now)[:, None] * (x - guided(x, now, label)) / now[:, None]
    end = half + (then - middle)[:, None] * (half - guided(half, middle, label)) / middle[:, None]
    target = ours.two_steps(x, now, middle, then, label, scale=scale)
    torch.testing.assert_close(steps.jump(x, target, now, then), end)
    assert not torch.allclose(ours.two_steps(x, now, middle, then, label), target)


def test_many_small_steps_cost_little_and_the_teacher_is_told_what_the_student_is():
    """DDIM's error of two steps for one falls with their width, so that it is the network's own strength that costs."""
    few, many = (values(next(iter(method(rounds=r).updates(batch(), Clock(4, 10)))))["halving"] for r in (3, 8))
    assert many < few / 10
    assert values(next(iter(method(rounds=8, told=False).updates(batch(), Clock(4, 10)))))["halving"] < few / 10


def test_the_sampler_with_noise_keeps_the_law():
    noise = torch.randn(4000, 160, 1, generator=torch.Generator().manual_seed(0))
    coarse, fine = (stochastic_samples(gaussian(), noise, few_levels(n, **GRID)) for n in (40, 160))
    assert float(fine.mean()) == pytest.approx(MEAN, abs=0.04)
    assert float(fine.std()) == pytest.approx(STD, rel=0.04)
    assert abs(float(coarse.std()) - STD) > 2 * abs(float(fine.std()) - STD)  # by first order of the step
    other, levels = noise.clone(), few_levels(160, **GRID)
    other[:, 1:159] += 1
    assert not torch.allclose(stochastic_samples(gaussian(), other, levels), fine, atol=0.01)
    once = stochastic_samples(gaussian(), noise[:, :1], [10.0])
    torch.testing.assert_close(once, gaussian()(10 * noise[:, 0], torch.full((4000,), 10.0)))
