"""Masked generative distillation as a method."""

from __future__ import annotations

import torch

from limbeck.engine.method import Clock
from toolkit import features_of, image_batch, image_method, value

CLOCK = Clock(3, 10)


def test_the_term_is_the_squared_error_of_what_is_made_from_the_rest() -> None:
    batch, method = image_batch(), image_method("mgd", alpha=2.0, ratio=0.5)
    assert list(method.learners) == ["student", "projectors", "generator"]
    terms = method.terms(batch, CLOCK)
    s, t = features_of(method.student, batch)[1], features_of(method.teacher.module, batch)[1]
    shown = (CLOCK.uniform(batch["id"], (12, 1, 1), "mgd.0") >= 0.5).float()
    made = method.learners["generator"].maps["0"](method.learners["projectors"].maps["0"](s) * shown)
    torch.testing.assert_close(value(terms["mgd"]), (made - t).square().sum((1, 2, 3)).mean())
    assert terms["mgd"].weight == 2.0 and set(terms) == {"ce", "mgd"}


def test_channels_or_cells_are_hidden_at_the_ratio() -> None:
    feature = torch.ones(200, 12, 4, 4)
    batch = {"id": torch.arange(200)}
    for mask, shape in (("channels", (200, 12, 1, 1)), ("cells", (200, 1, 4, 4))):
        method = image_method("mgd", mask=mask, ratio=0.3)
        seen = type("Seen", (), {"clock": CLOCK, "batch": batch})()
        kept = method.kept(feature, seen, 0)
        assert kept.shape == shape and abs(float(kept.mean()) - 0.7) < 0.03
        assert set(kept.unique().tolist()) == {0.0, 1.0}


def test_equal_shapes_need_no_projector() -> None:
    assert list(image_method("mgd", student=6).learners) == ["student", "generator"]
