"""DIST as a method; the losses have their own tests."""

from __future__ import annotations

import torch

from limbeck.engine.method import Clock
from limbeck.vision.losses.logits import dist_inter, dist_intra
from toolkit import image_batch, image_method, value


def test_the_terms_are_both_relations_of_the_tempered_probabilities() -> None:
    batch, method = image_batch(), image_method("dist", beta=3.0, gamma=0.5, temperature=2.0)
    terms = method.terms(batch, Clock(0, 10))
    s, t = method.student(batch["input"]), method.teacher(batch).logits
    torch.testing.assert_close(value(terms["inter"]), dist_inter(s, t, temperature=2.0).mean())
    torch.testing.assert_close(value(terms["intra"]), dist_intra(s, t, temperature=2.0).mean())
    assert (terms["inter"].weight, terms["intra"].weight) == (3.0, 0.5)
    assert int(terms["ce"].count) == 5 and terms["ce"].weight == 1.0 and set(terms) == {"ce", "inter", "intra"}


def test_the_defaults_are_those_for_cifar() -> None:
    method = image_method("dist")
    assert (method.beta, method.gamma, method.temperature) == (2.0, 2.0, 4.0)
