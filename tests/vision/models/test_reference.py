"""The networks of the CIFAR-100 table have the published numbers of parameters, and stages that methods can tap."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from limbeck.engine.method import Clock, Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.models import places
from limbeck.registry import Block, build
from toolkit import IMAGES, image_source

PUBLISHED = [
    ("resnet_cifar", {"depth": 20}, 278_324),
    ("resnet_cifar", {"depth": 32}, 472_756),
    ("resnet_cifar", {"depth": 56}, 861_620),
    ("resnet_cifar", {"depth": 110}, 1_736_564),
    ("resnet_cifar", {"depth": 8, "width": 4}, 1_233_540),
    ("resnet_cifar", {"depth": 32, "width": 4}, 7_433_860),
    ("wrn", {"depth": 16, "width": 2}, 703_284),
    ("wrn", {"depth": 40, "width": 1}, 569_780),
    ("wrn", {"depth": 40, "width": 2}, 2_255_156),
    ("vgg", {"depth": 8}, 3_965_028),
    ("vgg", {"depth": 13}, 9_462_180),
    ("mobilenet_v2_cifar", {}, 812_836),
    ("shufflenet_v1_cifar", {}, 949_258),
    ("shufflenet_v2_cifar", {}, 1_355_528),
    ("resnet50_cifar", {}, 23_705_252),
]
"""With 100 classes (Tian et al. 2020, arXiv 1910.10699, appendix)."""


def network(name: str, arguments: dict[str, Any], classes: int = 100, channels: int = 3) -> Any:
    return build("model", Block(name, arguments), offers={"in_channels": channels, "classes": classes})


@pytest.mark.parametrize(("name", "arguments", "parameters"), PUBLISHED, ids=str)
def test_the_number_of_parameters_is_the_published_one(name: str, arguments: dict[str, Any], parameters: int) -> None:
    with torch.device("meta"):
        net = network(name, arguments)
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("resnet_cifar", {"depth": 8}), ("wrn", {"depth": 10, "width": 1}), ("vgg", {"depth": 8}), ("resnet50_cifar", {}),
     ("mobilenet_v2_cifar", {}), ("shufflenet_v1_cifar", {}), ("shufflenet_v2_cifar", {})],
)  # fmt: skip
def test_stages_and_head_are_found(name: str, arguments: dict[str, Any]) -> None:
    net = network(name, arguments, classes=7).eval()
    batch = {"input": torch.randn(2, 3, 32, 32)}
    assert net(batch["input"]).shape == (2, 7)
    stages = places.stages(net, batch)
    assert stages == [f"stages.{i}" for i in range(len(net.stages))] and places.head(net, batch)[0] == "head"
    sizes = [p.shape[-1] for p in places.places(net, batch) if p.path in stages]
    assert sizes == sorted(sizes, reverse=True) and net.features(batch["input"]).shape == (2, net.head.in_features)


def test_a_depth_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match=r"depth is 6n \+ 2"):
        network("resnet_cifar", {"depth": 21})
    with pytest.raises(UserError, match=r"depth is 6n \+ 4"):
        network("wrn", {"depth": 20})


def test_unlike_networks_teach_one_another() -> None:
    method = build("method", Block("rkd"))
    teacher = Teacher(network("wrn", {"depth": 10, "width": 1}, 4, 1), {"logits"}, "teacher")
    source_of = {"data": image_source()}
    method.setup(Parts(network("resnet_cifar", {"depth": 8}, 4, 1), {"teacher": teacher}, IMAGES, {}, source_of))
    terms = method.terms(source_of["data"].batch(torch.arange(6)), Clock(0, 1))
    assert set(terms) == {"ce", "distance", "angle"} and torch.isfinite(terms["angle"].sum)
