"""Hints as a method."""

from __future__ import annotations

import torch

from limbeck.engine.method import Clock
from limbeck.registry import Block
from toolkit import features_of, image_batch, image_method, value

CLOCK = Clock(0, 10)


def test_the_hint_is_the_mean_square_through_the_regressor() -> None:
    batch, method = image_batch(), image_method("fitnets", beta=5.0, kd_weight=0.9)
    assert list(method.learners) == ["student", "projectors"]
    terms = method.terms(batch, CLOCK)
    regressor = method.learners["projectors"].maps["0"]
    mapped = regressor(features_of(method.student, batch)[0])
    wanted = (mapped - features_of(method.teacher.module, batch)[0]).square().mean()
    torch.testing.assert_close(value(terms["hint"]), wanted)
    assert terms["hint"].weight == 5.0 and set(terms) == {"ce", "kd", "hint"}


def test_equal_shapes_need_no_regressor_unless_one_is_named() -> None:
    assert list(image_method("fitnets", student=6).learners) == ["student"]
    named = image_method("fitnets", student=6, projector=Block("conv"))
    assert list(named.learners) == ["student", "projectors"]
