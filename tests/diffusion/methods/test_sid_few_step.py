"""Few-step SiD: the identity loss at every step, where a step is driven, and guidance of the critic."""

from __future__ import annotations

import pytest
import torch

from limbeck.diffusion import mixture
from limbeck.diffusion.generators import Noised
from limbeck.engine.method import Clock
from limbeck.errors import UserError
from limbeck.registry import Block
from toolkit.diffusion import CLOCK, MEAN, STD, Affine, FakeScore, batch, descend, gaussian, made, student, values


def conditional(**args):
    torch.manual_seed(0)
    net = Block("mlp_denoiser", {"width": 16, "depth": 1, "sigma_data": 1.5, "classes": 4})
    return made("sid_few_step", mixture.ring(4, 2.0, 0.3, classes=4).float(), student(net), **args)


def test_of_one_step_it_is_sid():
    teacher = mixture.ring(4, 2.0, 0.3).float()
    found = {}
    for name in ("sid", "sid_few_step"):
        torch.manual_seed(0)
        found[name] = [values(u) for u in made(name, teacher, student()).updates(batch(), CLOCK)]
    assert found["sid"] == found["sid_few_step"]


def test_an_affine_generator_comes_to_the_teachers_law(monkeypatch):
    generator = Affine(0.8, 0.5)
    monkeypatch.setattr(
        "limbeck.diffusion.generators.GeneratorMethod.build_critic", lambda self, parts: FakeScore(generator)
    )
    descend(made("sid_few_step", gaussian(), generator, sigma_min=0.02, sigma_max=5.0), 200)
    assert abs(float(generator.a.detach())) == pytest.approx(STD, abs=0.08)
    assert float(generator.b.detach()) == pytest.approx(MEAN, abs=0.08)


def test_the_sample_is_the_estimate_after_a_random_step_with_a_gradient_of_that_step_alone():
    generator = student(nfe=3)
    method = made("sid_few_step", mixture.ring(4, 2.0, 0.3).float(), generator)
    depths = set()
    for k in range(12):
        called: list[bool] = []
        hook = generator.net.register_forward_hook(lambda *_, called=called: called.append(torch.is_grad_enabled()))
        method.generate(batch(), Clock(k, 12), "generator")
        hook.remove()
        assert called == [False] * (len(called) - 1) + [True]
        depths.add(len(called))
    assert depths == {1, 2, 3}


def test_with_zero_guidance_the_critic_is_asked_without_its_class():
    method = conditional(critic_guidance=0.0, fake_guidance=0.0)
    x, sigma = torch.randn(8, 2), torch.ones(8)
    label = torch.arange(8) % 4
    free = method.learners["fake_score"](x, sigma)
    own = method.fake(Noised(x, sigma, label))
    torch.testing.assert_close(method.guided(Noised(x, sigma, label), 0.0), free)
    torch.testing.assert_close(method.guided(Noised(x, sigma, label), -1.0), 2 * free - own)
    assert not torch.allclose(free, own)


def test_each_scale_has_its_own_place():
    base = [values(u) for u in conditional().updates(batch(), CLOCK)]
    critic = [values(u) for u in conditional(critic_guidance=0.0).updates(batch(), CLOCK)]
    fake = [values(u) for u in conditional(fake_guidance=0.0).updates(batch(), CLOCK)]
    teacher = [values(u) for u in conditional(guidance=3.0).updates(batch(), CLOCK)]
    assert [a == b for a, b in zip(base, critic, strict=True)] == [True, False]
    assert [a == b for a, b in zip(base, fake, strict=True)] == [False, True]
    assert [a == b for a, b in zip(base, teacher, strict=True)] == [False, True]


def test_guidance_without_classes_is_refused():
    with pytest.raises(UserError, match="classes"):
        made("sid_few_step", mixture.ring(4, 2.0, 0.3).float(), student(), fake_guidance=2.0)
