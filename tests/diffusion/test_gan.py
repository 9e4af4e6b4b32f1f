"""The discriminator on features: where it looks, and that its optimum is the exact log-ratio."""

from __future__ import annotations

import pytest
import torch

from limbeck.diffusion import mixture
from limbeck.diffusion.gan import Features, Head, fake_is_fake, real_is_real
from limbeck.errors import UserError
from limbeck.registry import Block, build


@pytest.mark.parametrize(
    ("block", "width"),
    [
        (Block("mlp_denoiser", {"width": 16, "depth": 2}), 16),
        (Block("unet_denoiser", {"shape": [1, 8, 8], "width": 8}), 16),
    ],
)
def test_a_network_says_where_its_features_are(block, width):
    net = build("model", block)
    features = Features(net)
    assert features.width(net.shape) == width
    x = torch.randn(3, *net.shape)
    assert Head(width)(features(net, x, torch.ones(3))).shape == (3,)


def test_features_pass_gradients_to_the_sample():
    net = build("model", Block("mlp_denoiser", {"width": 16}))
    x = torch.randn(3, 2, requires_grad=True)
    Features(net)(net, x, torch.ones(3)).sum().backward()
    assert x.grad.abs().sum() > 0


def test_a_law_without_features_is_refused():
    with pytest.raises(UserError, match="where its features are"):
        Features(mixture.ring(3, 1.0, 0.1))


def test_at_the_optimum_the_logit_is_the_log_ratio():
    real, fake = torch.tensor([0.6, 0.1, 0.3]), torch.tensor([0.2, 0.5, 0.3])
    logit = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.LBFGS([logit], max_iter=100)

    def loss():
        optimizer.zero_grad()
        value = (real * real_is_real(logit) + fake * fake_is_fake(logit)).sum()
        value.backward()
        return value

    optimizer.step(loss)
    torch.testing.assert_close(logit.detach().exp(), real / fake, atol=1e-3, rtol=1e-3)
