"""Where features are: found by running a model, in plain networks, timm-like ones and transformers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.errors import UserError
from limbeck.models import places
from limbeck.models.vision import CNN, MLP
from toolkit import image_net

IMAGE = {"input": torch.randn(2, 3, 16, 16)}


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1)

    def forward(self, x):
        return torch.relu(self.conv(x))


class ResNetLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.layer1 = nn.Sequential(Block(4, 4, 1), Block(4, 4, 1))
        self.layer2 = nn.Sequential(Block(4, 8, 2), Block(8, 8, 1))
        self.layer3 = nn.Sequential(Block(8, 16, 2), Block(16, 16, 1))
        self.pool, self.drop, self.fc = nn.AdaptiveAvgPool2d(1), nn.Dropout(0.5), nn.Linear(16, 5)

    def forward(self, x):
        return self.fc(self.drop(self.pool(self.layer3(self.layer2(self.layer1(self.conv1(x))))).flatten(1)))


class ViTLike(nn.Module):
    def __init__(self, depth: int = 6) -> None:
        super().__init__()
        self.embed = nn.Linear(48, 8)
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(depth)])
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.embed(x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(len(x), 16, 48))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def test_the_ends_of_stages_are_suggested() -> None:
    assert places.stages(ResNetLike(), IMAGE) == ["layer1", "layer2", "layer3"]
    net = CNN(in_channels=3, image_size=16, classes=5, width=4, depth=3)
    assert places.stages(net, IMAGE) == ["stages.0", "stages.1", "stages.2"]
    vgg = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, 1, 1), nn.ReLU(),
                        nn.Flatten(), nn.Linear(256, 5))  # fmt: skip
    assert places.stages(vgg, IMAGE) == ["1", "4"]
    assert places.stages(MLP(in_features=768, classes=5, hidden=8, layers=2), IMAGE) == ["stages.0", "stages.1"]
    assert places.stages(ViTLike(4), IMAGE) == ["blocks.0", "blocks.1", "blocks.2", "blocks.3"]
    assert places.stages(ViTLike(8), IMAGE) == ["blocks.1", "blocks.3", "blocks.5", "blocks.7"]


def test_transformers_models_have_blocks_and_a_head() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=4,
        num_labels=5,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config)
    assert places.head(model, IMAGE)[0] == "classifier"
    found = places.stages(model, IMAGE)
    assert len(found) == 3 and found[-1].endswith(".2")


def test_the_head_is_the_layer_that_gives_the_logits() -> None:
    path, layer = places.head(ResNetLike(), IMAGE)
    assert path == "fc" and layer.in_features == 16
    with pytest.raises(UserError, match="come out of no linear layer"):
        places.head(nn.Sequential(nn.Flatten(), nn.Linear(768, 5), nn.Softmax(1)), IMAGE)
    with pytest.raises(UserError, match="no features were found"):
        places.stages(nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), IMAGE)


def test_a_look_leaves_no_trace() -> None:
    net = image_net().train()
    net.stages[0].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    places.stages(net, {"input": torch.randn(4, 1, 8, 8)})
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert modes == [m.training for m in net.modules()] and not any(m._forward_hooks for m in net.modules())


def test_unlike_numbers_of_stages_are_paired_from_the_end() -> None:
    assert places.pair(["a", "b"], ["1", "2", "3", "4"]) == (["a", "b"], ["2", "4"])
    assert places.pair(["a", "b", "c"], ["1"]) == (["c"], ["1"])


def test_every_place_is_listed_with_its_shape_and_stride() -> None:
    found = {p.path: p for p in places.places(ResNetLike(), IMAGE)}
    assert found["layer2"].shape == (8, 8, 8) and found["layer2"].stride(16) == 2.0
    assert found["fc"].shape == (5,) and found["fc"].stride(16) is None
