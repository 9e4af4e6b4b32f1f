"""Similarity-preserving distillation as a method; the loss has its own tests."""

from __future__ import annotations

import torch

from limbeck.engine.method import Clock
from limbeck.vision.losses.relations import similarity
from toolkit import features_of, image_batch, image_method, value


def test_the_term_is_the_loss_of_the_last_maps() -> None:
    batch, method = image_batch(), image_method("sp", beta=7.0)
    term = method.terms(batch, Clock(0, 10))["sp"]
    s, t = features_of(method.student, batch)[1], features_of(method.teacher.module, batch)[1]
    torch.testing.assert_close(value(term), similarity(s, t).mean())
    assert term.weight == 7.0 and term.sum.requires_grad


def test_layers_that_are_named_are_summed() -> None:
    batch, both = image_batch(), ["stages.0", "stages.1"]
    method = image_method("sp", student_layers=both, teacher_layers=both)
    s, t = features_of(method.student, batch), features_of(method.teacher.module, batch)
    wanted = similarity(s[0], t[0]).mean() + similarity(s[1], t[1]).mean()
    torch.testing.assert_close(value(method.terms(batch, Clock(0, 10))["sp"]), wanted)
