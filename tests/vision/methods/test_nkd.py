"""Normalised distillation as a method; the loss has its own tests."""

from __future__ import annotations

import torch

from limbeck.engine.method import Clock
from limbeck.vision.losses.logits import nkd
from toolkit import image_batch, image_method


def test_its_terms_sum_to_the_published_loss_over_the_labelled_samples() -> None:
    batch, method = image_batch(), image_method("nkd", gamma=0.7, temperature=3.0)
    terms = method.terms(batch, Clock(0, 10))
    total = sum(t.weight * t.sum / t.count for t in terms.values())
    s, t, labels = method.student(batch["input"]), method.teacher(batch).logits, batch["label"]
    ce = torch.nn.functional.cross_entropy(s, labels)
    own = nkd(s, t, labels, gamma=0.7, temperature=3.0).sum() / 5
    torch.testing.assert_close(total, ce + own)
    assert set(terms) == {"ce", "target", "others"} and {int(t.count) for t in terms.values()} == {5}


def test_the_defaults_are_the_papers() -> None:
    method = image_method("nkd")
    assert (method.gamma, method.temperature, method.ce_weight) == (1.5, 1.0, 1.0)
