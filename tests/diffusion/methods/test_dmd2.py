"""DMD2: where it drives an affine generator, how often its critic learns, and its several steps."""

from __future__ import annotations

import pytest
import torch

from limbeck.diffusion import mixture
from limbeck.engine.method import Clock
from toolkit.diffusion import CLOCK, MEAN, STD, Affine, FakeScore, batch, descend, gaussian, made, student, values


def test_without_its_head_an_affine_generator_comes_to_the_teachers_law(monkeypatch):
    generator = Affine(0.8, 0.5)
    monkeypatch.setattr(
        "limbeck.diffusion.generators.GeneratorMethod.build_critic", lambda self, parts: FakeScore(generator)
    )
    off = {"gan_weight": 0.0, "discriminator_weight": 0.0}
    descend(made("dmd2", gaussian(), generator, sigma_min=0.02, sigma_max=5.0, **off), 150)
    assert abs(float(generator.a.detach())) == pytest.approx(STD, abs=0.05)
    assert float(generator.b.detach()) == pytest.approx(MEAN, abs=0.05)


def test_the_critic_learns_several_times_on_fresh_samples():
    method = made("dmd2", mixture.ring(4, 2.0, 0.3).float(), student())
    updates = list(method.updates(batch(), CLOCK))
    assert len(updates) == 6
    assert len({values(u)["denoising"] for u in updates[1:]}) == 5


def test_a_generator_of_several_steps_learns_at_each_of_them():
    generator = student(nfe=3)
    method = made("dmd2", mixture.ring(4, 2.0, 0.3).float(), generator, critic_updates=1)
    levels = set()
    generator.net.register_forward_pre_hook(lambda _, args: levels.add(round(float(args[1][0]), 4)) or None)
    for k in range(12):
        levels.clear()
        values(next(iter(method.updates(batch(), Clock(k, 12)))))
        assert levels <= {round(v, 4) for v in generator.levels}
    stops = {method.stop(Clock(k, 12), "generator") for k in range(12)}
    assert stops == {1, 2, 3}


def test_its_adversarial_term_is_of_its_own_weight():
    method = made("dmd2", mixture.ring(4, 2.0, 0.3).float(), student(), gan_weight=0.25, discriminator_weight=0.5)
    generator, critic, *_ = method.updates(batch(), CLOCK)
    assert generator.evaluate()["adversarial"].weight == 0.25
    assert critic.evaluate()["discriminator"].weight == 0.5
    assert torch.isfinite(torch.tensor(list(values(generator).values()))).all()
