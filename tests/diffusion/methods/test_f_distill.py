"""f-distill: each sample's weight with the exact ratio, where each divergence drives an affine generator."""

from __future__ import annotations

import pytest
import torch

from limbeck.errors import UserError
from toolkit.diffusion import CLOCK, MEAN, STD, Affine, FakeScore, batch, descend, gaussian, made


class Known(FakeScore):
    """The exact fake score with a place for a head to look at."""

    features_at = "nothing"

    def __init__(self, student: Affine) -> None:
        super().__init__(student)
        self.nothing = torch.nn.Identity()

    def forward(self, x, sigma):
        return self.nothing(super().forward(x, sigma))


def with_exact_critic_and_ratio(student: Affine, monkeypatch, **args):
    """Noised at a level, both laws are Gaussian: the discriminator's best logit in closed form."""
    monkeypatch.setattr("limbeck.diffusion.generators.GeneratorMethod.build_critic", lambda self, parts: Known(student))
    grid = {"sigma_min": 0.02, "sigma_max": 5.0, "t_min": 0.5}
    method = made("f_distill", gaussian(), student, gan_weight=0.0, **grid, **args)

    def logit(at):
        a, b, variance = student.a.detach(), student.b.detach(), at.sigma[:, None] ** 2
        real = torch.distributions.Normal(MEAN, (STD**2 + variance).sqrt()).log_prob(at.x)
        return (real - torch.distributions.Normal(b, (a**2 + variance).sqrt()).log_prob(at.x)).squeeze(1)

    method.logit = logit
    return method


def pull(row: int, monkeypatch, **args) -> tuple[float, float]:
    """The gradient in the shift for one sample, and the ratio of densities there."""
    student = Affine(0.8, 0.4)
    method = with_exact_critic_and_ratio(student, monkeypatch, log_ratio_max=1e4, **args)
    seen = []
    estimates = method.estimates
    method.estimates = lambda at: seen.append(at) or estimates(at)
    next(iter(method.updates(batch(row, row + 1), CLOCK))).evaluate()["distribution"].sum.backward()
    return float(student.b.grad), float(method.logit(seen[0]).exp())


@pytest.mark.parametrize("row", range(4))
def test_the_weight_of_a_sample_is_the_divergences(row, monkeypatch):
    plain, r = pull(row, monkeypatch, divergence="reverse_kl")
    assert pull(row, monkeypatch, divergence="forward_kl")[0] == pytest.approx(r * plain, rel=1e-3)
    assert pull(row, monkeypatch, divergence="js")[0] == pytest.approx(2 * r / (1 + r) * plain, rel=1e-3)


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "js"])
def test_an_affine_generator_comes_to_the_teachers_law(divergence, monkeypatch):
    student = Affine(0.7, 0.7)
    descend(with_exact_critic_and_ratio(student, monkeypatch, divergence=divergence), 300)
    assert abs(float(student.a.detach())) == pytest.approx(STD, abs=0.08)
    assert float(student.b.detach()) == pytest.approx(MEAN, abs=0.06)


def test_it_is_nothing_without_its_discriminator(monkeypatch):
    with pytest.raises(UserError, match="discriminator_weight"):
        with_exact_critic_and_ratio(Affine(), monkeypatch, discriminator_weight=0.0)
