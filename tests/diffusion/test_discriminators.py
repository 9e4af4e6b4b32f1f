"""Discriminators with networks of their own, and their losses."""

from __future__ import annotations

import pytest
import torch

from limbeck.diffusion.discriminators import Discriminator, Heads, gradient_penalty, hinge_fake, hinge_real


def test_the_penalty_is_half_the_squared_slope_and_can_be_learnt_from():
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    a = torch.tensor([2.0, -1.0], dtype=torch.float64, requires_grad=True)
    penalty = gradient_penalty((a * x**2).sum(dim=1), x)
    torch.testing.assert_close(penalty, (2 * a * x).square().sum(dim=1) / 2)
    penalty.sum().backward()
    torch.testing.assert_close(a.grad, (4 * a * x**2).sum(dim=0).detach())


def test_the_hinge_stops_where_the_margin_is_kept():
    logit = torch.tensor([-2.0, 0.0, 0.5, 2.0])
    torch.testing.assert_close(hinge_real(logit), torch.tensor([3.0, 1.0, 0.5, 0.0]))
    torch.testing.assert_close(hinge_fake(logit), torch.tensor([0.0, 1.0, 1.5, 3.0]))


@pytest.mark.parametrize("shape", [(2,), (3, 9, 7)])
def test_a_logit_for_each_sample_that_depends_on_all_that_is_given(shape):
    torch.manual_seed(0)
    net = Discriminator(shape, 8, 2, 0.5, classes=3, pairs=True)
    torch.nn.init.normal_(net.condition.second.weight)
    x, beside = torch.randn(2, 4, *shape)
    low, high, label = torch.zeros(4), torch.ones(4), torch.tensor([0, 1, 2, -1])
    logit = net(x, low, label, beside=beside, at=high)
    assert logit.shape == (4,)
    torch.testing.assert_close(net(x[1:2], low[:1], label[1:2], beside=beside[1:2], at=high[:1]), logit[1:2])
    for other in (
        net(x + 1, low, label, beside=beside, at=high),
        net(x, low + 1, label, beside=beside, at=high),
        net(x, low, (label + 1) % 3, beside=beside, at=high),
        net(x, low, label, beside=beside + 1, at=high),
        net(x, low, label, beside=beside, at=high + 1),
    ):
        assert bool((other != logit).all())


def test_it_learns_the_logarithm_of_the_ratio_of_two_laws():
    """Of N(1, 1) and N(-1, 1) that is 2 x."""
    torch.manual_seed(0)
    net = Discriminator((1,), 16, 1, 1.0)
    optimizer, zero = torch.optim.Adam(net.parameters(), 1e-2), torch.zeros(1024)
    for _ in range(150):
        z = torch.randn(1024, 1)
        logit = net(torch.cat([z[:512] + 1, z[512:] - 1]), zero)
        loss = torch.nn.functional.softplus(torch.cat([-logit[:512], logit[512:]])).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = torch.linspace(-1.5, 1.5, 7)
    assert float((net(x[:, None], zero[:7]) - 2 * x).detach().abs().max()) < 0.7


def test_heads_are_of_their_own_features_with_the_slope_there():
    torch.manual_seed(0)
    heads = Heads([3, 2], 8).double()
    first, second = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, 5, 5, dtype=torch.float64)
    logits = heads(first, second)
    assert logits.shape == (4, 2)
    moved = heads(first + 1, second)
    assert bool((moved[:, 0] != logits[:, 0]).all())
    assert torch.equal(moved[:, 1], logits[:, 1])
    value, penalty = heads(first, second, penalised=True).unbind(dim=2)
    torch.testing.assert_close(value, logits)
    with torch.no_grad():
        shift = 1e-5 * torch.eye(3, dtype=torch.float64)
        slopes = [(heads(first + s, second) - heads(first - s, second))[:, 0] / 2e-5 for s in shift]
    torch.testing.assert_close(
        penalty[:, 0].detach(), torch.stack(slopes).square().sum(dim=0) / 2, rtol=1e-5, atol=1e-9
    )
