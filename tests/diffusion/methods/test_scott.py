"""SCott: which function fits at which strength of the noise, and the discriminator beside it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.diffusion import mixture
from limbeck.errors import UserError
from limbeck.registry import Block
from toolkit.diffusion import CLOCK, MEAN, STD, ExactFlow, batch, descend, gaussian, made, student, values

NO_HEAD = {"gan_weight": 0.0, "discriminator_weight": 0.0}


class Denoiser(nn.Module):
    """The denoiser of the Gaussian, its distance to the mean to a power: 1 is exact, 1/2 is the end of the flow."""

    shape, classes, floor, sigma_data = (1,), None, 0.02, STD

    def __init__(self, power: float = 1.0) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor(power))

    def forward(self, x, sigma, label=None):
        floor = STD**2 / (STD**2 + self.floor**2)
        share = (STD**2 / (STD**2 + sigma**2)) / floor
        return MEAN + share[:, None] ** self.power * (x - MEAN)


def scott(net=None, **args):
    net = ExactFlow(floor=0.02) if net is None else net
    return made("scott", gaussian(), student(net), from_teacher=False, **{**NO_HEAD, **args})


def cost(**args) -> float:
    update = next(iter(scott(**args).updates(batch(0, 512), CLOCK)))
    return values(update)["consistency"] / 512


def test_without_noise_the_exact_map_costs_nothing():
    assert cost(strength=0.0, solver_steps=64) < 1e-5
    assert cost(strength=0.0, solver_steps=1) > 10 * cost(strength=0.0, solver_steps=8)
    assert cost(strength=0.5) > 0.01


def test_with_all_the_noise_the_denoiser_is_a_martingale():
    ids = torch.arange(40_000)
    for strength, right in ((1.0, True), (0.0, False)):
        method = scott(Denoiser(), strength=strength, solver_steps=3)
        x = MEAN + 3 * CLOCK.normal(ids, (1,), "some")
        higher, lower = torch.full((40_000,), 1.0), torch.full((40_000,), 0.4)
        below = method.stochastic(x, higher, lower, None, {"id": ids}, CLOCK)
        change = method.lagging(below, lower, None) - method.lagging(x, higher, None)
        trend = float((change * (x - MEAN)).mean()) / 9
        assert (abs(trend) < 0.005) == right


@pytest.mark.parametrize(("strength", "power"), [(0.0, 0.5), (1.0, 1.0)])
def test_descent_comes_to_the_flow_or_to_the_denoiser(strength, power):
    net = Denoiser(0.75)
    descend(scott(net, strength=strength, solver_steps=2, levels=18), 60, lr=0.05, rows=128)
    assert float(net.power.detach()) == pytest.approx(power, abs=0.05)


def test_the_discriminator_learns_beside_and_pulls_at_the_student():
    net = Block("mlp_denoiser", {"width": 16, "depth": 1, "floor": 0.02})
    method = made("scott", mixture.ring(4, 2.0, 0.3).float(), student(net), gan_weight=0.1, discriminator_weight=1.0)
    first, second = method.updates(batch(), CLOCK)
    assert values(first).keys() == {"consistency", "adversarial"}
    assert second.roles == ("fake_score", "discriminator")
    assert values(second).keys() == {"denoising", "discriminator"}
    assert set(scott().learners) == {"student"}
    assert len(list(scott().updates(batch(), CLOCK))) == 1


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UserError, match="strength"):
        scott(strength=1.5)
    with pytest.raises(UserError, match="discriminator_weight"):
        scott(gan_weight=0.1)
    with pytest.raises(UserError, match="floor"):
        scott(ExactFlow())
