"""Sets whose targets are a teacher's features."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from limbeck.condensation.networks import features_of
from limbeck.condensation.synthetic import SyntheticImages
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError


def teacher_features(teachers: Mapping[str, Teacher], images: Tensor) -> Tensor:
    """The only teacher's features [B, D] of images, without gradient.

    Raises:
        UserError: there is not one teacher, or it has no method ``features``.
    """
    if len(teachers) != 1:
        raise UserError(f"features are of one teacher, and there are {len(teachers)}")
    (teacher,) = teachers.values()
    with torch.no_grad():
        return features_of(teacher.module.to(images.device))(images).flatten(1)


@torch.no_grad()
def features_as_targets(student: SyntheticImages, teachers: Mapping[str, Teacher]) -> None:
    """Make the targets of a set the teacher's features of its images.

    Raises:
        UserError: the set has no targets of that width, or as :func:`teacher_features` says.
    """
    found = teacher_features(teachers, student.decode()[0])
    if student.targets is None or student.targets.shape[1] != found.shape[1]:
        raise UserError(
            f"the teacher has {found.shape[1]} features: the student must be synthetic_images with labels: features "
            f"and dim: {found.shape[1]}"
        )
    # Images that come of one stored image share its target.
    student.targets.copy_(found.view(len(student.targets), -1, found.shape[1]).mean(1))
