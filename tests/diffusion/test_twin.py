"""A network with a twin: the same at first, and of its own law after."""

from __future__ import annotations

import pytest
import torch

from limbeck.diffusion.networks import inherit
from limbeck.diffusion.twin import TwinDenoiser
from limbeck.errors import UserError
from limbeck.registry import Block, build


def twins(**args) -> TwinDenoiser:
    torch.manual_seed(0)
    net = Block("mlp_denoiser", {"width": 16, "depth": 1, "sigma_data": 1.5, "jumps": True, **args})
    return build("model", Block("twin_denoiser", {"net": net}))


def test_it_begins_as_its_twin_and_as_the_network_that_it_continues():
    net = twins(classes=3)
    torch.manual_seed(0)
    plain = build("model", Block("mlp_denoiser", {"width": 16, "depth": 1, "sigma_data": 1.5, "classes": 3}))
    assert inherit(net, plain)
    assert net.jumps
    x, sigma, label = torch.randn(4, 2), torch.tensor([0.1, 1.0, 2.0, 5.0]), torch.tensor([0, 1, 2, -1])
    expected = plain(x, sigma, label)
    for sign in (1, -1):
        torch.testing.assert_close(net(x, sign * sigma, label), expected)
        torch.testing.assert_close(net(x, sign * sigma, label, to=sign * sigma), expected)


def test_what_the_twin_learns_leaves_positive_levels_alone():
    net = twins()
    x, sigma = torch.randn(4, 2), torch.tensor([0.1, 1.0, 2.0, 5.0])
    before = net(x, sigma, to=sigma / 2)
    torch.nn.init.normal_(net.backbone.condition.twin.weight)
    assert torch.equal(net(x, sigma, to=sigma / 2), before)
    assert bool((net(x, -sigma, to=-sigma / 2) != before).all())


def test_only_a_network_of_ours_has_a_twin():
    with pytest.raises(UserError, match="can have a twin"):
        build("model", Block("twin_denoiser", {"net": Block("gaussian_ring", {})}))
