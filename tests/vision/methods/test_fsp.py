"""Flows as a method; the losses have their own tests."""

from __future__ import annotations

import pytest
import torch

from limbeck.engine.method import Clock
from limbeck.errors import UserError
from limbeck.vision.losses.maps import fsp_matrix
from toolkit import features_of, image_batch, image_method, value

CLOCK = Clock(0, 10)


def test_equal_channels_are_compared_as_they_are() -> None:
    batch, method = image_batch(), image_method("fsp", teacher=4, beta=3.0)
    assert list(method.learners) == ["student"]
    terms = method.terms(batch, CLOCK)
    s, t = (fsp_matrix(*features_of(m, batch)[:2]) for m in (method.student, method.teacher.module))
    torch.testing.assert_close(value(terms["fsp"]), (s - t).square().sum((1, 2)).mean())
    assert terms["fsp"].weight == 3.0 and set(terms) == {"ce", "fsp"} and not t.requires_grad


def test_other_channels_go_through_projectors() -> None:
    batch, method = image_batch(), image_method("fsp")
    assert list(method.learners) == ["student", "projectors"]
    maps = method.learners["projectors"].maps
    s = fsp_matrix(*(maps[str(i)](f) for i, f in enumerate(features_of(method.student, batch)[:2])))
    t = fsp_matrix(*features_of(method.teacher.module, batch)[:2])
    torch.testing.assert_close(value(method.terms(batch, CLOCK)["fsp"]), (s - t).square().sum((1, 2)).mean())


def test_one_layer_is_refused() -> None:
    with pytest.raises(UserError, match="between two layers"):
        image_method("fsp", student_layers=["stages.0"], teacher_layers=["stages.0"])
