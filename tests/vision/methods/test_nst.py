"""Neuron selectivity transfer as a method; the loss has its own tests."""

from __future__ import annotations

import torch

from limbeck.engine.method import Clock
from limbeck.vision.losses.maps import nst
from toolkit import features_of, image_batch, image_method, value

CLOCK = Clock(0, 10)


def test_the_term_is_the_sum_over_stages() -> None:
    batch, method = image_batch(), image_method("nst", beta=7.0, degree=3, constant=0.5)
    terms = method.terms(batch, CLOCK)
    s, t = features_of(method.student, batch)[:2], features_of(method.teacher.module, batch)[:2]
    wanted = sum(nst(a, b, degree=3, constant=0.5).mean() for a, b in zip(s, t, strict=True))
    torch.testing.assert_close(value(terms["nst"]), wanted)
    assert terms["nst"].weight == 7.0 and set(terms) == {"ce", "nst"} and list(method.learners) == ["student"]


def test_a_student_of_the_same_maps_has_nothing_to_learn() -> None:
    method = image_method("nst", teacher=4)
    method.student.load_state_dict(method.teacher.module.state_dict())
    method.student.eval()
    assert abs(value(method.terms(image_batch(), CLOCK)["nst"])) < 1e-6
