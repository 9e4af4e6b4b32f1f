"""The small U-Net: shapes, the start, and that everything it depends on reaches it."""

from __future__ import annotations

import pytest
import torch

from limbeck.errors import UserError
from limbeck.registry import Block, build


def unet(**args):
    torch.manual_seed(0)
    return build("model", Block("unet_denoiser", {"shape": [1, 8, 8], "width": 16, **args}))


@pytest.mark.parametrize(
    "args", [{}, {"levels": 3, "depth": 2}, {"shape": [3, 7, 9]}, {"attention": True}, {"patch": 2}]
)
def test_pictures_of_any_size_come_out_as_they_went_in(args):
    net = unet(**args)
    x = torch.randn(2, *net.shape)
    assert net(x, torch.tensor([0.1, 2.0])).shape == x.shape


def test_level_class_and_second_level_change_the_answer():
    net = unet(classes=3, jumps=True)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.05)
    x, one = torch.randn(2, 1, 8, 8), torch.ones(2)
    plain = net.backbone(x, one)
    assert not torch.allclose(net.backbone(x, 2 * one), plain)
    assert not torch.allclose(net.backbone(x, one, label=torch.tensor([0, 1])), plain)
    assert not torch.allclose(net.backbone(x, one, to=0.1 * one), plain)


def test_folded_pixels_keep_their_places_and_make_maps_smaller():
    net, seen = unet(patch=2), []
    net.backbone.first.register_forward_hook(lambda _, given, made: seen.append((given[0], made.shape)))
    x = torch.arange(64.0).reshape(1, 1, 8, 8)
    net.backbone(x, torch.ones(1))
    (folded, shape) = seen[0]
    assert shape == (1, 16, 4, 4)
    assert folded[0, :, 0, 0].tolist() == [0, 1, 8, 9], "a square of two by two pixels"
    torch.nn.init.zeros_(net.backbone.last.weight)
    with torch.no_grad():
        net.backbone.last.bias.copy_(torch.arange(4.0))
    made = net.backbone(x, torch.ones(1))[0, 0]
    assert made[:2, :2].tolist() == [[0, 1], [2, 3]] and torch.equal(made[2:4, 4:6], made[:2, :2])


def test_a_sample_does_not_depend_on_its_batch():
    net = unet(attention=True)
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(net(x, 0.7)[:1], net(x[:1], 0.7))


def test_forward_mode_works_through_it():
    net = unet()
    x = torch.randn(2, 1, 8, 8)
    _, derivative = torch.func.jvp(lambda x: net(x, torch.ones(2)), (x,), (x,))
    assert derivative.abs().sum() > 0


@pytest.mark.parametrize("args", [{"shape": [2]}, {"width": 12}, {"patch": 3}, {"patch": 0}])
def test_what_it_cannot_be_is_refused(args):
    with pytest.raises(UserError, match="unet_denoiser"):
        unet(**args)


def test_classes_are_known_by_cross_attention_where_they_have_tokens():
    net = unet(classes=3, tokens=2)
    assert net.backbone.condition.label is None and len(net.backbone.cross) == 2
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.05)
    x, one = torch.randn(2, 1, 8, 8), torch.ones(2)
    plain = net(x, one)
    assert torch.equal(net(x, one, torch.tensor([-1, -1])), plain)
    assert not torch.allclose(net(x, one, torch.tensor([0, 0])), plain)
    with pytest.raises(UserError, match="tokens"):
        unet(tokens=2)
