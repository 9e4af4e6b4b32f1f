"""TwinFlow: residuals of exact and of bent maps, the sorts of samples, and a law that its own twin corrects."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.engine.method import Clock
from limbeck.errors import UserError
from toolkit.diffusion import CLOCK, MEAN, STD, ExactFlow, batch, gaussian, made, student, values
from toolkit.flows import BentFlow


class Twins(nn.Module):
    """A map for positive levels, and for negative ones the exact denoiser of what the map makes of noise."""

    shape = (1,)
    classes = None
    sigma_data = STD
    floor = 0.0
    jumps = True
    twins = True

    def __init__(self, net: ExactFlow) -> None:
        super().__init__()
        self.net = net

    def forward(self, x, sigma, label=None, *, to=None):
        level = sigma.abs()
        ratio = STD / (STD**2 + 100) ** 0.5 * self.net.gain.detach()
        mean, variance = MEAN - ratio * MEAN, (10 * ratio) ** 2
        own = mean + (variance / (variance + level**2))[:, None] * (x - mean)
        return torch.where((sigma < 0)[:, None], own, self.net(x, level, to=to))


def twinflow(net=None, **args):
    net = ExactFlow() if net is None else net
    return made("twinflow", gaussian(), student(Twins(net), rule="map"), from_teacher=False, **args)


def residual(method, t, s):
    way = method.ways(torch.zeros(len(t), 3))._replace(t=t, s=s, twin=torch.zeros_like(t))
    z = torch.linspace(-1, 1.5, len(t), dtype=t.dtype)[:, None]
    answer = method.signed(z, t, s, None, way.twin).detach()
    return method.residual(answer, z, method.velocity(z, t, None), way, None), z, answer


def test_the_exact_map_leaves_no_residual_and_a_bent_one_that_of_mean_flows():
    """That is ``F + (t - s) dF/dt - v``, with the derivative along the flow."""
    t, s = torch.tensor([0.9, 0.7, 0.5, 0.4]), torch.tensor([0.0, 0.3, 0.1, 0.395])
    left, _, _ = residual(twinflow(shift=0.002), t, s)
    assert float(left.abs().max()) < 0.02
    method = twinflow(BentFlow(0.8).double(), shift=1e-4)
    t, s = t.double(), s.double()
    found, z, answer = residual(method, t, s)
    h, velocity, none = 1e-6, method.velocity(z, t, None), torch.zeros_like(t)
    ahead, behind = (method.signed(z + d * velocity, t + d, s, None, none) for d in (h, -h))
    expected = answer + (t - s)[:, None] * (ahead - behind) / (2 * h) - velocity
    torch.testing.assert_close(found, expected.detach(), rtol=0.02, atol=0.01)


def test_a_quarter_is_of_each_sort():
    method = twinflow()
    way = method.ways(torch.rand(8000, 3, generator=torch.Generator().manual_seed(0)))
    whole, twin = (way.t == method.top) & (way.s == 0), way.twin > 0
    short = ~twin & (way.s >= 0.95 * way.t)
    for sort in (whole, twin, short):
        assert float(sort.float().mean()) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(way.t[twin], way.s[twin])
    assert bool((way.s <= way.t).all())


@pytest.mark.parametrize("gain", [0.5, 1.6])
def test_the_twins_difference_is_the_direction_of_distribution_matching(gain):
    method = twinflow(ExactFlow())
    method.student.net.net.gain.data.fill_(gain)
    z = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
    samples = method.student(z).detach()
    apart = method.between_twins(samples, None, batch(), CLOCK)
    u = CLOCK.uniform(torch.arange(64), (1,), "twin time").squeeze(1)
    t = method.within_range(u * method.top)
    noisy = (1 - t)[:, None] * samples + t[:, None] * CLOCK.normal(torch.arange(64), (1,), "twin noise")
    x, sigma = noisy / (1 - t)[:, None], t / (1 - t)
    net = method.student.net
    fake, real = net(x, -sigma).detach(), net(x, sigma, to=sigma).detach()
    torch.testing.assert_close(apart, (real - fake) / t[:, None], rtol=1e-3, atol=1e-3)


def test_rectification_alone_brings_the_spread_back():
    """The velocity at positive times stays the exact one: what to learn is how far the map goes."""
    net = ExactFlow(gain=0.5)
    method = twinflow(net)
    optimizer = torch.optim.Adam([net.gain], 0.05, betas=(0.5, 0.9))
    for k in range(50):
        (update,) = method.updates(batch(0, 256), Clock(k, 50))
        optimizer.zero_grad()
        update.evaluate()["rectification"].sum.backward()
        optimizer.step()
    assert float(net.gain.detach()) == pytest.approx(1.0, abs=0.08)


def test_the_bound_is_of_the_residual_and_the_slope_is_one():
    method = twinflow(bound=1.0)
    answer = torch.zeros(3, 1, requires_grad=True)
    pulled = method.pulled(answer, torch.tensor([[0.1], [-5.0], [0.0]]))
    torch.testing.assert_close(pulled.detach(), torch.tensor([0.1, STD, 0.0]), rtol=1e-3, atol=1e-6)
    (slope,) = torch.autograd.grad(pulled.sum(), answer)
    torch.testing.assert_close(slope, torch.tensor([[2.0], [-2.0], [0.0]]), rtol=1e-3, atol=1e-6)


def test_terms_and_refusals():
    (update,) = twinflow().updates(batch(), CLOCK)
    assert values(update).keys() == {"flow", "rectification"}
    (update,) = twinflow(rectification=0.0).updates(batch(), CLOCK)
    assert values(update).keys() == {"flow"}
    with pytest.raises(UserError, match="twin_denoiser"):
        made("twinflow", gaussian(), student(ExactFlow(), rule="map"), from_teacher=False)
