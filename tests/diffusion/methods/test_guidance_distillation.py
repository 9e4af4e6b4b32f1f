"""Guidance distillation: the target by its formula, what an exact network costs, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.diffusion import mixture
from limbeck.diffusion.few_step import FewStep
from limbeck.diffusion.guidance import Guided
from limbeck.diffusion.metrics.laws import guidance_error
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.metrics.base import Evaluation
from limbeck.registry import Block
from toolkit.diffusion import CLOCK, batch, made, student, values

LAW = mixture.ring(4, 2.0, 0.3, classes=2).float()


class Told(nn.Module):
    """The guided mixture as a network that is told the strength; ``off`` is added to it."""

    shape, classes, guided, sigma_data = (2,), 2, True, 1.5

    def __init__(self, off: float = 0.0) -> None:
        super().__init__()
        self.off = off

    def forward(self, x, sigma, label=None, *, scale=None):
        strength = torch.ones_like(sigma) if scale is None else scale
        return Guided(LAW, (strength + self.off)[:, None])(x, sigma, label)


def method(net: nn.Module | None = None, **args):
    generator = FewStep(net, [10.0], sigma_min=0.02) if net is not None else student(
        Block("mlp_denoiser", {"width": 16, "classes": 2, "guided": True})
    )  # fmt: skip
    return made("guidance_distillation", LAW, generator, **args)


def cost(**args) -> float:
    net = args.pop("net", Told())
    (update,) = method(net, **args).updates(batch(0, 256), CLOCK)
    return values(update)["guidance"] / 256


def test_the_guided_teacher_itself_costs_nothing():
    assert cost() == pytest.approx(0, abs=1e-8)
    assert cost(net=Told(0.5)) > 1e-3
    assert cost(told=False) > 1e-3
    assert cost(told=False, scale_min=1.0, scale_max=1.0) == pytest.approx(0, abs=1e-8)


def test_each_sample_has_its_own_strength():
    x, sigma, label = torch.randn(3, 2), torch.ones(3), torch.tensor([0, 1, 0])
    scale = torch.tensor([0.0, 1.0, 4.0])
    found = method().guided(x, sigma, label, scale)
    free, own = LAW(x, sigma), LAW(x, sigma, label)
    torch.testing.assert_close(found, free + scale[:, None] * (own - free))


def test_low_noise_is_weighed_by_the_signal_to_noise_ratio():
    sigma = 0.5
    ours = method(Told(0.5), mean=-0.6931472, std=1e-6, scale_min=2.0, scale_max=2.0)
    (update,) = ours.updates(batch(0, 64), CLOCK)
    x0, label = ours.clean(batch(0, 64), CLOCK, "data")
    x, at = x0 + sigma * CLOCK.normal(torch.arange(64), (2,), "noise"), torch.full((64,), sigma)
    error = (0.5 * (LAW(x, at, label) - LAW(x, at))).square().mean(dim=1).sum()
    assert values(update)["guidance"] == pytest.approx(float(error) / sigma**2, rel=1e-3)


def test_the_metric_is_zero_for_the_exact_network_alone():
    def error(off):
        model = FewStep(Told(off), [10.0])
        return guidance_error(Evaluation(model, teacher=Teacher(LAW, {"denoiser"}, "teacher")), samples=200).values

    assert error(0.0)["guidance_error"] == pytest.approx(0, abs=1e-5)
    assert error(0.5)["guidance_error"] > 0.01


@pytest.mark.parametrize(
    ("net", "says"),
    [({"width": 8, "guided": True}, "classes"), ({"width": 8, "classes": 2}, "guided: true")],
)
def test_a_student_that_cannot_is_refused(net, says):
    with pytest.raises(UserError, match=says):
        made("guidance_distillation", LAW, student(Block("mlp_denoiser", net)))
