"""Softmax regression as a method: both terms by hand, and gradients through a layer that stays as it is."""

from __future__ import annotations

import torch

from limbeck.engine.method import Clock
from toolkit import features_of, image_batch, image_method, value

CLOCK = Clock(0, 10)


def test_the_terms_are_the_papers() -> None:
    batch, method = image_batch(), image_method("srrl", alpha=2.0, beta=3.0)
    assert list(method.learners) == ["student", "projectors"]
    terms = method.terms(batch, CLOCK)
    teacher, regressor = method.teacher.module, method.learners["projectors"].maps["0"].map
    mapped = features_of(method.student, batch)[2] @ regressor.weight.T + regressor.bias
    embedding = features_of(teacher, batch)[2]
    torch.testing.assert_close(value(terms["embedding"]), (mapped - embedding).square().mean())
    logits = mapped @ teacher.head.weight.T + teacher.head.bias
    torch.testing.assert_close(value(terms["regression"]), (logits - teacher(batch["input"])).square().mean())
    assert (terms["embedding"].weight, terms["regression"].weight) == (2.0, 3.0)
    assert set(terms) == {"ce", "embedding", "regression"}


def test_gradients_pass_through_the_frozen_layer() -> None:
    method = image_method("srrl")
    method.terms(image_batch(), CLOCK)["regression"].sum.backward()
    assert all(p.grad is None and not p.requires_grad for p in method.frozen["head"].parameters())
    assert method.student.stages[0][0].weight.grad.abs().sum() > 0
    assert method.learners["projectors"].maps["0"].map.weight.grad.abs().sum() > 0


def test_equal_widths_need_no_map() -> None:
    method, batch = image_method("srrl", student=6), image_batch()
    assert list(method.learners) == ["student"]
    s, t = (features_of(m, batch)[2] for m in (method.student, method.teacher.module))
    torch.testing.assert_close(value(method.terms(batch, CLOCK)["embedding"]), (s - t).square().mean())
