"""Small builders for tests: a toy classification problem and loops over it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.data.arrays import ArraySource
from limbeck.data.base import DataSpec
from limbeck.data.stream import Stream
from limbeck.engine.devices import Placement, launch
from limbeck.engine.learner import LearnerSettings
from limbeck.engine.loop import Loop, LoopSettings
from limbeck.engine.method import Method, Parts
from limbeck.engine.teacher import Teacher
from limbeck.registry import Block, build

SPEC = DataSpec(task="classification", shape=(6,), classes=4)


def toy_source(n: int = 64, seed: int = 0) -> ArraySource:
    """Points in 6 dimensions with 4 classes that a linear map tells apart."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=g)
    y = (x @ torch.randn(6, 4, generator=torch.Generator().manual_seed(99))).argmax(1)
    y[:4] = torch.arange(4)
    return ArraySource({"input": x, "label": y}, SPEC)


def toy_net(seed: int = 0, hidden: int = 8, *, double: bool = False) -> nn.Module:
    """A small network without batch statistics."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, hidden), nn.Tanh(), nn.Linear(hidden, 4))
    return net.double() if double else net


def toy_teacher(seed: int = 5) -> Teacher:
    """A frozen network."""
    return Teacher(toy_net(seed, 16), {"logits"}, "teacher")


def set_up(method: Method, student: nn.Module, teachers: Mapping[str, Teacher] | None = None) -> Method:
    """A method with its parts."""
    source = toy_source()
    method.setup(Parts(student, dict(teachers or {}), SPEC, SPEC.offers(), {"data": source}))
    return method


def toy_loop(folder: Path, method: Method | None = None, *, steps: int = 20, batch: int = 16, **options: Any) -> Loop:
    """A loop over the toy problem, on the CPU and quiet."""
    cut = {k: options.pop(k) for k in ("accumulate",) if k in options}
    settings: dict[str, Any] = {"quiet": True, "log_every": 5, **options.pop("settings", {})}
    learner = options.pop("learner", LearnerSettings(optimizer=Block("sgd", {"lr": 0.1, "weight_decay": 0.0})))
    method = method or set_up(build("method", Block("kd")), toy_net(), {"teacher": toy_teacher()})
    fabric = options.pop("fabric", None) or launch(Placement(accelerator="cpu"))
    stream = Stream(toy_source(), batch, 0, rank=fabric.global_rank, world=fabric.world_size, **cut)
    return Loop(method, stream, LoopSettings(steps=steps, default=learner, **settings), folder, fabric, **options)


def weights(module: nn.Module) -> torch.Tensor:
    """All parameters as one vector."""
    return torch.cat([p.detach().flatten() for p in module.parameters()])


IMAGES = DataSpec(task="classification", shape=(1, 8, 8), classes=4)


def image_source(n: int = 32, seed: int = 0) -> ArraySource:
    """Small random images with labels that a network can learn."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 1, 8, 8, generator=g)
    return ArraySource({"input": x, "label": x.mean((1, 2, 3)).argsort().argsort() % 4}, IMAGES)


def image_net(width: int = 4, seed: int = 0) -> nn.Module:
    """A convolutional network of two stages with batch statistics; the stages have ``width`` and twice as many maps."""
    from limbeck.models.vision import CNN

    torch.manual_seed(seed)
    return CNN(in_channels=1, image_size=8, classes=4, width=width, depth=2)


def image_method(name: str, *, student: int = 4, teacher: int = 6, **arguments: Any) -> Method:
    """A method for classifiers, ready for :func:`image_batch`: a student and a frozen teacher of these widths."""
    method = build("method", Block(name, arguments))
    net = Teacher(image_net(teacher, seed=5), {"logits", "features"}, "teacher")
    method.setup(Parts(image_net(student), {"teacher": net}, IMAGES, IMAGES.offers(), {"data": image_source()}))
    return method


def image_batch(n: int = 6) -> dict[str, Any]:
    """The first images of :func:`image_source`; the second has no label."""
    batch = image_source().batch(torch.arange(n))
    batch["label"] = torch.where(torch.arange(n) == 1, -100, batch["label"])
    return batch


def features_of(module: nn.Module, batch: Mapping[str, Any]) -> list[torch.Tensor]:
    """What the two stages of an :func:`image_net` give, and what its last layer reads."""
    first = module.stages[0](batch["input"])
    second = module.stages[1](first)
    return [first, second, second.mean((2, 3))]


def value(term: Any) -> torch.Tensor:
    """The mean of a term, without its weight."""
    return term.sum / term.count
