"""Probabilistic knowledge transfer as a method; the loss has its own tests."""

from __future__ import annotations

import torch

from limbeck.engine.method import Clock
from limbeck.vision.losses.relations import pkt
from toolkit import features_of, image_batch, image_method, value


def test_the_term_is_the_loss_of_what_the_heads_read() -> None:
    batch, method = image_batch(), image_method("pkt", beta=7.0)
    terms = method.terms(batch, Clock(0, 10))
    s, t = features_of(method.student, batch)[2], features_of(method.teacher.module, batch)[2]
    torch.testing.assert_close(value(terms["pkt"]), pkt(s, t).mean())
    assert terms["pkt"].weight == 7.0 and set(terms) == {"ce", "pkt"} and int(terms["ce"].count) == 5
