"""Diff-Instruct: its gradient against that of the exact integral KL, and where it drives an affine generator."""

from __future__ import annotations

import pytest
import torch

from toolkit.diffusion import CLOCK, MEAN, STD, Affine, FakeScore, batch, descend, gaussian, made, values


def with_exact_critic(student: Affine, monkeypatch, **args):
    monkeypatch.setattr(
        "limbeck.diffusion.generators.GeneratorMethod.build_critic", lambda self, parts: FakeScore(student)
    )
    return made("diff_instruct", gaussian(), student, sigma_min=0.02, sigma_max=5.0, **args)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_the_gradient_is_that_of_the_integral_kl(power, monkeypatch):
    student, rows = Affine(0.8, 0.4), 200_000
    method = with_exact_critic(student, monkeypatch, level_power=power)
    (term,) = next(iter(method.updates(batch(0, rows), CLOCK))).evaluate().values()
    (term.sum / rows).backward()
    a, b = (p.detach().double().requires_grad_() for p in (student.a, student.b))
    sigma = method.levels(0.02 + 0.96 * (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000)
    p, q = STD**2 + sigma**2, a**2 + sigma**2
    kl = 0.5 * ((p / q).log() + (q + (b - MEAN) ** 2) / p - 1)
    (sigma**power * kl).mean().backward()
    torch.testing.assert_close(student.a.grad.double(), a.grad, rtol=0.04, atol=2e-3)
    torch.testing.assert_close(student.b.grad.double(), b.grad, rtol=0.04, atol=2e-3)


def test_an_affine_generator_comes_to_the_teachers_law(monkeypatch):
    student = Affine()
    descend(with_exact_critic(student, monkeypatch), 150)
    assert abs(float(student.a.detach())) == pytest.approx(STD, abs=0.05)
    assert float(student.b.detach()) == pytest.approx(MEAN, abs=0.05)


def test_the_generator_moves_first_and_then_its_critic(monkeypatch):
    updates = list(with_exact_critic(Affine(), monkeypatch).updates(batch(), CLOCK))
    assert [u.role for u in updates] == ["student", "fake_score"]
    assert values(updates[0]).keys() == {"integral_kl"}
