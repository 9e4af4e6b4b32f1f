"""Curriculum temperature as a method."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from limbeck.engine.method import Clock
from limbeck.losses import soft_kl
from toolkit import image_batch, image_method, value

CLOCK = Clock(0, 10, epoch=30)


def gradients(method: Any, clock: Clock) -> dict[str, torch.Tensor]:
    """What the soft targets tell each learner, by role."""
    term = method.terms(image_batch(), clock)["soft"]
    found = {}
    for role, module in method.learners.items():
        parts = torch.autograd.grad(value(term), list(module.parameters()), retain_graph=True)
        found[role] = torch.cat([p.flatten() for p in parts])
    return found


def test_the_temperature_starts_where_the_published_one_does() -> None:
    batch, method = image_batch(), image_method("ctkd")
    terms = method.terms(batch, CLOCK)
    temperature = 1 + 20 * torch.sigmoid(torch.ones(())).item()
    s, t = method.student(batch["input"]), method.teacher(batch).logits
    torch.testing.assert_close(value(terms["soft"]), soft_kl(s, t, temperature=temperature).mean())
    assert (terms["ce"].weight, terms["soft"].weight) == (0.1, 0.9)
    assert list(method.learners) == ["student", "temperature"]


def test_the_student_descends_and_the_temperature_climbs() -> None:
    method, batch = image_method("ctkd"), image_batch()
    found = gradients(method, CLOCK)
    s, t = method.student(batch["input"]), method.teacher(batch).logits
    logit = method.learners["temperature"].value.detach().double().requires_grad_()
    values = (1 + 20 * torch.sigmoid(logit)) ** 2 * _kl(t.double(), s.double(), 1 + 20 * torch.sigmoid(logit))
    (uphill,) = torch.autograd.grad(values.mean(), logit, retain_graph=True)
    torch.testing.assert_close(found["temperature"].double(), -uphill, rtol=2e-2, atol=1e-6)
    plain = torch.autograd.grad(values.mean(), list(method.student.parameters()))
    torch.testing.assert_close(found["student"], torch.cat([p.flatten() for p in plain]), rtol=1e-3, atol=1e-6)


def _kl(t: torch.Tensor, s: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    p = torch.softmax(t / temperature, 1)
    return (p * (p.log() - torch.log_softmax(s / temperature, 1))).sum(1)


def test_the_lesson_grows_harder_along_a_cosine() -> None:
    method = image_method("ctkd", ramp=4.0, strength=2.0)
    assert [method.reversal(e) for e in (1, 3, 9)] == pytest.approx([1.0, 2.0, 2.0])
    assert method.reversal(0) == pytest.approx(1 - 2**-0.5) and image_method("ctkd", ramp=0.0).reversal(0) == 1.0
    early, late = (gradients(method, replace(CLOCK, epoch=e))["temperature"] for e in (1, 3))
    torch.testing.assert_close(2 * early, late)


@pytest.mark.parametrize("temperature_of", ["global", "sample"])
def test_only_the_gradient_of_the_temperature_is_reversed(temperature_of: str) -> None:
    one, other = (image_method("ctkd", temperature_of=temperature_of, strength=k) for k in (1.0, 0.0))
    other.learners["temperature"].load_state_dict(one.learners["temperature"].state_dict())
    a, b = gradients(one, CLOCK), gradients(other, CLOCK)
    torch.testing.assert_close(a["student"], b["student"])
    assert a["temperature"].any() and not b["temperature"].any()


def test_every_sample_may_have_its_own_temperature() -> None:
    method, batch = image_method("ctkd", temperature_of="sample", hidden=5), image_batch()
    module = method.learners["temperature"]
    s, t = method.student(batch["input"]).detach(), method.teacher(batch).logits
    assert module(s, t, 1.0).shape == (6,) and len(module(s, t, 1.0).unique()) == 6
    assert module.net[0].weight.shape == (5, 8)
