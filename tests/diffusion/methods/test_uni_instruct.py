"""Uni-Instruct: the exact gradient moves the weights too, and where an affine generator is driven."""

from __future__ import annotations

import pytest
import torch

from limbeck.diffusion.divergences import weighted_fisher
from toolkit.diffusion import CLOCK, MEAN, STD, Affine, FakeScore, batch, descend, gaussian, made


class Known(FakeScore):
    """The exact fake score with a place for a head to look at."""

    features_at = "nothing"

    def __init__(self, student: Affine) -> None:
        super().__init__(student)
        self.nothing = torch.nn.Identity()

    def forward(self, x, sigma):
        return self.nothing(super().forward(x, sigma))


def exact(student: Affine, monkeypatch, **args):
    monkeypatch.setattr("limbeck.diffusion.generators.GeneratorMethod.build_critic", lambda self, parts: Known(student))
    method = made(
        "uni_instruct", gaussian(), student, sigma_min=0.02, sigma_max=5.0, gan_weight=0.0, **{"t_min": 0.5, **args}
    )

    def logit(at):
        a, b, variance = student.a.detach(), student.b.detach(), at.sigma[:, None] ** 2
        real = torch.distributions.Normal(MEAN, (STD**2 + variance).sqrt()).log_prob(at.x)
        return (real - torch.distributions.Normal(b, (a**2 + variance).sqrt()).log_prob(at.x)).squeeze(1)

    method.logit = logit
    return method


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "js", "jeffreys"])
@pytest.mark.parametrize("gradient", ["exact", "detached"])
def test_an_affine_generator_comes_to_the_teachers_law(gradient, divergence, monkeypatch):
    student = Affine(0.75, 0.6)
    descend(exact(student, monkeypatch, divergence=divergence, gradient=gradient), 150)
    assert abs(float(student.a.detach())) == pytest.approx(STD, abs=0.1)
    assert float(student.b.detach()) == pytest.approx(MEAN, abs=0.1)


def gradient(student: Affine, method) -> torch.Tensor:
    term = next(iter(method.updates(batch(0, 512), CLOCK))).evaluate()["fisher"]
    found = torch.autograd.grad(term.sum / term.count, (student.a, student.b))
    return torch.cat(found)


def test_of_the_reverse_kl_it_is_score_identity_distillation(monkeypatch):
    student = Affine(0.8, 0.4)
    found = {g: gradient(student, exact(student, monkeypatch, divergence="reverse_kl", gradient=g)) for g in GRADIENTS}
    for name, alpha, factor in (("exact", 0.5, 2), ("detached", 1.0, 1)):
        sid = made("sid", gaussian(), student, sigma_min=0.02, sigma_max=5.0, t_min=0.5, alpha=alpha)
        term = next(iter(sid.updates(batch(0, 512), CLOCK))).evaluate()["identity"]
        expected = torch.cat(torch.autograd.grad(term.sum / term.count, (student.a, student.b)))
        torch.testing.assert_close(found[name], factor * expected, rtol=1e-4, atol=1e-5)


GRADIENTS = ("exact", "detached")


def test_the_exact_gradient_also_moves_the_weights(monkeypatch):
    """Where the ratio is held, the divergence's own gradient is missed: of the forward KL by a factor for the scale."""
    student = Affine(0.8, 0.4)
    whole = gradient(student, exact(student, monkeypatch, gradient="exact", log_ratio_max=1e4))
    monkeypatch.setattr(
        "limbeck.diffusion.methods.uni_instruct.weighted_fisher",
        lambda x, real, fake, r, kind: weighted_fisher(x, real, fake, r.detach(), kind),
    )
    held = gradient(student, exact(student, monkeypatch, gradient="exact", log_ratio_max=1e4))
    assert float((whole - held).abs().max() / whole.abs().max()) > 0.1
