"""FreeFlow: what the exact map costs, the derivative in one argument, and a law that the correction brings back."""

from __future__ import annotations

import pytest
import torch

from limbeck.errors import UserError
from toolkit.diffusion import CLOCK, MEAN, STD, ExactFlow, FakeScore, batch, descend, gaussian, made, student, values
from toolkit.flows import BentFlow


def free(net=None, nfe=1, **args):
    net = ExactFlow() if net is None else net
    return made("freeflow", gaussian(), student(net, rule="map", nfe=nfe), from_teacher=False, **args)


def way(method, count: int = 256) -> float:
    return float(method.on_the_way(batch(0, count), CLOCK).detach().mean())


def test_the_exact_map_costs_nothing_and_a_bent_one_does():
    assert way(free(correction=0.0)) < 1e-6
    assert way(free(BentFlow(0.7), correction=0.0)) > 1e-2


def test_the_target_holds_the_derivative_along_the_length():
    """Against a central difference, in float64, of the mean velocity from its definition."""
    method = free(BentFlow(0.7).double(), correction=0.0)
    first = torch.full((5,), 10 / 11, dtype=torch.float64)
    end = torch.linspace(0.1, 0.8, 5, dtype=torch.float64)
    z = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]

    def velocity(end):
        start, to = first / (1 - first), end / (1 - end)
        x = z / (1 - first)[:, None]
        ratio = torch.sqrt((STD**2 + to**2) / (STD**2 + start**2))[:, None] ** 0.7
        reached = (MEAN + ratio * (x - MEAN)) * (1 - end)[:, None]
        return (z - reached) / (first - end)[:, None], reached

    mean, reached = velocity(end)
    torch.testing.assert_close(method.mean_velocity(z, first, end, None).detach(), mean)
    change = (velocity(end - 1e-6)[0] - velocity(end + 1e-6)[0]) / 2e-6
    level = end / (1 - end)
    scaled = reached / (1 - end)[:, None]
    denoised = MEAN + (STD**2 / (STD**2 + level**2))[:, None] * (scaled - MEAN)
    expected = (reached - denoised) / end[:, None] - (first - end)[:, None] * change
    torch.testing.assert_close(method.target(z, first, end, None), expected, rtol=1e-5, atol=1e-6)


def test_prediction_straightens_a_bent_map():
    net = BentFlow(0.6)
    descend(free(net, correction=0.0), 40, lr=0.06, rows=128)
    assert float(net.power.detach()) == pytest.approx(1.0, abs=0.03)


class OwnLaw(FakeScore):
    """The exact score of a map that scales the prior: its law is normal."""

    def __init__(self, net: ExactFlow) -> None:
        torch.nn.Module.__init__(self)
        self.net = (net,)

    def forward(self, x, sigma):
        ratio = STD / (STD**2 + 100) ** 0.5 * self.net[0].gain.detach()
        mean, variance = MEAN - ratio * MEAN, (10 * ratio) ** 2
        return mean + variance / (variance + sigma[:, None] ** 2) * (x - mean)


def test_the_correction_alone_brings_the_spread_back():
    net = ExactFlow(gain=0.5)
    method = free(net, prediction=0.0)
    method.learners["fake_score"] = OwnLaw(net)
    descend(method, 60, lr=0.06)
    assert float(net.gain.detach()) == pytest.approx(1.0, abs=0.05)


def test_without_a_correction_there_is_no_second_network():
    assert "fake_score" not in free(correction=0.0).learners
    both = free()
    assert values(next(both.updates(batch(), CLOCK))).keys() == {"prediction", "correction"}


def test_what_is_no_map_from_the_start_is_refused():
    with pytest.raises(UserError, match="nfe: 1"):
        free(nfe=2)
    with pytest.raises(UserError, match="both 0"):
        free(prediction=0.0, correction=0.0)
    with pytest.raises(UserError, match="critic_updates"):
        free(critic_updates=0)
