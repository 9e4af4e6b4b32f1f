"""Logit standardisation as a method; the loss has its own tests."""

from __future__ import annotations

import torch

from limbeck.engine.method import Clock
from limbeck.vision.losses.logits import standardized_kl
from toolkit import image_batch, image_method, value

CLOCK = Clock(0, 10)


def test_the_term_is_the_divergence_of_standardised_logits() -> None:
    batch, method = image_batch(), image_method("logit_std")
    terms = method.terms(batch, CLOCK)
    s, t = method.student(batch["input"]), method.teacher(batch).logits
    torch.testing.assert_close(value(terms["std"]), standardized_kl(s, t, temperature=2.0).mean())
    assert (terms["ce"].weight, terms["std"].weight) == (0.1, 9.0) and set(terms) == {"ce", "std"}


def test_a_teacher_of_another_range_teaches_the_same() -> None:
    batch, method = image_batch(), image_method("logit_std", temperature=3.0)
    before = value(method.terms(batch, CLOCK)["std"])
    head = method.teacher.module.head
    head.weight.mul_(10.0), head.bias.mul_(10.0).add_(4.0)
    torch.testing.assert_close(value(method.terms(batch, CLOCK)["std"]), before)
