"""Judging what a generator is beside its law: exact functions score as such, and each failure is seen."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.diffusion import mixture
from limbeck.diffusion.idempotent import Idempotent
from limbeck.diffusion.metrics.functions import class_quality, idempotence
from limbeck.engine.teacher import Teacher
from limbeck.metrics.base import Evaluation

LAW = mixture.ring(4, 4.0, 0.3, 2).float()
TEACHER = Teacher(LAW, {"denoiser"}, "teacher")


class Sampler(nn.Module):
    """Exact samples of the class that is asked for, or of the other one."""

    shape, classes = (2,), 2

    def __init__(self, swap: bool) -> None:
        super().__init__()
        self.swap = swap

    def forward(self, noise, label):
        return LAW.sample(len(noise), 7, label=1 - label if self.swap else label).samples


def test_samples_of_another_class_are_seen_though_the_law_of_all_is_right():
    right, wrong = (
        class_quality(Evaluation(model=Sampler(swap), teacher=TEACHER), samples=1000).values["class_energy_distance"]
        for swap in (False, True)
    )
    assert right == pytest.approx(0, abs=0.02)
    assert wrong > 0.5


class Nearest(nn.Module):
    """The point of the ring's circle that is nearest, or the point itself."""

    shape, classes = (2,), None

    def __init__(self, project: bool) -> None:
        super().__init__()
        self.project = project

    def forward(self, x, sigma, label=None):
        means = LAW.means
        return means[torch.cdist(x, means).argmin(dim=1)] if self.project else x


def test_a_projection_is_a_fixed_point_of_itself_and_mends_and_the_identity_mends_nothing():
    found = [
        idempotence(
            Evaluation(model=Idempotent(Nearest(p), [3.0], sigma_min=0.02, sigma_max=5.0), teacher=TEACHER),
            samples=1000,
        ).values
        for p in (True, False)
    ]
    projected, same = found
    assert projected["fixed_point_error"] == same["fixed_point_error"] == same["identity_error"] == 0
    assert projected["identity_error"] == pytest.approx(0.3 / LAW.sigma_data, rel=0.1)
    assert projected["projected_outliers"] == 0 and same["projected_outliers"] > 0.1
    assert idempotence(Evaluation(model=Sampler(False), teacher=TEACHER)).values == {}
