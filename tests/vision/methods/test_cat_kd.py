"""Class attention transfer as a method; the loss has its own tests."""

from __future__ import annotations

import pytest
import torch

from limbeck.engine.method import Clock
from limbeck.errors import UserError
from limbeck.vision.losses.maps import class_attention
from limbeck.vision.methods.cat_kd import class_maps
from toolkit import features_of, image_batch, image_method, value

CLOCK = Clock(0, 10)


def test_a_logit_is_the_mean_of_its_class_map_and_the_bias() -> None:
    method, batch = image_method("cat_kd"), image_batch()
    teacher = method.teacher.module
    maps = class_maps(features_of(teacher, batch)[1], teacher.head.weight)
    torch.testing.assert_close(maps.mean((2, 3)) + teacher.head.bias, teacher(batch["input"]))


def test_the_term_is_the_loss_of_both_sides_class_maps() -> None:
    batch, method = image_batch(), image_method("cat_kd", beta=9.0, size=1)
    terms = method.terms(batch, CLOCK)
    s, t = (class_maps(features_of(m, batch)[1], m.head.weight) for m in (method.student, method.teacher.module))
    torch.testing.assert_close(value(terms["cat"]), class_attention(s, t, size=1).mean())
    assert terms["cat"].weight == 9.0 and set(terms) == {"ce", "cat"} and list(method.learners) == ["student"]


def test_the_students_head_learns_from_it_too() -> None:
    method = image_method("cat_kd", ce_weight=0.0)
    method.terms(image_batch(), CLOCK)["cat"].sum.backward()
    assert method.student.head.weight.grad.abs().sum() > 0 and method.teacher.module.head.weight.grad is None


def test_a_layer_that_the_head_does_not_average_is_refused() -> None:
    with pytest.raises(UserError, match=r"does not read the mean of 'stages\.0'"):
        image_method("cat_kd", student_layers=["stages.0"], teacher_layers=["stages.0"])
