"""Base of methods whose images predict the real ones by kernel ridge regression."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, cast

from torch import Tensor

from limbeck.condensation.matching import MatchingMethod
from limbeck.condensation.synthetic import SyntheticImages, first_targets, image_set
from limbeck.engine.method import Clock, Parts
from limbeck.errors import UserError


class Lesson(NamedTuple):
    """What a step regresses: learned images with targets [S, K], real ones with what is wanted [T, K]."""

    images: Tensor
    targets: Tensor
    real: Tensor
    wanted: Tensor
    real_labels: Tensor


class RegressionMethod(MatchingMethod):
    """Base of condensation by kernel ridge regression: no network need be trained to see what the images teach.

    Args:
        strength: lambda over the trace of the images' kernel.
        learn_labels: the targets move with the images; without, they stay one-hot less 1 / classes.
        net, batch_real, augment, clamp: as for :class:`MatchingMethod`.
    """

    learns_labels: ClassVar[bool] = True

    def __init__(self, *, strength: float = 1e-6, learn_labels: bool = True, **rest: Any) -> None:
        super().__init__(**rest)
        self.strength = strength
        self.learn_labels = learn_labels

    def setup(self, parts: Parts) -> None:
        """Take the real images.

        Raises:
            UserError: as :class:`MatchingMethod` says, or the labels are not numbers to be met.
        """
        super().setup(parts)
        student = image_set(parts.student)
        known = student.targets is not None and student.regression
        if not known or student.targets.shape[1] != self.real.classes:  # type: ignore[union-attr]
            name = type(self).__name__.lower()
            raise UserError(f"{name} predicts numbers, one for each class: student.labels must be regression")

    def lesson(self, clock: Clock) -> Lesson:
        """The images and targets of a step, augmented alike by class."""
        images, targets = self.student()
        labels = cast("SyntheticImages", self.student).decoded_labels
        sets = self.drawn(images, labels, (clock.seed, clock.step))
        wanted = first_targets(sets.real_labels, self.real.classes, centred=True)
        moved = targets if self.learn_labels else targets.detach()
        return Lesson(sets.images, moved, sets.real, wanted, sets.real_labels)
