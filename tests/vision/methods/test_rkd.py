"""Relational distillation as a method; the losses have their own tests."""

from __future__ import annotations

import torch

from limbeck.engine.method import Clock
from limbeck.vision.losses import rkd_angle, rkd_distance
from toolkit import features_of, image_batch, image_method, value


def test_the_terms_are_the_losses_of_what_the_heads_read() -> None:
    batch, method = image_batch(), image_method("rkd", distance_weight=2.0, angle_weight=3.0)
    terms = method.terms(batch, Clock(0, 10))
    s, t = features_of(method.student, batch)[2], features_of(method.teacher.module, batch)[2]
    torch.testing.assert_close(value(terms["distance"]), rkd_distance(s, t).mean())
    torch.testing.assert_close(value(terms["angle"]), rkd_angle(s, t).mean())
    assert (terms["distance"].weight, terms["angle"].weight) == (2.0, 3.0)
    assert not t.requires_grad and terms["angle"].sum.requires_grad
