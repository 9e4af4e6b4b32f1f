"""Rectified flow: points of straight lines, the straight flow of one Gaussian, and the distilled step."""

from __future__ import annotations

import pytest
import torch

from limbeck.engine.method import Clock
from limbeck.errors import UserError
from limbeck.registry import Block, build
from toolkit.diffusion import MEAN, STD, ExactFlow, batch, descend, gaussian, made, student, values
from toolkit.flows import BentFlow

START, END = Clock(0, 10), Clock(9, 10)


def rectified(net=None, **args):
    net = ExactFlow() if net is None else net
    given = {"pairs": 256, "pair_steps": 24, **args}
    return made("rectified_flow", gaussian(), student(net, rule="ode"), from_teacher=False, **given)


def costs(method, clock) -> dict[str, float]:
    (update,) = method.updates(batch(0, 512), clock)
    return {k: v / 512 for k, v in values(update).items()}


def test_points_are_on_the_line_from_the_sample_to_where_the_sampler_starts():
    x0, eps = torch.randn(2, 6, 1, generator=torch.Generator().manual_seed(0)).double()
    method = rectified()
    x, sigma, t = method.on_pair(x0, eps, torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(x, 10 * eps)
    torch.testing.assert_close(sigma, torch.full_like(sigma, 10.0))
    end = x * (1 - t)[:, None]
    x, sigma, t = method.on_pair(x0, eps, torch.full((6,), 0.3, dtype=torch.float64))
    z = x * (1 - t)[:, None]
    torch.testing.assert_close(sigma, t / (1 - t))
    torch.testing.assert_close(z + (10 / 11 - t)[:, None] * (z - x0) / t[:, None], end)  # straight on by its velocity


def test_the_couplings_of_one_gaussian_are_monotone_or_independent():
    eps, _, x0 = rectified().couple(batch(0, 512), START)
    torch.testing.assert_close(x0, MEAN + STD * eps, atol=0.06, rtol=0.05)
    eps, _, x0 = rectified(coupling="independent").couple(batch(0, 512), START)
    assert abs(float(torch.corrcoef(torch.stack([eps[:, 0], x0[:, 0]]))[0, 1])) < 0.15


def test_the_last_share_of_the_training_distils_a_single_step():
    method = rectified(distil=0.3)
    assert costs(method, Clock(6, 10)).keys() == {"velocity"}
    assert costs(method, Clock(7, 10)).keys() == {"distillation"}
    exact, wrong = (costs(rectified(net), END)["distillation"] for net in (ExactFlow(), BentFlow(0.8)))
    assert exact < 2e-3 < wrong
    assert costs(rectified(BentFlow(0.8), huber=0.1), END)["distillation"] != pytest.approx(wrong, rel=0.1)


@pytest.mark.parametrize("distil", [-0.1, 1.35])
def test_more_than_the_whole_training_cannot_distil(distil):
    with pytest.raises(UserError, match="from 0 to 1"):
        build("method", Block("rectified_flow", {"distil": distil}))


def test_descent_on_the_single_step_comes_to_the_exact_map():
    net = BentFlow(1.4)
    descend(rectified(net, distil=1.0), 60, lr=0.05)
    assert float(net.power.detach()) == pytest.approx(1.0, abs=0.03)


def test_the_velocity_of_independent_pairs_has_a_variance_that_reflow_does_not():
    """On the pairs of one Gaussian the sample is a function of the point, by a line at every level."""
    method = rectified(distil=0.0)
    eps, _, x0 = method.couple(batch(0, 512), START)
    x, _, _ = method.on_pair(x0, eps, torch.full((512,), 0.5))
    other = rectified(distil=0.0, coupling="independent")
    eps, _, y0 = other.couple(batch(0, 512), START)
    y, _, _ = other.on_pair(y0, eps, torch.full((512,), 0.5))
    left = [1 - float(torch.corrcoef(torch.stack([a[:, 0], b[:, 0]]))[0, 1]) ** 2 for a, b in ((x, x0), (y, y0))]
    assert left[0] < 1e-4
    assert left[1] > 0.5
