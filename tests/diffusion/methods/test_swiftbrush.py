"""SwiftBrush: its direction, its adapters on the teacher, and where it drives an affine generator."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from limbeck.diffusion import mixture
from limbeck.diffusion.methods.swiftbrush import vsd_direction
from limbeck.diffusion.paths import EDM, VPCosine, from_denoised
from limbeck.engine.method import Clock
from limbeck.errors import UserError
from limbeck.models.lora import Adapted
from limbeck.registry import Block, build
from toolkit.diffusion import CLOCK, MEAN, STD, Affine, FakeScore, batch, descend, gaussian, made, student, values


def network(seed: int = 5, **args):
    torch.manual_seed(seed)
    return build("model", Block("mlp_denoiser", {"width": 16, "depth": 1, "sigma_data": 1.5, **args}))


def test_the_direction_is_the_weighted_difference_of_predicted_noises_on_a_variance_preserving_path():
    g = torch.Generator().manual_seed(0)
    x, real, fake = torch.randn(3, 8, 2, generator=g, dtype=torch.float64)
    path, t = VPCosine(), torch.linspace(0.1, 0.9, 8, dtype=torch.float64)
    at = path.at(t)
    eps_real, eps_fake = (from_denoised(path, at.alpha[:, None] * x, t, d, "eps") for d in (real, fake))
    expected = at.sigma[:, None] ** 2 * (eps_real - eps_fake)
    assert_close(vsd_direction(real, fake, path.level(t), 1.0), expected)
    # In another unit of the data it is the same direction.
    assert_close(vsd_direction(3 * real, 3 * fake, 3 * path.level(t), 3.0), 3 * expected)
    assert EDM().level(t).equal(t)


def test_an_affine_generator_comes_to_the_teachers_law_and_without_a_fake_score_to_its_mode(monkeypatch):
    generator = Affine()
    monkeypatch.setattr(
        "limbeck.diffusion.methods.swiftbrush.SwiftBrush.build_critic", lambda self, parts: FakeScore(generator)
    )
    descend(made("swiftbrush", gaussian(), generator, sigma_min=0.02, sigma_max=5.0), 150, rows=128)
    assert abs(float(generator.a.detach())) == pytest.approx(STD, abs=0.05)
    assert float(generator.b.detach()) == pytest.approx(MEAN, abs=0.05)
    seeking = Affine()
    descend(made("swiftbrush", gaussian(), seeking, sigma_min=0.02, sigma_max=5.0, critic_updates=0), 100, rows=128)
    assert abs(float(seeking.a.detach())) < 0.1
    assert float(seeking.b.detach()) == pytest.approx(MEAN, abs=0.05)


def test_the_fake_score_starts_as_the_teacher_and_only_its_adapters_learn():
    teacher = network()
    method = made("swiftbrush", teacher, student(), lora_rank=2)
    critic = method.learners["fake_score"]
    assert isinstance(critic, Adapted)
    x, sigma = torch.randn(8, 2), torch.full((8,), 0.7)
    assert_close(critic(x, sigma), teacher(x, sigma))
    assert not any(a is b for a in critic.parameters() for b in teacher.parameters())
    generator, learning = method.updates(batch(), CLOCK)
    assert values(generator) == {"vsd": 0.0}  # both scores are one
    learning.evaluate()["denoising"].sum.backward()
    learnt = {n for n, p in critic.named_parameters() if p.grad is not None}
    assert learnt and all(".lora_" in n for n in learnt)


def test_guidance_is_the_teachers_alone():
    teacher = network(classes=4)
    net = Block("mlp_denoiser", {"width": 16, "depth": 1, "sigma_data": 1.5, "classes": 4})
    plain, guided = (made("swiftbrush", teacher, student(net), guidance=w) for w in (1.0, 3.0))
    at = plain.noised(torch.randn(64, 2), torch.arange(64) % 4, batch(), Clock(0, 1), "x")
    (a, fake), (b, same) = plain.estimates(at), guided.estimates(at)
    free = teacher(at.x, at.sigma)
    assert_close(b - free, 3 * (a - free), atol=1e-4, rtol=1e-4)
    assert_close(fake, same)


def test_an_exact_teacher_has_nothing_to_adapt():
    with pytest.raises(UserError, match="critic"):
        made("swiftbrush", mixture.ring(4, 2.0, 0.3).float(), student())
