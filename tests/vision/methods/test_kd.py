"""Hinton's distillation as a method."""

from __future__ import annotations

import torch

from limbeck.engine.method import Clock
from limbeck.losses import soft_kl
from limbeck.registry import Block, build
from toolkit import set_up, toy_net, toy_source, toy_teacher

CLOCK = Clock(0, 10)


def batch() -> dict:
    return toy_source().batch(torch.arange(16))


def test_it_yields_the_published_sum() -> None:
    x = batch()
    method = set_up(build("method", Block("kd", {"temperature": 3.0})), toy_net(), {"teacher": toy_teacher()})
    (update,) = method.updates(x, CLOCK)
    total = sum(t.weight * t.sum / t.count for t in update.evaluate().values())
    student, teacher = method.student(x["input"]), method.teacher(x).logits
    ce = torch.nn.functional.cross_entropy(student, x["label"])
    assert torch.allclose(total, 0.1 * ce + 0.9 * soft_kl(student, teacher, temperature=3.0).mean(), atol=1e-6)


def test_samples_without_a_label_are_taught_by_the_teacher_alone() -> None:
    x = {**batch(), "label": torch.full((16,), -100)}
    method = set_up(build("method", Block("kd")), toy_net(), {"teacher": toy_teacher()})
    terms = method.terms(x)
    assert terms["ce"].sum == 0 and terms["ce"].count == 0 and terms["kd"].sum > 0
