"""Visited states: those of the sampler itself, each with its own strength, and the metric on them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.diffusion import mixture, samplers
from limbeck.diffusion.few_step import FewStep
from limbeck.diffusion.guidance import Guided
from limbeck.diffusion.metrics.visits import visited_error
from limbeck.diffusion.visited import joined, visit
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.metrics.base import Evaluation

LAW = mixture.ring(4, 2.0, 0.3, classes=2).float()
GRID = {"sigma_min": 0.02, "sigma_max": 10.0}
Z = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
LABEL, SCALE = torch.arange(6) % 2, torch.linspace(1, 5, 6)


class Told(nn.Module):
    """The guided mixture as a network; ``off`` is added to its strength."""

    shape, classes, guided, sigma_data = (2,), 2, True, 1.5

    def __init__(self, off: float = 0.0) -> None:
        super().__init__()
        self.off = off

    def forward(self, x, sigma, label=None, *, scale):
        return Guided(LAW, (scale + self.off)[:, None])(x, sigma, label)


def test_states_are_those_on_the_way_to_the_guided_samplers_samples():
    found = visit(LAW, Z, LABEL, SCALE, steps=12, **GRID)
    assert found.x.shape == (6, 12, 2)
    torch.testing.assert_close(found.x[:, 0], 10 * Z)
    whole = samplers.sample(Guided(LAW, SCALE[:, None]), Z, steps=12, label=LABEL, **GRID).samples
    torch.testing.assert_close(found.target[:, -1], whole)  # the last step goes to the estimate itself
    x, sigma, label, scale, target = found.at(torch.tensor([4, 1]), torch.tensor([3, 7]))
    torch.testing.assert_close(target, Guided(LAW, scale[:, None])(x, sigma, label))
    assert scale.tolist() == [SCALE[4], SCALE[1]]


def test_parts_join_in_order():
    cut = joined([visit(LAW, Z[k], LABEL[k], SCALE[k], steps=3, **GRID) for k in (slice(0, 2), slice(2, 6))])
    whole = visit(LAW, Z, LABEL, SCALE, steps=3, **GRID)
    for one, other in zip(cut, whole, strict=True):
        torch.testing.assert_close(one, other)


def test_the_metric_is_the_share_of_guidance_that_is_missed():
    def error(off, **args):
        model, teacher = FewStep(Told(off), [10.0]), Teacher(LAW, {"denoiser"}, "teacher")
        return visited_error(Evaluation(model, teacher=teacher), samples=40, steps=6, **args).values

    assert error(0.0)["visited_error"] == pytest.approx(0, abs=1e-5)
    # Off by 1/2 where guidance by 3 adds 2 differences of the estimates: a quarter is missed.
    assert error(-0.5, scales=(3.0,))["visited_error"] == pytest.approx(0.25, rel=1e-4)
    both = error(-0.5, scales=(2.0, 5.0))
    assert both["visited_error_strong"] == pytest.approx(0.125, rel=1e-4)
    assert both["visited_error_strong"] < both["visited_error"] < 0.5
    with pytest.raises(UserError, match="classes"):
        visited_error(Evaluation(FewStep(Told(), [10.0])))
