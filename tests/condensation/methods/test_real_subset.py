"""The baselines of real images."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.condensation.methods.real_subset import RealSubset
from limbeck.condensation.selection import herding, k_center
from limbeck.condensation.synthetic import SyntheticImages
from limbeck.data.base import Data
from limbeck.engine.method import Clock, Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.registry import Block, build


def start(data: Data, per_class: int = 2, init: str = "real") -> SyntheticImages:
    torch.manual_seed(4)
    offers = {**data.spec.offers(), "data": data}
    return build("model", Block("synthetic_images", {"per_class": per_class, "init": init}), offers=offers)


def chosen(data: Data, selection: str, student: SyntheticImages | None = None, **teachers: Teacher) -> torch.Tensor:
    student = student or start(data)
    method = RealSubset(selection=selection)
    method.setup(Parts(student, teachers, data.spec, data.spec.offers(), {"data": data.train}))
    assert list(method.updates({"id": torch.arange(1)}, Clock(0, 1))) == []
    return student.images.detach()


def test_random_is_where_a_condensation_arm_of_the_same_seed_starts(data):
    assert torch.equal(chosen(data, "random"), start(data).images)
    assert torch.equal(chosen(data, "random", start(data, init="noise")), start(data).images)


def test_mean_of_one_image_is_the_class_mean(data):
    means = torch.stack([data.train.images[data.train.labels == c].mean(0) for c in range(3)])
    assert torch.allclose(chosen(data, "mean", start(data, 1)), means, atol=1e-6)


@pytest.mark.parametrize("selection", ["herding", "k_center", "k_means"])
def test_selected_images_are_real_and_of_their_class(data, selection):
    student = start(data, 3)
    chosen(data, selection, student)
    for image, label in zip(*student(), strict=True):
        assert (data.train.images[data.train.labels == label] == image).flatten(1).all(1).any()
    assert student.images.unique(dim=0).shape[0] == 9


@pytest.mark.parametrize(("selection", "select"), [("herding", herding), ("k_center", k_center)])
def test_selection_compares_pixels_or_the_teachers_features(data, selection, select):
    class Corner(nn.Module):
        def features(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :, 0, :2]

    own = data.train.images[data.train.labels == 0]
    assert torch.equal(chosen(data, selection)[:2], own[select(own.flatten(1), 2)])
    teacher = Teacher(Corner(), {"logits"}, "teacher")
    assert torch.equal(chosen(data, selection, teacher=teacher)[:2], own[select(own[:, 0, 0, :2], 2)])


def test_too_few_images_are_told(data):
    with pytest.raises(UserError, match="class 0 has 15"):
        chosen(data, "herding", start(data, 16, "noise"))
