"""Knowledge review as a method; the loss and the fusion blocks have their own tests."""

from __future__ import annotations

import torch

from limbeck.engine.method import Clock
from limbeck.vision.losses.review import hcl
from toolkit import features_of, image_batch, image_method, value


def test_every_level_of_the_teacher_is_compared_with_the_students_review() -> None:
    batch, method = image_batch(), image_method("reviewkd", beta=3.0, warmup=4.0, levels=(2, 1))
    assert list(method.learners) == ["student", "review"]
    terms = method.terms(batch, Clock(0, 100, epoch=1))
    own, other = features_of(method.student, batch), features_of(method.teacher.module, batch)
    reviewed = method.learners["review"]([own[0], own[1], own[2][:, :, None, None]])
    wanted = sum(
        hcl(s, t, levels=(2, 1)).mean()
        for s, t in zip(reviewed, [other[0], other[1], other[2][:, :, None, None]], strict=True)
    )
    torch.testing.assert_close(value(terms["review"]), wanted)
    assert terms["review"].weight == 3.0 * 2 / 4 and set(terms) == {"ce", "review"}


def test_the_weight_grows_to_one_and_stays() -> None:
    method = image_method("reviewkd")
    assert [method.ramp(Clock(0, 1, epoch=e)) for e in (0, 9, 19, 200)] == [0.05, 0.5, 1.0, 1.0]


def test_the_width_is_the_students_deepest_unless_it_is_given() -> None:
    batch = image_batch()
    for width, wanted in ((None, 8), (5, 5)):
        method = image_method("reviewkd", width=width)
        review = method.learners["review"]
        assert {block.enter[0].out_channels for block in review.blocks} == {wanted}
        method.terms(batch, Clock(0, 10))["review"].sum.backward()
        assert all(p.grad is not None for p in review.parameters())
