"""Judging generators against the exact law: the exact sampler is best, and each failure is seen by its number."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from limbeck.diffusion import mixture
from limbeck.diffusion.metrics.laws import mixture_quality
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.metrics.base import Evaluation
from limbeck.registry import find

LAW = mixture.ring(8, 4.0, 0.3).float()


class Fixed(nn.Module):
    """A generator that gives prepared samples, whatever the noise."""

    def __init__(self, points: torch.Tensor) -> None:
        super().__init__()
        self.points = points
        self.at = 0

    def forward(self, noise):
        self.at += len(noise)
        return self.points[self.at - len(noise) : self.at]


def judge(points: torch.Tensor):
    teacher = Teacher(LAW, {"denoiser"}, "teacher")
    return mixture_quality(Evaluation(model=Fixed(points), teacher=teacher), samples=len(points)).values


EXACT = judge(LAW.sample(2000, seed=9).samples)


def test_exact_samples_score_as_such():
    assert EXACT["energy_distance"] == pytest.approx(0, abs=0.01)
    assert EXACT["mmd"] == pytest.approx(0, abs=0.01)
    assert EXACT["mode_coverage"] == 1
    assert EXACT["mode_tv"] < 0.06
    assert EXACT["outlier_rate"] == pytest.approx(0.011, abs=0.01)
    assert EXACT["oracle_nll"] == pytest.approx(0, abs=0.06)
    assert EXACT["nfe"] == 1


def test_a_dropped_mode_shows_in_coverage_balance_and_distance():
    drawn = LAW.sample(2000, seed=9)
    scores = judge(drawn.samples[drawn.component != 3])
    assert scores["mode_coverage"] == pytest.approx(7 / 8)
    assert scores["mode_tv"] == pytest.approx(1 / 8, abs=0.05)
    assert scores["energy_distance"] > EXACT["energy_distance"] + 0.02


def test_blur_shows_as_outliers_and_surprise():
    scores = judge(LAW.sample(2000, seed=9).samples + 0.5 * torch.randn(2000, 2))
    assert scores["outlier_rate"] > 0.15
    assert scores["oracle_nll"] > 0.5


def test_crowding_where_the_law_is_dense_shows_below_zero():
    drawn = LAW.sample(2000, seed=9)
    assert judge(LAW.means[drawn.component])["oracle_nll"] == pytest.approx(-1, abs=0.05)


def test_the_teacher_is_sampled_and_also_judged_at_the_cost_of_one_step():
    scores = mixture_quality(Evaluation(model=LAW), samples=1000, steps=16)
    assert scores.values["nfe"] == 31
    assert scores.values["energy_distance"] < 0.05
    assert scores.values["energy_distance_one_step"] > 1
    assert scores.values["outlier_rate"] < 0.03


def test_every_value_has_a_direction_and_the_details_are_json():
    scores = mixture_quality(Evaluation(model=LAW), samples=1000, steps=4)
    facts = find("metric", "mixture_quality").facts
    assert set(scores.values) == set(facts["better"]) == set(facts["labels"])
    assert len(json.loads(json.dumps(scores.details))["samples"]) == 800


def test_the_seed_decides_the_samples():
    values = [
        mixture_quality(Evaluation(model=LAW, seed=s), samples=200, steps=4).values["energy_distance"]
        for s in (0, 0, 1)
    ]
    assert values[0] == values[1] != values[2]


def test_a_conditional_generator_is_given_the_classes_of_the_law():
    law = mixture.ring(4, 4.0, 0.3, classes=2).float()

    class Nearest(nn.Module):
        classes = 2

        def forward(self, noise, label):
            return law.means[label] + 0.3 * noise

    teacher = Teacher(law, {"denoiser"}, "teacher")
    scores = mixture_quality(Evaluation(model=Nearest(), teacher=teacher), samples=500)
    assert scores.values["mode_coverage"] == 0.5
    assert scores.values["mode_tv"] == pytest.approx(0.5, abs=0.06)


def test_a_diverged_generator_and_a_law_that_is_not_known_are_refused():
    with pytest.raises(UserError, match="NaN"):
        judge(torch.full((100, 2), torch.nan))
    with pytest.raises(UserError, match="exact mixture"):
        mixture_quality(Evaluation(model=nn.Linear(2, 2)))
    with pytest.raises(UserError, match="samples: 1"):
        mixture_quality(Evaluation(model=LAW), samples=1)
