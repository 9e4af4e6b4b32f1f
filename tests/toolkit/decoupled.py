"""What the tests of decoupled condensation share: teachers with batch normalisation, and a method that is set up."""

from __future__ import annotations

import torch
from torch import nn

from limbeck.condensation.networks import fresh_network
from limbeck.condensation.synthetic import SyntheticImages
from limbeck.data.base import Data
from limbeck.engine.method import Clock, Method, Parts
from limbeck.engine.teacher import Teacher
from limbeck.registry import Block, build

BATCH = {"id": torch.arange(1), "view": 0}


def batch_norm_teacher(data: Data, seed: int = 0, width: int = 4, steps: int = 0) -> Teacher:
    """A network with random statistics in its batch norms, or one that is trained on the data."""
    network = fresh_network(Block("cnn", {"width": width, "depth": 2}), data.spec.offers(), ("teacher", seed))
    if steps:
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(data.train.images), data.train.labels).backward()
            optimizer.step()
    else:
        generator = torch.Generator().manual_seed(seed)
        for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_mean.normal_(generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)
    return Teacher(network.eval(), {"logits"}, "teacher")


def image_set(data: Data, name: str = "synthetic_images", **args: object) -> SyntheticImages:
    """A student of two images a class, from noise."""
    args = {"per_class": 2, "init": "noise", "seed": 5, **args}
    return build("model", Block(name, args), offers={**data.spec.offers(), "data": data})


def set_up(method: Method, data: Data, student: SyntheticImages | None = None, **teachers: Teacher) -> Method:
    """The method with a student and teachers."""
    teachers = teachers or {"teacher": batch_norm_teacher(data)}
    student = image_set(data) if student is None else student
    method.setup(Parts(student, teachers, data.spec, data.spec.offers(), {"data": data.train}))
    return method


def loss_of(method: Method, clock: Clock) -> dict[str, torch.Tensor]:
    """The terms of a step, unweighted."""
    (update,) = method.updates(BATCH, clock)
    terms = update.evaluate()
    assert update.roles == ("student",) and all(t.count == 1 for t in terms.values())
    return {name: term.sum for name, term in terms.items()}


def descend(method: Method, steps: int, lr: float = 0.1, first: int = 0, optimizer=None):
    """Adam steps from ``first`` on; the last of all steps is the run's last."""
    optimizer = optimizer or torch.optim.Adam(method.student.parameters(), lr=lr, betas=(0.5, 0.9))
    for step in range(first, steps):
        (update,) = method.updates(BATCH, Clock(step, steps))
        optimizer.zero_grad()
        sum(t.weight * t.sum for t in update.evaluate().values()).backward()
        optimizer.step()
        method.after_step(Clock(step, steps))
    return optimizer


def layer_inputs(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """What each batch norm of a plain ``cnn`` is handed, by its layers one by one."""
    found = []
    for conv, norm, relu, pool in module.stages:
        x = conv(x)
        found.append(x)
        x = pool(relu(norm(x)))
    return found
