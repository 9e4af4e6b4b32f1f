"""INFER: patterns that all classes share, recovered from several networks."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from limbeck.condensation.recover import DecoupledMethod, Voter
from limbeck.condensation.synthetic import CompensatedImages
from limbeck.engine.method import Clock, Parts
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class INFER(DecoupledMethod):
    """Inter-class feature compensators (Du et al., ICLR 2025, arXiv 2408.06927), in the recovery of ``sre2l``.

    The student is ``compensated_images``: real images that stay, and for the k-th of all classes and network m one
    pattern u, from zero on. The batch ``b_k + u`` of all classes moves u down the m-th teacher's loss; the sum is
    clamped, not u. The paper takes four networks, 1000 steps of rate 0.1 with ``bn_weight`` 0.05, and for images of 32
    pixels whole ones (``crop: 1``).
    """

    def __init__(self, *, bn_weight: float = 0.05, crop: float = 1.0, **rest: Any) -> None:
        super().__init__(bn_weight=bn_weight, crop=crop, **rest)

    def setup(self, parts: Parts) -> None:
        """Look at the student and the teachers.

        Raises:
            UserError: as :meth:`DecoupledMethod.setup`, the student has no patterns, or not one teacher for each of its
                networks.
        """
        super().setup(parts)
        if not isinstance(parts.student, CompensatedImages):
            raise UserError("infer learns patterns: the student must be compensated_images")
        if parts.student.networks != len(self.teachers):
            raise UserError(
                f"infer: the student has patterns of {parts.student.networks} networks, and there are "
                f"{len(self.teachers)} teachers"
            )

    def slots(self) -> tuple[Tensor, Tensor]:
        """Images with patterns [networks * bases, classes, ...] and the labels of each slot."""
        student = cast("CompensatedImages", self.student)
        return student.compensated(), student.labels[:: student.per_class]

    def votes(self, slots: int, clock: Clock) -> list[Voter]:
        """Each teacher votes on its own patterns."""
        bases = self.images.per_class
        return [
            Voter(teacher, [float(slot // bases == number) for slot in range(slots)])
            for number, teacher in enumerate(self.teachers.values())
        ]

    def after_step(self, clock: Clock) -> None:
        """Label after the last step; the images are clamped as they are made."""
        if clock.step + 1 == clock.total:
            self.relabel()
