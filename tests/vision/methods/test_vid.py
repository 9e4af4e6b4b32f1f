"""Variational distillation as a method; the likelihood has its own tests."""

from __future__ import annotations

import pytest
import torch

from limbeck.engine.method import Clock
from limbeck.registry import Block, build
from toolkit import features_of, image_batch, image_method, value

CLOCK = Clock(0, 10)


def test_the_term_is_the_papers_sum_over_stages() -> None:
    batch, method = image_batch(), image_method("vid", beta=7.0, variance=2.0)
    assert list(method.learners) == ["student", "gaussians"]
    gaussians = method.learners["gaussians"]
    with torch.no_grad():
        gaussians.spreads[0] += torch.linspace(-1, 1, 6)
    term = method.terms(batch, CLOCK)["vid"]
    wanted = torch.zeros(())
    s, t = features_of(method.student, batch), features_of(method.teacher.module, batch)
    for i in range(2):
        mean = gaussians.means[i](s[i])
        variance = torch.log1p(gaussians.spreads[i].exp()) + 1e-5
        for c in range(t[i].shape[1]):
            gaps = (t[i][:, c] - mean[:, c]).square() / variance[c] + variance[c].log()
            wanted = wanted + 0.5 * gaps.mean() / t[i].shape[1]
    torch.testing.assert_close(value(term), wanted)
    assert term.weight == 7.0
    assert gaussians.spreads[1].exp().log1p().tolist() == pytest.approx([2.0] * 12, rel=1e-4)


def test_the_variance_learns_the_error_of_the_mean() -> None:
    """With the mean held, the bound is tightest where each variance is the mean square of the error."""
    batch, method = image_batch(), image_method("vid", student_layers=["stages.1"], teacher_layers=["stages.1"])
    gaussians = method.learners["gaussians"]
    mean = gaussians.means[0](features_of(method.student, batch)[1])
    errors = (features_of(method.teacher.module, batch)[1] - mean).square().mean((0, 2, 3)).detach()
    with torch.no_grad():
        gaussians.spreads[0].copy_(torch.log(torch.expm1(errors - 1e-5)))
    value(method.terms(batch, CLOCK)["vid"]).backward()
    torch.testing.assert_close(gaussians.spreads[0].grad, torch.zeros(12), atol=1e-5, rtol=0)


def test_a_variance_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="above"):
        build("method", Block("vid", {"variance": 0.0}))
