"""What methods for classifiers share: layers, soft targets, projectors."""

from __future__ import annotations

import pytest
import torch

from limbeck.engine.method import Clock
from limbeck.errors import UserError
from limbeck.losses import soft_kl
from limbeck.registry import Block, build
from toolkit import image_batch, image_method, set_up, toy_net, toy_teacher, value

CLOCK = Clock(0, 10)


def test_soft_targets_stand_beside_if_they_are_wanted() -> None:
    batch = image_batch()
    assert set(image_method("at").terms(batch, CLOCK)) == {"ce", "at"}
    assert set(image_method("at", ce_weight=0.0).terms(batch, CLOCK)) == {"at"}
    method = image_method("at", kd_weight=0.5, temperature=3.0)
    terms = method.terms(batch, CLOCK)
    student, teacher = method.student(batch["input"]), method.teacher(batch).logits
    torch.testing.assert_close(value(terms["kd"]), soft_kl(student, teacher, temperature=3.0).mean())
    assert terms["kd"].weight == 0.5


def test_layers_must_be_as_many_and_exist() -> None:
    with pytest.raises(UserError, match="2 layers of the student and 1 of the teacher"):
        image_method("at", student_layers=["stages.0", "stages.1"], teacher_layers=["stages.1"])
    with pytest.raises(UserError, match=r"no module 'stages.9'; did you mean 'stages"):
        image_method("at", student_layers=["stages.9"], teacher_layers=["stages.1"])


def test_networks_of_vectors_have_features_too() -> None:
    method = set_up(build("method", Block("rkd")), toy_net(), {"teacher": toy_teacher()})
    from toolkit import toy_source

    assert set(method.terms(toy_source().batch(torch.arange(8)), CLOCK)) == {"ce", "distance", "angle"}


def test_the_student_and_its_projector_learn_and_the_teacher_does_not() -> None:
    method = image_method("fitnets")
    (update,) = method.updates(image_batch(), CLOCK)
    assert update.roles == ("student", "projectors")
    total = sum(t.weight * t.sum / t.count for t in update.evaluate().values())
    total.backward()
    assert all(p.grad is not None for p in method.learners["projectors"].parameters())
    assert not any(p.requires_grad for p in method.teacher.module.parameters())
