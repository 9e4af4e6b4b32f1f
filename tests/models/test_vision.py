"""The reference networks are the published ones, and work on the sizes that recipes use."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.errors import UserError
from limbeck.models.vision import CNN, MLP, Classifier, ConvNet, Logistic, ResNet
from limbeck.registry import Block, build, find


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_convnet_has_the_published_number_of_parameters():
    assert count(ConvNet(in_channels=3, image_size=32, classes=10)) == 320_010


@pytest.mark.parametrize(("depth", "parameters"), [(20, 272_474), (56, 855_770)])
def test_resnet_has_the_published_number_of_parameters(depth, parameters):
    assert count(ResNet(in_channels=3, classes=10, depth=depth)) == parameters


def test_resnet_stages_halve_the_image_twice():
    net = ResNet(in_channels=3, classes=10, depth=8)
    maps = []
    for stage in net.stages:
        stage.register_forward_hook(lambda *args: maps.append(tuple(args[2].shape[1:])))
    net(torch.zeros(2, 3, 32, 32))
    assert maps == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


MODELS = [
    ("logistic", {}, (1, 8, 8)),
    ("mlp", {"hidden": 16, "layers": 2}, (12,)),
    ("mlp", {"layers": 0}, (1, 8, 8)),
    ("cnn", {"width": 4}, (1, 8, 8)),
    ("cnn", {"width": 4, "depth": 4}, (3, 64, 64)),
    ("cnn", {"width": 4}, (3, 9, 9)),
    ("convnet", {"width": 8}, (1, 8, 8)),
    ("convnet", {"width": 8}, (1, 28, 28)),
    ("convnet", {"width": 8, "depth": 4, "norm": "batch"}, (3, 64, 64)),
    ("convnet", {"width": 8, "depth": 1, "norm": "none"}, (1, 8, 8)),
    ("resnet", {"width": 4, "depth": 8}, (1, 8, 8)),
]


@pytest.mark.parametrize(("name", "args", "shape"), MODELS)
def test_head_reads_the_features_and_every_parameter_learns(name, args, shape):
    from limbeck.data.base import DataSpec

    offers = DataSpec(shape=shape, classes=5).offers()
    torch.manual_seed(0)
    net: Classifier = build("model", Block(name, args), offers=offers)
    x = torch.randn(4, *shape)
    features = net.eval().features(x)
    assert features.shape == (4, net.head.in_features)
    assert torch.equal(net(x), net.head(features))
    assert net(x).shape == (4, 5)
    net.train()(x).square().sum().backward()
    dead = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A bias before batch or instance norm cannot change the output.
    assert [n for n in dead if not (name == "convnet" and n.endswith(".0.bias"))] == []


@pytest.mark.parametrize("name", sorted({m[0] for m in MODELS}))
def test_registered_models_give_logits_and_features(name):
    assert find("model", name).facts["gives"] == {"logits", "features"}


def test_convnet_sees_28_pixels_as_32():
    small = ConvNet(in_channels=1, image_size=28, classes=10, width=8).eval()
    large = ConvNet(in_channels=1, image_size=32, classes=10, width=8).eval()
    large.load_state_dict(small.state_dict())
    x = torch.randn(2, 1, 28, 28)
    assert torch.allclose(small(x), large(nn.functional.pad(x, (2, 2, 2, 2))), atol=1e-5)


def test_instance_norm_judges_each_image_alone_in_both_modes():
    net = ConvNet(in_channels=1, image_size=8, classes=3, width=4, depth=2)
    x = torch.randn(6, 1, 8, 8)
    together = net.train()(x)
    assert torch.allclose(together, torch.cat([net(one) for one in x.split(1)]), atol=1e-5)
    assert torch.allclose(together, net.eval()(x), atol=1e-6)


def test_instance_norm_is_torchs():
    stage = ConvNet(in_channels=2, image_size=8, classes=3, width=4, depth=1).stages[0]
    conv, norm, relu, pool = stage
    nn.init.normal_(norm.weight)
    reference = nn.InstanceNorm2d(4, affine=True)
    reference.load_state_dict(norm.state_dict())
    x = torch.randn(3, 2, 8, 8)
    assert torch.allclose(stage(x), pool(relu(reference(conv(x)))), atol=1e-6)


@pytest.mark.parametrize("make", [
    lambda: CNN(in_channels=1, image_size=8, classes=3, width=4),
    lambda: ConvNet(in_channels=1, image_size=8, classes=3, width=4),
    lambda: ResNet(in_channels=1, classes=3, depth=8, width=4),
    lambda: MLP(in_features=64, classes=3),
    lambda: Logistic(in_features=64, classes=3),
])  # fmt: skip
def test_weights_follow_from_the_seed(make):
    nets = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        nets.append(torch.cat([p.flatten() for p in make().parameters()]))
    assert torch.equal(nets[0], nets[1])
    assert not torch.equal(nets[0], nets[2])


@pytest.mark.parametrize("cls", [CNN, ConvNet])
def test_too_small_an_image_is_refused(cls):
    with pytest.raises(UserError, match="needs 16 pixels, not 8"):
        cls(in_channels=1, image_size=8, classes=3, depth=4)


def test_stages_and_head_are_module_paths():
    for net in (CNN(in_channels=1, image_size=8, classes=3), ResNet(in_channels=1, classes=3, depth=8)):
        assert isinstance(net.get_submodule("stages.0"), nn.Module)
        assert isinstance(net.get_submodule("head"), nn.Linear)
