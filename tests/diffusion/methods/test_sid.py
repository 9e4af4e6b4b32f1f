"""SiD: its loss against the divergence that it stands for, and where it drives an affine generator."""

from __future__ import annotations

import pytest
import torch

from limbeck.diffusion.losses import identity_loss
from toolkit.diffusion import CLOCK, MEAN, STD, Affine, FakeScore, batch, descend, gaussian, made, values


def with_exact_critic(student: Affine, **args):
    method = made("sid", gaussian(), student, sigma_min=0.02, sigma_max=5.0, critic={"name": "mlp"}, **args)
    method.learners["fake_score"] = FakeScore(student)
    return method


@pytest.fixture(autouse=True)
def _no_critic(monkeypatch):
    monkeypatch.setattr(
        "limbeck.diffusion.generators.GeneratorMethod.build_critic", lambda self, parts: torch.nn.Identity()
    )


def divergence(a: torch.Tensor, b: torch.Tensor, sigma: float) -> torch.Tensor:
    """E |D_real - D_fake|^2 over the noised law N(b, a^2 + sigma^2), in closed form by its first two moments."""
    real, fake = STD**2 / (STD**2 + sigma**2), a**2 / (a**2 + sigma**2)
    # D_real - D_fake = c + k y with y = x - b.
    k, c = real - fake, MEAN + real * (b - MEAN) - b
    return c**2 + k**2 * (a**2 + sigma**2)


def test_at_one_half_twice_the_gradient_is_that_of_the_divergence():
    sigma, count = 0.7, 400_000
    torch.manual_seed(0)
    student = Affine(0.8, -0.3).double()
    z, eps = torch.randn(2, count, 1, dtype=torch.float64)
    z, eps = (torch.cat([t, -t]) for t in (z, eps))
    samples = student(z)
    x, level = samples + sigma * eps, torch.full((2 * count,), sigma, dtype=torch.float64)
    real, fake = gaussian().double()(x, level), FakeScore(student)(x, level)
    identity_loss(samples, real, fake, 0.5, normalise=False).mean().mul(2).backward()
    a, b = (p.detach().clone().requires_grad_() for p in (student.a, student.b))
    divergence(a, b, sigma).sum().backward()
    torch.testing.assert_close(student.a.grad, a.grad, rtol=0.01, atol=1e-3)
    torch.testing.assert_close(student.b.grad, b.grad, rtol=0.01, atol=1e-3)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_an_affine_generator_comes_to_the_teachers_law(alpha):
    student = Affine(0.8, 0.5)
    descend(with_exact_critic(student, alpha=alpha), 250)
    assert abs(float(student.a.detach())) == pytest.approx(STD, abs=0.06)
    assert float(student.b.detach()) == pytest.approx(MEAN, abs=0.06)


def test_alpha_and_the_weight_change_the_loss():
    x, real, fake = torch.randn(3, 8, 2, generator=torch.Generator().manual_seed(0))
    gap = real - fake
    plain = (gap * (fake - x)).mean(1)
    torch.testing.assert_close(identity_loss(x, real, fake, 1.0, normalise=False), plain)
    torch.testing.assert_close(identity_loss(x, real, fake, 0.5, normalise=False), plain + 0.5 * gap.square().mean(1))
    torch.testing.assert_close(identity_loss(x, real, fake, 1.0), plain / (x - real).abs().mean(1))


def test_the_generator_moves_first_and_then_its_critic():
    updates = list(with_exact_critic(Affine()).updates(batch(), CLOCK))
    assert [u.role for u in updates] == ["student", "fake_score"]
    assert values(updates[0]).keys() == {"identity"}
