"""Attention transfer as a method; the loss has its own tests."""

from __future__ import annotations

import torch

from limbeck.engine.method import Clock
from toolkit import features_of, image_batch, image_method, value

CLOCK = Clock(0, 10)


def q(feature: torch.Tensor, p: float) -> torch.Tensor:
    """The paper's attention map of one sample [C, H, W]."""
    summed = torch.zeros(feature.shape[1:], dtype=torch.float64)
    for channel in feature.double():
        summed += channel.abs() ** p
    return summed.flatten() / summed.flatten().norm()


def test_the_term_is_the_papers_sum_over_stages() -> None:
    batch, method = image_batch(), image_method("at", p=1.5, beta=7.0)
    terms = method.terms(batch, CLOCK)
    s, t = features_of(method.student, batch)[:2], features_of(method.teacher.module, batch)[:2]
    wanted = torch.zeros(6, dtype=torch.float64)
    for a, b in zip(s, t, strict=True):
        for i in range(6):
            wanted[i] += (q(a[i], 1.5) - q(b[i], 1.5)).square().mean()
    torch.testing.assert_close(value(terms["at"]).double(), wanted.mean(), rtol=1e-5, atol=1e-8)
    assert terms["at"].weight == 7.0 and set(terms) == {"ce", "at"} and int(terms["ce"].count) == 5


def test_channels_and_grids_may_differ() -> None:
    method = image_method("at", student_layers=["stages.0"], teacher_layers=["stages.1"])
    assert value(method.terms(image_batch(), CLOCK)["at"]) > 0
