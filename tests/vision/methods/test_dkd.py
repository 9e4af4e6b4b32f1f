"""Decoupled distillation as a method."""

from __future__ import annotations

import torch

from limbeck.engine.method import Clock
from limbeck.registry import Block, build
from limbeck.vision.losses import dkd
from toolkit import set_up, toy_net, toy_source, toy_teacher

CLOCK = Clock(0, 10)


def batch() -> dict:
    return toy_source().batch(torch.arange(16))


def test_it_yields_the_published_sum() -> None:
    x = batch()
    method = set_up(build("method", Block("dkd", {"temperature": 3.0})), toy_net(), {"teacher": toy_teacher()})
    (update,) = method.updates(x, CLOCK)
    total = sum(t.weight * t.sum / t.count for t in update.evaluate().values())
    student, teacher = method.student(x["input"]), method.teacher(x).logits
    ce = torch.nn.functional.cross_entropy(student, x["label"])
    first_epoch = dkd(student, teacher, x["label"], temperature=3.0).mean() / 20
    assert torch.allclose(total, ce + first_epoch, atol=1e-6)


def test_dkd_warms_up_over_epochs() -> None:
    method = build("method", Block("dkd", {"warmup": 4.0}))
    assert [method.ramp(Clock(0, 9, epoch=e)) for e in (0, 1, 3, 7)] == [0.25, 0.5, 1.0, 1.0]
    assert build("method", Block("dkd", {"warmup": 0.0})).ramp(CLOCK) == 1.0
