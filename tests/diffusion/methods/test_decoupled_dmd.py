"""Decoupled DMD: its two terms sum to guided distribution matching, where augmentation points, and its levels."""

from __future__ import annotations

import pytest
import torch

from limbeck.diffusion import mixture
from limbeck.diffusion.generators import Noised
from limbeck.diffusion.guidance import Guided
from limbeck.diffusion.losses import matching_direction
from limbeck.diffusion.methods.decoupled_dmd import augmentation_direction
from limbeck.engine.method import Clock
from limbeck.errors import UserError
from limbeck.registry import Block
from toolkit.diffusion import CLOCK, batch, made, student, values

TEACHER = mixture.ring(4, 2.0, 0.3, classes=2)


def decoupled(nfe: int = 1, **args):
    torch.manual_seed(0)
    net = Block("mlp_denoiser", {"width": 16, "depth": 1, "sigma_data": 1.5, "classes": 2})
    return made("decoupled_dmd", mixture.ring(4, 2.0, 0.3, classes=2).float(), student(net, nfe=nfe), **args)


def test_the_terms_sum_to_matching_with_a_guided_teacher():
    torch.manual_seed(0)
    samples, x, fake = torch.randn(3, 32, 2, dtype=torch.float64)
    sigma, label = torch.full((32,), 0.8, dtype=torch.float64), torch.arange(32) % 2
    real, free = TEACHER(x, sigma, label), TEACHER(x, sigma)
    plain = matching_direction(samples, real, fake, normalise=False)
    both = plain + augmentation_direction(samples, real, free, 3.5, normalise=False)
    guided = Guided(TEACHER, 3.5)(x, sigma, label=label)
    torch.testing.assert_close(both, matching_direction(samples, guided, fake, normalise=False))


def test_augmentation_climbs_the_posterior_of_the_class():
    torch.manual_seed(0)
    x = torch.randn(16, 2, dtype=torch.float64, requires_grad=True)
    sigma, label = torch.full((16,), 0.8, dtype=torch.float64), torch.arange(16) % 2
    posterior = TEACHER.log_prob(x, 1.0, sigma, label) - TEACHER.log_prob(x, 1.0, sigma)
    (uphill,) = torch.autograd.grad(posterior.sum(), x)
    direction = augmentation_direction(x.detach(), TEACHER(x, sigma, label), TEACHER(x, sigma), 3.0, normalise=False)
    torch.testing.assert_close(-direction, 2.0 * 0.8**2 * uphill)


def test_augmentation_stays_above_the_level_that_comes_next():
    method = decoupled(nfe=3)
    seen: list[tuple[str, Noised]] = []
    noised = method.noised
    method.noised = lambda *a, **k: seen.append((a[4], noised(*a, **k))) or seen[-1][1]
    stops = set()
    for k in range(12):
        clock = Clock(k, 12)
        stop = method.stop(clock, "generator")
        stops.add(stop)
        seen.clear()
        values(next(iter(method.updates(batch(0, 512), clock))))
        drawn = {name: at.sigma for name, at in seen}
        floor = method.student.levels[stop] if stop < 3 else method.sigma_min
        assert float(drawn["augmentation"].min()) >= floor
        assert float(drawn["generator"].min()) < 0.1
    assert stops == {1, 2, 3}


def test_shared_levels_and_weights_change_the_loss():
    def first(**args) -> float:
        return values(next(iter(decoupled(**args).updates(batch(), CLOCK))))["decoupled"]

    base = first()
    assert all(first(**a) != base for a in ({"schedule": "shared"}, {"guidance": 4.0}, {"matching_weight": 0.0}))
    alone = first(guidance=1.0)
    assert alone == first(augmentation_weight=0.0) == first(augmentation_weight=0.0, schedule="shared")


def test_without_classes_it_is_refused():
    with pytest.raises(UserError, match="classes"):
        made("decoupled_dmd", mixture.ring(4, 2.0, 0.3).float(), student())
