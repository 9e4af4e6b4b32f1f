"""Generators that draw: the posterior, the latent, and what a sample is made of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.diffusion.latent import LatentDenoiser, PosteriorSteps, posterior
from limbeck.errors import UserError
from limbeck.registry import Block, build


def small(**args) -> nn.Module:
    return build("model", Block("mlp_denoiser", {"width": 16, "depth": 1, "sigma_data": 1.5, **args}))


def test_the_posterior_is_the_conditional_law_of_the_joint_one():
    """(lower, upper) given the clean sample c is normal with mean c and covariance [[s^2, s^2], [s^2, t^2]]."""
    now, then = torch.tensor([2.0, 5.0]), torch.tensor([0.5, 4.0])
    x, clean = torch.tensor([[1.0], [-3.0]]), torch.tensor([[0.2], [0.7]])
    regression = (then**2 / now**2)[:, None]
    mean = clean + regression * (x - clean)
    variance = (then**2)[:, None] - regression * (then**2)[:, None]
    torch.testing.assert_close(posterior(x, clean, now, then, torch.zeros(2, 1)), mean)
    torch.testing.assert_close((posterior(x, clean, now, then, torch.ones(2, 1)) - mean) ** 2, variance)
    torch.testing.assert_close(posterior(x, clean, now, torch.zeros(2), torch.ones(2, 1)), clean)


def test_a_latent_is_added_to_a_network_that_stays_what_it_was():
    torch.manual_seed(0)
    plain = small(classes=3)
    before = {k: v.clone() for k, v in plain.state_dict().items()}
    drawing = LatentDenoiser(plain)
    after = drawing.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert {k for k in after if k not in before} == {
        f"backbone.condition.latent.{k}" for k in ("0.weight", "0.bias", "2.weight", "2.bias")
    }
    x, sigma, label = torch.randn(4, 2), torch.ones(4), torch.tensor([0, 1, 2, -1])
    at_zero = drawing(x, sigma, label)
    torch.testing.assert_close(drawing(x, sigma, label, latent=torch.zeros(4, 2)), at_zero)
    assert not torch.isclose(drawing(x, sigma, label, latent=torch.ones(4, 2)), at_zero).any()


@pytest.mark.parametrize("latent", [True, False])
def test_samples_use_every_draw_and_none_twice(latent):
    torch.manual_seed(0)
    block = {"net": Block("mlp_denoiser", {"width": 16, "depth": 1}), "nfe": 3, "latent": latent, "sigma_max": 5.0}
    generator = build("model", Block("posterior_steps", block))
    assert isinstance(generator, PosteriorSteps)
    assert generator.noise_shape == (6 if latent else 3, 2)
    noise = torch.randn(4, *generator.noise_shape, requires_grad=True)
    with torch.no_grad():
        made = generator(noise)
        for k in range(noise.shape[1]):
            other = noise.clone()
            other[:, k] += 1
            assert not torch.isclose(generator(other), made).all(dim=1).any(), k
        start = generator(noise, steps=1)
    given = {"latent": noise[:, 3]} if latent else {}
    torch.testing.assert_close(generator(noise[:, 0] * 5, at=torch.full((4,), 5.0), **given).detach(), start)


def test_only_a_network_of_ours_takes_a_latent():
    net = Block("gaussian_ring", {})
    with pytest.raises(UserError, match="take a latent"):
        build("model", Block("posterior_steps", {"net": net}))
    assert build("model", Block("posterior_steps", {"net": net, "latent": False})).latent is False
