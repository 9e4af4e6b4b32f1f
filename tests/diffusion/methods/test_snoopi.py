"""SNOOPI: both scores at the strength that a sample draws, and a goal that no strength moves."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from limbeck.diffusion import mixture
from limbeck.diffusion.mixture import GaussianMixture
from limbeck.errors import UserError
from limbeck.registry import Block, build
from toolkit.diffusion import CLOCK, Affine, batch, descend, made, student

NET = Block("mlp_denoiser", {"width": 16, "depth": 1, "sigma_data": 1.5, "classes": 4})


def lopsided() -> GaussianMixture:
    """Two Gaussians in one dimension, each a class."""
    means, variances = torch.tensor([[1.0], [-1.0]]), torch.tensor([[0.25], [0.09]])
    return GaussianMixture(torch.ones(2), means, variances, torch.tensor([0, 1]))


class TwoClasses(nn.Module):
    """An affine generator for each class."""

    shape, classes, sigma_data = (1,), 2, 1.0

    def __init__(self) -> None:
        super().__init__()
        self.of = nn.ModuleList([Affine(0.4, 0.6), Affine(0.4, -0.6)])

    def forward(self, z, label):
        return torch.where((label == 0)[:, None], self.of[0](z), self.of[1](z))


class OwnLaw(nn.Module):
    """The exact denoiser of :class:`TwoClasses`, given the class or not."""

    def __init__(self, generator: TwoClasses) -> None:
        super().__init__()
        self.of = (generator,)

    def forward(self, x, sigma, label=None):
        a, b = (torch.cat([getattr(g, n).detach() for g in self.of[0].of])[:, None] for n in ("a", "b"))
        return GaussianMixture(torch.ones(2), b, a**2, torch.tensor([0, 1])).float()(x, sigma, label)


@pytest.mark.parametrize("method", ["snoopi", "swiftbrush"])
def test_guiding_both_leaves_the_goal_at_the_conditional_law_and_guiding_one_does_not(method, monkeypatch):
    generator = TwoClasses()
    monkeypatch.setattr(
        "limbeck.diffusion.methods.swiftbrush.SwiftBrush.build_critic", lambda self, parts: OwnLaw(generator)
    )
    given = {"guidance_max": 4.0} if method == "snoopi" else {}
    descend(made(method, lopsided(), generator, sigma_min=0.02, sigma_max=5.0, guidance=2.0, **given), 100, 0.04, 128)
    found = [(abs(float(g.a.detach())), float(g.b.detach())) for g in generator.of]
    exact = [(0.5, 1.0), (0.3, -1.0)]
    far = max(abs(x - y) for one, other in zip(found, exact, strict=True) for x, y in zip(one, other, strict=True))
    assert far < 0.08 if method == "snoopi" else far > 0.15, found


def test_each_sample_draws_its_own_strength_for_both_scores():
    torch.manual_seed(0)
    teacher = build("model", NET)
    method = made("snoopi", teacher, student(NET), guidance=2.0, guidance_max=6.0)
    method.learners["fake_score"] = lambda x, sigma, label=None: 2 * teacher(x, sigma, label)
    at = method.noised(torch.randn(64, 2), torch.arange(64) % 4, batch(), CLOCK, "x")
    real, fake = method.compared(at, at.x, batch(), CLOCK)
    assert_close(fake, 2 * real)
    free, given = teacher(at.x, at.sigma), teacher(at.x, at.sigma, at.label)
    scale = ((real - free) / (given - free)).mean(1).detach()
    assert float(scale.min()) >= 1.99 and float(scale.max()) <= 6.01 and float(scale.std()) > 0.8


def test_the_class_is_hidden_from_the_critic_for_a_share():
    seen = []
    method = made("snoopi", build("model", NET), student(NET), drop_label=0.25)
    method.learners["fake_score"].register_forward_pre_hook(
        lambda _, args, given: seen.append(given["label"]), with_kwargs=True
    )
    method.critic_loss(batch(0, 2000), CLOCK, "critic")
    assert float((seen[0] == -1).float().mean()) == pytest.approx(0.25, abs=0.04)


def test_without_classes_there_is_nothing_to_guide():
    teacher = build("model", Block("mlp_denoiser", {"width": 16, "depth": 1}))
    with pytest.raises(UserError, match="classes"):
        made("snoopi", teacher, student(), guidance=1.0)
    with pytest.raises(UserError, match="critic"):
        made("snoopi", mixture.ring(4, 2.0, 0.3, 4).float(), student(NET))
