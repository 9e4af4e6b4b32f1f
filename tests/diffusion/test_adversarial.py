"""The discriminator on the critic's features: what its optimum is, who learns, and where its pull goes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.diffusion.generators import Noised
from limbeck.engine.method import Clock
from limbeck.errors import UserError
from limbeck.registry import Block
from toolkit.diffusion import CLOCK, MEAN, STD, batch, gaussian, made, student, values

NET = Block("mlp_denoiser", {"shape": [1], "width": 32, "depth": 2, "sigma_data": 1.0})


def dmd2(**args):
    torch.manual_seed(0)
    return made("dmd2", gaussian(), student(NET), from_teacher=False, critic_updates=1, **args)


def test_critic_and_head_step_together_and_the_generator_alone():
    updates = list(dmd2().updates(batch(), CLOCK))
    assert [u.roles for u in updates] == [("student",), ("fake_score", "discriminator")]
    assert values(updates[0]).keys() == {"distribution", "adversarial"}
    assert values(updates[1]).keys() == {"denoising", "discriminator"}


def test_a_learner_takes_no_gradient_from_the_others_update():
    method = dmd2()
    for update in method.updates(batch(), CLOCK):
        for module in method.learners.values():
            module.zero_grad(set_to_none=True)
        sum(term.weight * term.sum for term in update.evaluate().values()).backward()
        touched = {
            role
            for role, module in method.learners.items()
            if any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
        }
        assert touched == set(update.roles)


def test_the_step_does_not_depend_on_how_the_batch_is_cut():
    whole = [values(u) for u in dmd2().updates(batch(0, 64), CLOCK)]
    halves = [[values(u) for u in dmd2().updates(batch(*cut), CLOCK)] for cut in ((0, 24), (24, 64))]
    for k, terms in enumerate(whole):
        assert {n: halves[0][k][n] + halves[1][k][n] for n in terms} == pytest.approx(terms, rel=1e-4)


def test_without_a_weight_there_is_no_head():
    method = dmd2(gan_weight=0.0, discriminator_weight=0.0)
    assert set(method.learners) == {"student", "fake_score"}
    assert [u.roles for u in method.updates(batch(), CLOCK)] == [("student",), ("fake_score",)]
    with pytest.raises(UserError, match="discriminator_weight"):
        dmd2(gan_weight=0.1, discriminator_weight=0.0)


class Fixed(nn.Module):
    """A generator of N(0, 0.7^2) that does not learn."""

    shape = (1,)
    nfe = 1

    def forward(self, noise, label=None):
        return 0.7 * noise


def test_the_trained_logit_is_the_logarithm_of_the_ratio_and_its_pull_goes_to_the_real_samples():
    method = dmd2(discriminator_weight=1.0)
    method.learners["student"] = Fixed()
    both = [p for role in ("fake_score", "discriminator") for p in method.learners[role].parameters()]
    optimizer = torch.optim.Adam(both, 5e-3)
    for k in range(200):
        *_, update = method.updates(batch(0, 256), Clock(k, 200))
        optimizer.zero_grad()
        term = update.evaluate()["discriminator"]
        (term.sum / term.count).backward()
        optimizer.step()
    x = torch.linspace(-1.2, 1.6, 15)[:, None]
    sigma = torch.full((15,), 0.4)
    real = torch.distributions.Normal(MEAN, (STD**2 + 0.16) ** 0.5).log_prob(x)
    fake = torch.distributions.Normal(0.0, (0.49 + 0.16) ** 0.5).log_prob(x)
    logit = method.logit(Noised(x, sigma, None)).detach()
    assert float((logit - (real - fake).squeeze(1)).abs().mean()) < 0.35
    torch.testing.assert_close(method.ratio(Noised(x, sigma, None), 100.0).log(), logit, rtol=0.01, atol=1e-3)
    assert float(method.ratio(Noised(x, sigma, None), 0.2).log().abs().max()) <= 0.2001
    samples = torch.zeros(64, 1, requires_grad=True)
    term = method.fooling(samples, None, batch(), CLOCK)
    term.sum.backward()
    assert float(samples.grad.mean()) < 0  # descent moves the samples up, to the real ones


def test_classes_reach_the_discriminator():
    from limbeck.diffusion import mixture

    torch.manual_seed(0)
    net = Block("mlp_denoiser", {"width": 16, "depth": 1, "sigma_data": 1.5, "classes": 4})
    method = made("dmd2", mixture.ring(4, 2.0, 0.3, classes=4).float(), student(net), critic_updates=1)
    assert all(v == v for u in method.updates(batch(), CLOCK) for v in values(u).values())
    some = torch.zeros(4, 2), torch.ones(4)
    own = method.logit(Noised(*some, torch.arange(4))).detach()
    assert len(own.unique()) == 4
