"""Inductive moment matching: what the exact map costs, the levels of groups, the weight, and a law that is learnt."""

from __future__ import annotations

import pytest
import torch

from limbeck.engine.method import Clock
from limbeck.errors import UserError
from toolkit.diffusion import CLOCK, MEAN, STD, ExactFlow, batch, gaussian, made, student, values
from toolkit.flows import BentFlow


class Plain(ExactFlow):
    """A network of one level."""

    jumps = False


def imm(net=None, **args):
    net = ExactFlow() if net is None else net
    return made("imm", gaussian(), student(net, rule="map"), from_teacher=False, **args)


def cost(method, count: int = 2048) -> float:
    (update,) = method.updates(batch(0, count), CLOCK)
    return values(update)["moments"] / count


def test_the_exact_map_costs_less_than_a_bent_one_and_nothing_from_the_teachers_points():
    assert cost(imm(points="teacher", halvings=9)) < 1e-4 < cost(imm(BentFlow(0.5), points="teacher", halvings=9))
    exact, bent = (cost(imm(net, particles=256, halvings=1)) for net in (None, BentFlow(0.4)))
    assert 0 < exact < bent / 2


def test_a_larger_group_costs_the_exact_map_less():
    """A single particle sees the noise of the data's own point, a law does not."""
    alone, many = cost(imm(particles=1)), cost(imm(particles=256))
    assert many < alone / 2


def test_a_group_shares_levels_that_fall_within_the_range():
    method = imm(particles=4, halvings=2)
    seen = []
    drawn = method.drawn
    method.drawn = lambda uniform: seen.append(drawn(uniform)) or seen[-1]
    next(iter(method.updates(batch(5, 69), CLOCK))).evaluate()
    (at,) = seen
    for level in at:
        assert torch.equal(level.view(-1, 4), level.view(-1, 4)[:, :1].expand(-1, 4))
    assert len(at.t.unique()) == 16
    assert bool((at.t > at.r).all() and (at.r >= at.s).all())
    gap = (10.0 - 0.02) / 4
    torch.testing.assert_close(at.r, torch.maximum(at.t - gap, at.s))
    assert float(method.drawn(torch.tensor([[0.99999, 0.0]])).t) == pytest.approx(10.0, rel=1e-2)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_the_weight_is_that_of_the_straight_path(power):
    method = imm(power=power, offset=2.0)
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64, requires_grad=True)
    log_snr = torch.log((1 - t) ** 2 / t**2)
    (slope,) = torch.autograd.grad(log_snr.sum(), t)
    t = t.detach()
    expected = torch.sigmoid(2.0 - log_snr.detach()) * -slope / 2 * (1 - t) ** power / ((1 - t) ** 2 + t**2)
    torch.testing.assert_close(method.weight(t / (1 - t)), expected)


def test_the_kernels_scale_undoes_what_the_network_is_multiplied_by():
    method = imm()
    at = method.drawn(torch.tensor([[0.5, 0.3]]))
    unit = at.t * STD / torch.sqrt(at.t**2 + STD**2)
    torch.testing.assert_close(method.scale(at), 1 / (unit * (1 - at.s / at.t)))


def test_a_bent_map_straightens():
    net = BentFlow(0.4)
    method = imm(net, particles=32, halvings=4)
    optimizer = torch.optim.Adam(net.parameters(), 0.03, betas=(0.5, 0.9))
    for k in range(120):
        (update,) = method.updates(batch(0, 256), Clock(k, 120))
        optimizer.zero_grad()
        sum(t.sum / t.count for t in update.evaluate().values()).backward()
        optimizer.step()
    assert float(net.power.detach()) == pytest.approx(1.0, abs=0.1)
    end = method.student(torch.randn(4000, 1, generator=torch.Generator().manual_seed(0))).detach()
    assert float(end.std()) == pytest.approx(STD, rel=0.25)
    assert float(end.mean()) == pytest.approx(MEAN, abs=0.1)


def test_a_network_of_one_level_is_refused():
    with pytest.raises(UserError, match="jumps: true"):
        made("imm", gaussian(), student(Plain(), rule="renoise"))
