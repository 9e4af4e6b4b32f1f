"""SIM: where it drives an affine generator, and that its distance bounds the pull of samples far away."""

from __future__ import annotations

import pytest
import torch

from toolkit.diffusion import CLOCK, MEAN, STD, Affine, FakeScore, batch, descend, gaussian, made


def with_exact_critic(student: Affine, monkeypatch, **args):
    monkeypatch.setattr(
        "limbeck.diffusion.generators.GeneratorMethod.build_critic", lambda self, parts: FakeScore(student)
    )
    return made("sim", gaussian(), student, sigma_min=0.02, sigma_max=5.0, **args)


@pytest.mark.parametrize("distance", ["pseudo_huber", "square"])
def test_an_affine_generator_comes_to_the_teachers_law(distance, monkeypatch):
    student = Affine()
    descend(with_exact_critic(student, monkeypatch, distance=distance), 150)
    assert abs(float(student.a.detach())) == pytest.approx(STD, abs=0.06)
    assert float(student.b.detach()) == pytest.approx(MEAN, abs=0.06)


def pull(shift: float, monkeypatch, **args) -> float:
    """How strongly a generator is pulled that is a shift away."""
    student = Affine(STD, MEAN + shift)
    method = with_exact_critic(student, monkeypatch, **args)
    (term,) = next(iter(method.updates(batch(0, 4096), CLOCK))).evaluate().values()
    (term.sum / term.count).backward()
    return abs(float(student.b.grad))


def test_the_pseudo_huber_distance_pulls_no_harder_from_farther_away(monkeypatch):
    assert pull(20.0, monkeypatch, distance="square") == pytest.approx(
        10 * pull(2.0, monkeypatch, distance="square"), rel=0.05
    )
    assert pull(20.0, monkeypatch) < 1.5 * pull(2.0, monkeypatch)


def test_of_a_small_distance_the_pull_is_that_of_the_square(monkeypatch):
    """``sqrt(|y|^2 + c^2)`` is ``c + |y|^2 / (2 c)`` there."""
    huber = 100.0
    small = pull(0.1, monkeypatch, huber=huber) * 2 * huber
    assert small == pytest.approx(pull(0.1, monkeypatch, distance="square"), rel=1e-3)
    assert torch.isfinite(torch.tensor(small))
