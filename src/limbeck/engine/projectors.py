"""Small trainable maps from a student's features to the shape of its teacher's. They are never part of the student.

Each is handed one student and one teacher feature, whose shapes it reads.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.registry import register


class Projectors(nn.Module):
    """Several projectors as one learner: named features go in, the projected ones come out, others as they were."""

    def __init__(self, maps: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.maps = nn.ModuleDict(dict(maps))

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each feature through the projector of its name, if there is one."""
        return {name: self.maps[name](value) if name in self.maps else value for name, value in features.items()}


@register("projector", name="linear")
class LinearProjector(nn.Module):
    """A linear map of the last axis, for vectors [B, D] and tokens [B, N, D]."""

    def __init__(self, student: Tensor, teacher: Tensor, *, bias: bool = True) -> None:
        super().__init__()
        self.map = nn.Linear(student.shape[-1], teacher.shape[-1], bias=bias)

    def forward(self, student: Tensor) -> Tensor:
        """[..., D_student] -> [..., D_teacher]."""
        return self.map(student)


@register("projector", name="conv")
class ConvProjector(nn.Module):
    """A 1x1 convolution with batch normalisation for maps [B, C, H, W]; resized to the teacher's height and width."""

    def __init__(self, student: Tensor, teacher: Tensor, *, norm: bool = True) -> None:
        super().__init__()
        self.size = teacher.shape[-2:]
        self.map = nn.Conv2d(student.shape[1], teacher.shape[1], 1, bias=not norm)
        self.norm = nn.BatchNorm2d(teacher.shape[1]) if norm else nn.Identity()

    def forward(self, student: Tensor) -> Tensor:
        """[B, C_student, H, W] -> [B, C_teacher, H_teacher, W_teacher]."""
        mapped = self.norm(self.map(student))
        if mapped.shape[-2:] == self.size:
            return mapped
        return F.interpolate(mapped, size=self.size, mode="bilinear", align_corners=False)


@register("projector", name="auto")
def auto_projector(student: Tensor, teacher: Tensor) -> nn.Module:
    """The projector that the two shapes call for: none when they are equal, a 1x1 convolution or a linear map.

    Raises:
        UserError: no projector here maps the one shape to the other.
    """
    if student.shape[1:] == teacher.shape[1:]:
        return nn.Identity()
    if student.dim() == teacher.dim() == 4:
        return ConvProjector(student, teacher)
    if student.dim() == teacher.dim() and student.shape[1:-1] == teacher.shape[1:-1]:
        return LinearProjector(student, teacher)
    raise UserError(f"no projector maps {tuple(student.shape)} to {tuple(teacher.shape)}: choose other modules")
