"""Sliders: what they do, and on what other network."""

from __future__ import annotations

import pytest
import torch

from limbeck.diffusion.control import denoising_loss, effect, moving_loss, train_slider
from limbeck.diffusion.paths import precondition
from limbeck.errors import UserError
from limbeck.models.lora import Adapted
from limbeck.registry import Block, build

SHIFT = torch.tensor([0.5, -0.5])


def network(seed=0, **args):
    torch.manual_seed(seed)
    given = {"width": 16, "depth": 1, "sigma_data": 1.0, **args}
    return build("model", Block("mlp_denoiser", given)).eval()


def test_the_effect_is_the_change_of_the_mean_along_the_direction():
    before = torch.randn(50, 2)
    half = effect(before, before + 0.5 * SHIFT, SHIFT)
    assert (half.cosine, half.share) == pytest.approx((1.0, 0.5), rel=1e-5)
    across = effect(before, before + torch.tensor([0.7, 0.7]), SHIFT)
    assert (across.cosine, across.share) == pytest.approx((0.0, 0.0), abs=1e-6)
    assert effect(before, before, SHIFT).cosine == 0.0


def test_the_base_s_slider_denoises_samples_that_were_moved():
    points, ids = torch.randn(8, 2), torch.arange(6)
    loss = denoising_loss(points, SHIFT, 1.0, 3)
    seen = {}

    def exact(x, sigma):
        seen.update(x=x, sigma=sigma)
        return points[:6] + SHIFT

    assert torch.equal(loss(exact, ids, 0), torch.zeros(6))
    off = loss(lambda x, sigma: exact(x, sigma) + 2.0, ids, 0)
    # Of an error of two in every coordinate, under the weight that makes the error of EDM's network that of its output.
    assert torch.allclose(off, 4.0 / precondition(seen["sigma"], 1.0).c_out ** 2, rtol=1e-5)


def test_a_slider_of_a_generator_learns_to_move_its_samples_and_works_on_a_copy():
    net = network()
    kept = {k: v.clone() for k, v in net.state_dict().items()}
    slider = train_slider(net, moving_loss(net, 5.0, SHIFT, 0), rank=2, steps=60, batch_size=32, lr=2e-2)
    x, at = 5.0 * torch.randn(400, 2), torch.full((400,), 5.0)
    with torch.no_grad():
        found = effect(net(x, at), slider(x, at), SHIFT)
        moved = slider.onto(net)
        assert torch.allclose(moved(x, at), slider(x, at), atol=1e-6)
    assert found.cosine > 0.95 and found.share > 0.7
    assert all(torch.equal(v, kept[k]) for k, v in net.state_dict().items())


def test_adapters_go_only_where_they_fit():
    slider = Adapted(network(), 2, 2)
    with pytest.raises(UserError, match="do not fit"):
        slider.onto(network(width=8))
    with pytest.raises(UserError, match="do not fit"):
        slider.onto(torch.nn.Linear(2, 2))
