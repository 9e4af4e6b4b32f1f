"""The hybrid sampler: who is called where, what it costs, and the variance that each step decides."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.diffusion import samplers
from limbeck.diffusion.few_step import FewStep, few_levels
from limbeck.diffusion.hybrid import Hybrid
from limbeck.diffusion.metrics.decisions import variance, variance_by_step
from limbeck.metrics.base import Evaluation
from toolkit.diffusion import STD, gaussian

LEVELS = few_levels(4, 0.02, 10.0)


class Watched(nn.Module):
    """A denoiser that notes the levels it is asked at."""

    shape, classes = (1,), None

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.levels: list[float] = []

    def forward(self, x, sigma, label=None):
        self.levels.append(float(sigma[0]))
        return self.inner(x, sigma)


def hybrid(rule="renoise", **args) -> Hybrid:
    return Hybrid(Watched(gaussian()), Watched(gaussian()), LEVELS, rule, sigma_min=0.02, **args).eval()


@pytest.mark.parametrize(("first", "fine"), [(1, 1), (1, 3), (2, 4)])
def test_the_base_goes_first_and_the_student_from_there(first, fine):
    model = hybrid(first=first, fine=fine)
    model(torch.randn(3, 4, 1))
    assert model.base.levels == pytest.approx(samplers.log_grid(fine, LEVELS[0], LEVELS[first])[:-1].tolist())
    assert model.net.levels == pytest.approx(LEVELS[first:])
    assert model.nfe == len(model.base.levels) + len(model.net.levels)


@pytest.mark.parametrize("rule", ["renoise", "ode"])
def test_in_training_and_without_a_first_step_it_is_the_generator_alone(rule):
    alone = FewStep(gaussian(), LEVELS, rule, sigma_min=0.02)
    z = torch.randn(5, *alone.noise_shape)
    for model in (hybrid(rule, first=2).train(), hybrid(rule, first=0)):
        torch.testing.assert_close(model(z), alone(z))
        assert (model.nfe, model.noise_shape) == (alone.nfe, alone.noise_shape)
    assert not torch.allclose(hybrid(rule, first=2)(z), alone(z))


def test_the_noise_of_the_later_steps_is_that_of_the_generator():
    model, z = hybrid(first=2, fine=5), torch.randn(6, 4, 1)
    grid = samplers.log_grid(5, LEVELS[0], LEVELS[2])
    there = samplers.dpmpp_2m(gaussian(), LEVELS[0] * z[:, 0], grid).samples
    half = gaussian()(there, LEVELS[2]) + LEVELS[3] * z[:, 3]
    torch.testing.assert_close(model(z), gaussian()(half, LEVELS[3]))
    seen = model.visits(z)
    assert [level for level, _ in seen] == pytest.approx([LEVELS[0], LEVELS[2], LEVELS[3], 0.0])
    torch.testing.assert_close(seen[1][1], there)


def test_the_variance_that_is_decided_follows_the_law_of_total_variance():
    """Of one Gaussian ``Var E[x0 | x] = v^2 / (v + s^2)`` at level s: the data's variance less what is still open."""
    found = variance_by_step(Evaluation(gaussian()), samples=20_000, steps=48, sigma_min=0.02, sigma_max=10.0)
    levels = samplers.karras_grid(48, 0.02, 10.0)[:-1]
    exact = STD**4 / (STD**2 + levels**2)
    measured = torch.tensor(found.details["variance_by_step"], dtype=torch.float64) * found.values["sample_variance"]
    torch.testing.assert_close(measured, exact, rtol=0.1, atol=2e-3)
    assert found.values["sample_variance"] == pytest.approx(STD**2, rel=0.05)
    assert found.values["decided_first"] == pytest.approx(STD**2 / (STD**2 + 100), rel=0.1)


def test_every_call_of_a_generator_is_seen_in_order():
    model = hybrid(first=1, fine=3)
    found = variance_by_step(Evaluation(model), samples=500)
    assert len(found.details["variance_by_step"]) == model.nfe == 6
    assert found.details["variance_by_step"][-1] == pytest.approx(1.0)
    assert not model.net._forward_hooks


def test_variance_within_classes_leaves_out_what_lies_between_them():
    x = torch.tensor([[0.0], [2.0], [10.0], [12.0]])
    assert variance(x, torch.tensor([0, 0, 1, 1])) == pytest.approx(1.0)
    assert variance(x) == pytest.approx(26.0)
