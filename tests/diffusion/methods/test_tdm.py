"""TDM: the states of a step, what the critic learns at them, and where a step is driven."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from limbeck.diffusion import mixture, onwards
from limbeck.diffusion.losses import matching_direction
from limbeck.diffusion.steps import jump, target_of
from limbeck.engine.method import Clock
from limbeck.errors import UserError
from toolkit.diffusion import CLOCK, MEAN, STD, batch, descend, gaussian, made, student, values


class Scaled(nn.Module):
    """Steps of the exact flow of one Gaussian, to the next of the generator's levels; ``gain`` 1 is exact."""

    shape = (1,)
    sigma_data = STD
    classes = None

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.levels: tuple[float, ...] = ()

    def forward(self, x, sigma, label=None):
        k = self.levels.index(float(sigma[0]))
        then = torch.full_like(sigma, self.levels[k + 1])
        ratio = torch.sqrt((STD**2 + then**2) / (STD**2 + sigma**2))[:, None]
        return target_of(x, MEAN + self.gain * ratio * (x - MEAN), sigma, then)


class FirstPoint(nn.Module):
    """The score of what the first step of :class:`Scaled` reaches, noised on, as a denoiser."""

    def __init__(self, net: Scaled) -> None:
        super().__init__()
        self.net = (net,)

    def forward(self, x, sigma):
        net = self.net[0]
        now, then = net.levels[:2]
        std = net.gain.detach() * ((STD**2 + then**2) / (STD**2 + now**2)) ** 0.5 * now
        offset = MEAN * (1 - std / now)
        return x - (sigma**2 / (std**2 + sigma**2 - then**2))[:, None] * (x - offset)


def two_steps(monkeypatch, gain: float = 0.7, **args):
    net = Scaled(gain)
    generator = student(net, nfe=2, rule="ode")
    net.levels = (*(float(torch.tensor(v)) for v in generator.levels), 0.0)
    monkeypatch.setattr(
        "limbeck.diffusion.generators.GeneratorMethod.build_critic", lambda self, parts: FirstPoint(net)
    )
    return made("tdm", gaussian(), generator, from_teacher=False, **args), net


def test_a_step_is_driven_to_the_exact_flow_by_the_law_of_the_point_it_reaches(monkeypatch):
    # In one dimension the samples' normaliser comes near zero: heavy tails, for which Adam takes long.
    monkeypatch.setattr(
        "limbeck.diffusion.methods.tdm.matching_direction", partial(matching_direction, normalise=False)
    )
    method, net = two_steps(monkeypatch)
    method.stop = lambda clock, name: 1
    descend(method, 80, lr=0.02)
    assert float(net.gain.detach()) == pytest.approx(1.0, abs=0.03)


def test_the_point_is_where_the_step_goes(monkeypatch):
    method, net = two_steps(monkeypatch)
    for stop in (1, 2):
        method.stop = lambda clock, name, stop=stop: stop
        reached = method.reach(batch(), CLOCK, "x")
        x = clock_start = CLOCK.normal(batch()["id"], (1,), "x start") * net.levels[0]
        for k in range(stop):
            now, then = (torch.full((64,), v) for v in net.levels[k : k + 2])
            heads_for = net(x, now)
            x = jump(x, heads_for, now, then)
        torch.testing.assert_close(reached.samples, heads_for)
        torch.testing.assert_close(reached.point, x, atol=1e-5, rtol=1e-4)
        assert not torch.equal(x, clock_start)
        at, eps = method.onwards(reached, batch(), CLOCK, "x", low=0.02, high=0.98)
        assert bool((at.sigma > reached.mid).all())
        added = at.x - reached.point
        torch.testing.assert_close(added, torch.sqrt(at.sigma**2 - reached.mid**2)[:, None] * eps)


def test_the_target_of_the_score_has_the_score_as_its_mean_and_the_estimate_has_not():
    """Points N(0, s^2) that are half of what their estimate is: the best linear fit to the target in closed form."""
    torch.manual_seed(0)
    s, mid, sigma, count = 1.2, 0.6, 1.5, 400_000
    point, eps = torch.randn(2, count, 1, dtype=torch.float64) * torch.tensor([s, 1.0])[:, None, None]
    level, middle = (torch.full((count,), v, dtype=torch.float64) for v in (sigma, mid))
    fresh = onwards.fresh_level(level, middle)
    x = point + fresh[:, None] * eps
    target = onwards.score_target(x, eps, level, fresh)
    slope = float((x * target).mean() / (x * x).mean())
    variance = s**2 + sigma**2 - mid**2
    assert slope == pytest.approx(1 - sigma**2 / variance, abs=0.01)
    estimate = float((x * point / 2).mean() / (x * x).mean())
    assert abs(estimate - (1 - sigma**2 / variance)) > 0.1


def test_noise_that_is_all_fresh_has_no_weight_and_small_noise_more():
    eps = torch.ones(3, 4)
    sigma, mid = torch.ones(3), torch.tensor([0.0, 0.6, 0.6])
    kept = torch.stack([torch.zeros(4), torch.zeros(4), torch.full((4,), 3.0)])
    weight = onwards.importance(kept, eps, sigma, mid)
    assert weight.tolist() == pytest.approx([1.0, 1.1972, 0.1], abs=1e-3)  # exp((1 - 0.64) / 2), and the bound


def test_its_arguments_change_what_they_should():
    def losses(**args):
        torch.manual_seed(0)
        method = made("tdm", mixture.ring(4, 2.0, 0.3).float(), student(nfe=3, rule="ode"), **args)
        return [values(u) for k in range(3) for u in method.updates(batch(), Clock(k, 10))]

    base = losses()
    for args in ({"critic_target": "score"}, {"importance": False}):
        other = losses(**args)
        assert base[::2] == other[::2]
        assert base[1::2] != other[1::2]
    assert losses(middle="random")[::2] != base[::2]


def test_a_generator_that_draws_noise_between_its_steps_is_refused():
    with pytest.raises(UserError, match="rule: ode"):
        made("tdm", mixture.ring(4, 2.0, 0.3).float(), student(nfe=2, rule="renoise"))
