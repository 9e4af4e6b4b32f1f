"""Correlation congruence as a method; the loss has its own tests."""

from __future__ import annotations

import torch

from limbeck.engine.method import Clock
from limbeck.vision.losses.relations import congruence
from toolkit import features_of, image_batch, image_method, value


def test_the_term_is_the_loss_of_what_the_heads_read() -> None:
    batch, method = image_batch(), image_method("cc", beta=7.0, gamma=0.7, order=3, kd_weight=0.9)
    terms = method.terms(batch, Clock(0, 10))
    s, t = features_of(method.student, batch)[2], features_of(method.teacher.module, batch)[2]
    torch.testing.assert_close(value(terms["cc"]), congruence(s, t, gamma=0.7, order=3).mean())
    assert terms["cc"].weight == 7.0 and set(terms) == {"ce", "kd", "cc"}
