"""Features before their activation: where they are, and the mean of what an activation cuts off."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.errors import UserError
from limbeck.models.vision import CNN, MLP, ResNet
from limbeck.vision.activations import before, halved, margins, negative_mean
from toolkit import image_net

BATCH = {"input": torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))}


def test_it_is_the_batch_norm_before_the_activation_and_the_pooling() -> None:
    net = image_net()
    assert before(net, BATCH, ["stages.0", "stages.1"]) == ["stages.0.1", "stages.1.1"]
    net.stages[0][2] = nn.ReLU(inplace=True)
    assert before(net, BATCH, ["stages.0"]) == ["stages.0.1"]
    assert all(p.requires_grad for p in net.parameters()) and net.training


def test_it_is_the_linear_layer_of_a_network_of_vectors() -> None:
    net = MLP(in_features=64, classes=4, hidden=8, layers=2)
    assert before(net, BATCH, ["stages.0", "stages.1"]) == ["stages.0.0", "stages.1.0"]


def test_a_stage_that_ends_before_its_activation() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = nn.Sequential(nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)))
            self.act = nn.ReLU()
            self.head = nn.Linear(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.act(self.stages(x)).mean((2, 3)))

    assert before(Late(), BATCH, ["stages.0"]) == ["stages.0.1"]


def test_what_is_no_module_is_an_error_in_one_line() -> None:
    net = ResNet(in_channels=1, classes=4, depth=8, width=4)
    with pytest.raises(UserError, match=r"stages\.0.*name student_layers") as refused:
        before(net, BATCH, ["stages.0"])
    assert "\n" not in str(refused.value)


def test_the_mean_of_the_negative_part_of_a_normal_variable() -> None:
    mean = torch.tensor([0.0, 1.0, -2.0, 0.3], dtype=torch.float64)
    std = torch.tensor([1.0, 0.5, 0.7, 2.0], dtype=torch.float64)
    for m, s, got in zip(mean.tolist(), std.tolist(), negative_mean(mean, std).tolist(), strict=True):
        x = torch.linspace(min(m - 12 * s, -12 * s), 0.0, 400_001, dtype=torch.float64)
        density = (-0.5 * ((x - m) / s).square()).exp()
        assert got == pytest.approx(float((x * density).sum() / density.sum()), rel=1e-3)


def test_channels_that_are_never_or_always_negative_have_finite_margins() -> None:
    got = negative_mean(torch.tensor([30.0, -30.0, 1.0, -1.0]), torch.tensor([1.0, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(got, torch.tensor([-1 / 30, -30.0, 0.0, -1.0]), rtol=3e-3, atol=1e-6)


def test_margins_are_read_from_the_batch_norm() -> None:
    net = CNN(in_channels=1, image_size=8, classes=4, width=3, depth=1)
    norm = net.stages[0][1]
    norm.weight.data.copy_(torch.tensor([1.0, -2.0, 0.5]))
    norm.bias.data.copy_(torch.tensor([0.0, 1.0, -1.0]))
    wanted = negative_mean(torch.tensor([0.0, 1.0, -1.0]), torch.tensor([1.0, 2.0, 0.5]))
    torch.testing.assert_close(margins(net, ["stages.0.1"])[0], wanted)
    with pytest.raises(UserError, match="no batch norm"):
        margins(net, ["stages.0.0"])


def test_earlier_layers_weigh_half() -> None:
    assert halved(3) == [0.25, 0.5, 1.0]
