"""Where clean samples come from, and what every method of the family is told of levels and classes."""

from __future__ import annotations

import pytest
import torch

from limbeck.data.base import DataSpec
from limbeck.diffusion import mixture
from limbeck.engine.method import Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.registry import Block, build, find
from toolkit.diffusion import CLOCK, batch, made, student

FLOOR = Block("mlp_denoiser", {"width": 16, "depth": 1, "floor": 0.02})


def method(teacher=None, **args):
    teacher = mixture.ring(4, 2.0, 0.3).float() if teacher is None else teacher
    return made("consistency", teacher, student(FLOOR), from_teacher=False, **args)


def test_the_grid_is_the_students_unless_the_method_says_otherwise():
    ours = method()
    torch.testing.assert_close(ours.levels(torch.tensor([0.0, 1.0])), torch.tensor([0.02, 10.0]))
    other = made("sid", mixture.ring(4, 2.0, 0.3).float(), student(FLOOR), sigma_max=5.0)
    assert (other.sigma_min, other.sigma_max) == (0.02, 5.0)


def test_an_exact_teacher_draws_new_samples_for_every_step():
    first, _ = method().clean(batch(), CLOCK, "x")
    again, _ = method().clean(batch(), CLOCK, "x")
    assert torch.equal(first, again)
    part, _ = method().clean(batch(10, 20), CLOCK, "x")
    assert torch.equal(part, first[10:20])
    assert not torch.equal(method().clean(batch(), CLOCK, "y")[0], first)
    assert float(mixture.ring(4, 2.0, 0.3).float().log_prob(first).mean()) > -2


def test_of_another_teacher_a_store_is_made_once():
    net = build("model", Block("mlp_denoiser", {"width": 16, "depth": 1}))
    ours = method(net, pairs=16, pair_steps=3)
    samples, _ = ours.clean(batch(0, 200), CLOCK, "x")
    assert len(torch.unique(samples, dim=0)) <= 16


def test_data_of_the_recipe_come_first():
    rows = {**batch(0, 4), "input": torch.full((4, 2), 7.0), "label": torch.arange(4)}
    x, label = method().clean(rows, CLOCK, "x")
    assert x is rows["input"]
    assert label is None, "the student has no classes"


@pytest.mark.parametrize(("data", "says"), [(None, "the data none"), (10, "the data 10")])
def test_data_of_other_classes_are_refused(data, says):
    net = Block("mlp_denoiser", {"width": 16, "depth": 1, "floor": 0.02, "classes": 2})
    teacher = Teacher(mixture.ring(4, 2.0, 0.3, classes=2).float(), {"denoiser"}, "teacher")
    ours = find("method", "consistency").load()()
    spec = DataSpec(task="generation", shape=(2,), classes=data)
    ours.setup(Parts(student=student(net), teachers={"teacher": teacher}, data=spec))
    rows = {**batch(0, 4), "input": torch.zeros(4, 2), "label": torch.arange(4)}
    with pytest.raises(UserError, match=says):
        ours.clean(rows, CLOCK, "x")


def test_classes_come_with_the_samples():
    law = mixture.ring(4, 2.0, 0.3, classes=2).float()
    net = Block("mlp_denoiser", {"width": 16, "depth": 1, "floor": 0.02, "classes": 2})
    x, label = made("consistency", law, student(net)).clean(batch(0, 400), CLOCK, "x")
    nearest = law.responsibilities(x).argmax(1)
    assert torch.equal(law.labels[nearest], label)


@pytest.mark.parametrize(
    ("args", "says"), [({"pairs": 0}, "pairs"), ({"momentum": 1.0}, "momentum"), ({"guidance": 2.0}, "classes")]
)
def test_settings_that_cannot_work_are_refused(args, says):
    with pytest.raises(UserError, match=says):
        method(**args)


def test_a_student_that_is_no_generator_is_refused():
    with pytest.raises(UserError, match="few_step"):
        made("consistency", mixture.ring(4, 2.0, 0.3).float(), build("model", FLOOR))
