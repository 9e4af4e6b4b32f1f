"""SlimFlow: the coupling on its way, when the copy is taken, and targets of the flow that nothing is wrong with."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.diffusion.methods.slimflow import fresh_share
from limbeck.engine.method import Clock
from toolkit.diffusion import MEAN, STD, batch, gaussian, made, student, values

TOP = 10.0
LOW, END = 0.02 / 1.02, TOP / (1 + TOP)
SLOPE = TOP * STD / (STD**2 + TOP**2) ** 0.5
FOOT = MEAN - SLOPE / TOP * MEAN


class Straight(nn.Module):
    """The flow along the lines of one Gaussian's pairs ``x0 = FOOT + SLOPE eps``; its samples are stretched by
    ``gain`` (1 is exact)."""

    shape, classes, sigma_data, floor = (1,), None, STD, 0.0

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, x, sigma, label=None):
        t = (sigma / (1 + sigma))[:, None]
        left = 1 - t / END
        eps = (x * (1 - t) - left * FOOT) / (left * SLOPE + t)
        return FOOT + self.gain * SLOPE * eps


def slim(net=None, **args):
    given = {"pairs": 256, "pair_steps": 24, **args}
    return made("slimflow", gaussian(), student(net or Straight(), rule="ode"), from_teacher=False, **given)


@pytest.mark.parametrize("shape", ["exponential", "cosine", "linear"])
def test_fresh_noise_goes_from_all_to_none(shape):
    shares = [fresh_share(k / 20, 0.5, shape) for k in range(21)]
    assert shares[0] == 1
    assert shares == sorted(shares, reverse=True)
    assert shares[9] > 0
    assert set(shares[10:]) == {0.0}
    assert fresh_share(0.0, 0.0, shape) == 0
    middle = {"exponential": 1000**-0.5, "cosine": 0.5**0.5, "linear": 0.5}[shape]
    assert fresh_share(0.25, 0.5, shape) == pytest.approx(middle)


def test_the_noise_of_a_pair_keeps_its_law_and_loses_its_sample():
    method = slim(pairs=2000, annealing="linear", anneal=1.0, distil=0.5)
    ids = batch(0, 2000)
    for step, beta in ((0, 1.0), (2, 0.6), (5, 0.0), (9, 0.0)):
        eps, _, x0 = method.couple(ids, Clock(step, 10))
        assert float(eps.std()) == pytest.approx(1, abs=0.06)
        correlation = float(torch.corrcoef(torch.stack([eps[:, 0], x0[:, 0]]))[0, 1])
        assert correlation == pytest.approx((1 - beta**2) ** 0.5, abs=0.06)


def test_the_copy_takes_the_flow_once_between_the_two_parts():
    method = slim(distil=0.5)
    net = method.learners["student"].net
    kept = []
    for step in range(10):
        with torch.no_grad():
            net.gain.fill_(float(step))
        method.before_step(Clock(step, 10))
        method.after_step(Clock(step, 10))
        kept.append(float(method.slow.copy.net.gain))
    assert kept == [1.0] * 5 + [5.0] * 5


def test_a_straight_flow_costs_nothing_and_pulls_a_wrong_step_towards_it():
    method, late = slim(distil=0.5), Clock(9, 10)
    (update,) = method.updates(batch(0, 256), late)
    assert values(update)["flow"] < 1e-6 * 256
    eps = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
    exact, wrong = FOOT + SLOPE * eps, FOOT + 1.5 * SLOPE * eps
    far = []
    for u in (0.2, 0.8):
        target = method.flow_target(eps, None, wrong, torch.full((64,), u))
        # Of the sample's error only what the line at that share still shows is left.
        share = u + (1 - u) * LOW / END
        left = (1 - share) * SLOPE / ((1 - share) * SLOPE + END * share)
        torch.testing.assert_close(target - exact, left * (wrong - exact), rtol=1e-4, atol=1e-5)
        far.append(float((target - exact).abs().mean()))
    assert far[1] < far[0]


def test_only_the_last_part_has_a_term_of_the_flow_and_no_gradient_passes_by_its_target():
    method = slim(Straight(1.3), distil=0.5)
    method.slow.copy.net.gain.data.fill_(1.0)
    assert values(next(iter(method.updates(batch(), Clock(4, 10))))).keys() == {"velocity"}
    (update,) = method.updates(batch(), Clock(5, 10))
    term = update.evaluate()["flow"]
    (gradient,) = torch.autograd.grad(term.sum, method.learners["student"].net.gain)
    ids, clock = batch()["id"], Clock(5, 10)
    eps = clock.normal(ids, (1,), "flow start")
    u = 0.2 + 0.6 * clock.uniform(ids, (1,), "flow time").squeeze(1)
    at = FOOT + 1.3 * SLOPE * eps
    by_hand = 2 * (at - method.flow_target(eps, None, at, u)) * SLOPE * eps
    assert float(gradient) == pytest.approx(float(by_hand.sum()), rel=1e-3)
    assert values(next(iter(slim(flow_weight=0.0).updates(batch(), clock)))).keys() == {"distillation"}
