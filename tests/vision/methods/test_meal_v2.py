"""An ensemble's probabilities and a discriminator."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from limbeck.engine.method import Clock, Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.registry import Block, build
from limbeck.vision.methods.meal_v2 import source_loss
from toolkit import IMAGES, image_batch, image_net, image_source, value

CLOCK = Clock(0, 10)


def ready(teachers: int = 2, **arguments: Any) -> Any:
    method = build("method", Block("meal_v2", arguments))
    given = {f"t{i}": Teacher(image_net(6, seed=5 + i), {"logits"}, f"t{i}") for i in range(teachers)}
    method.setup(Parts(image_net(4), given, IMAGES, IMAGES.offers(), {"data": image_source()}))
    return method


def test_the_student_follows_the_mean_of_the_probabilities() -> None:
    method, batch = ready(), image_batch()
    student = method.student(batch["input"])
    q = sum(t(batch).logits.softmax(-1) for t in method.teachers.values()) / 2
    terms = method.student_terms(student, method.targets(batch), batch)
    torch.testing.assert_close(value(terms["kd"]), -(q * student.log_softmax(-1)).sum(-1).mean())
    said = method.learners["discriminator"](student.log_softmax(-1))
    wanted = -(torch.sigmoid(said[:, 1]).log() + (1 - torch.sigmoid(said[:, 0])).log()) / 2
    torch.testing.assert_close(value(terms["adversarial"]), wanted.mean())
    assert set(terms) == {"kd", "adversarial"}


def test_the_source_loss_is_binary_cross_entropy() -> None:
    logits = torch.tensor([[0.4, -1.2]])
    p = [1 / (1 + math.exp(-v)) for v in (0.4, -1.2)]
    assert source_loss(logits, teacher=False).item() == pytest.approx(-(math.log(p[0]) + math.log(1 - p[1])) / 2)
    assert source_loss(logits, teacher=True).item() == pytest.approx(-(math.log(1 - p[0]) + math.log(p[1])) / 2)


def test_each_side_has_its_own_step() -> None:
    method, batch = ready(ce_weight=0.5), image_batch()
    first, second = method.updates(batch, CLOCK)
    terms = first.evaluate()
    sum(t.sum for t in terms.values()).backward()
    assert set(terms) == {"kd", "adversarial", "ce"} and int(terms["ce"].count) == 5
    critic = list(method.learners["discriminator"].parameters())
    assert all(p.grad is None for p in critic) and first.role == "student"
    kept = {n: p.grad.clone() for n, p in method.student.named_parameters()}
    bce = second.evaluate()["bce"]
    assert second.role == "discriminator" and bce.count == 6
    bce.sum.backward()
    assert all(p.grad is not None for p in critic)
    assert all(torch.equal(p.grad, kept[n]) for n, p in method.student.named_parameters())


def test_the_discriminator_can_tell_them_apart() -> None:
    method, batch = ready(reduction=1), image_batch()
    student, target = method.student(batch["input"]).detach(), method.targets(batch)
    optimizer = torch.optim.Adam(method.learners["discriminator"].parameters(), lr=0.05)
    values = []
    for _ in range(200):
        loss = value(method.discriminator_terms(student, target)["bce"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.1 < values[0]
    fooled = value(method.student_terms(student, target, batch)["adversarial"])
    assert fooled > 1


def test_no_teacher_is_refused() -> None:
    with pytest.raises(UserError, match="at least one"):
        ready(teachers=0)
