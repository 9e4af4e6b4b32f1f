"""Base of methods that move images until networks see in them what they see in real ones."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from functools import partial
from typing import ClassVar, Literal, NamedTuple, cast

from torch import Tensor

from limbeck.condensation.augment import augment, siamese
from limbeck.condensation.networks import fresh_network, paper_convnet
from limbeck.condensation.synthetic import (
    NO_TEACHER,
    RealImages,
    RelabelledImages,
    SyntheticImages,
    image_set,
    relabel_by,
)
from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.errors import UserError
from limbeck.registry import ModelBlock

Ops = tuple[Literal["color", "crop", "cutout", "flip", "scale", "rotate"], ...]


class Sets(NamedTuple):
    """What a step compares: images [B, ...] and labels [B] of both sides, class by class under the same draws."""

    real: Tensor
    real_labels: Tensor
    images: Tensor
    labels: Tensor


class MatchingMethod(Method):
    """Base of condensation by matching. There is no teacher.

    Such a method is ``data_free`` to the loop because the batches it needs are drawn class by class, not from the
    stream: it keeps the training images in memory and takes each draw from the run's seed and the step alone.

    Attributes:
        learns_labels: whether the method moves labels that learn.

    Args:
        net: the networks that look; by default the papers' ConvNet of 128 channels for the image's size.
        batch_real: real images of each class in a step (all of them, where a class has fewer).
        augment: operations of the Siamese augmentation; none where empty. Leave out ``flip`` for digits and text.
        clamp: keep the pixels within the range of real images after each step.
    """

    couples_samples = True
    data_free = True
    learns_labels: ClassVar[bool] = False
    controls = {"random": {"method": {"name": "real_subset", "selection": "random"}}}

    def __init__(
        self, *, net: ModelBlock | None = None, batch_real: int = 256, augment: Ops = (), clamp: bool = False
    ) -> None:
        self.net = net
        self.batch_real = batch_real
        self.augment = tuple(augment)
        self.clamp = clamp

    def setup(self, parts: Parts) -> None:
        """Take the training images into memory.

        Raises:
            UserError: the student is no set of images, its labels learn and the method moves none, it stores soft
                labels and there is no teacher, or a class has no training image.
        """
        super().setup(parts)
        if image_set(parts.student).targets is not None and not self.learns_labels:
            name = type(self).__name__.lower()
            raise UserError(f"{name} learns images of fixed classes: student.labels must be hard")
        if isinstance(parts.student, RelabelledImages) and not parts.teachers:
            raise UserError(NO_TEACHER)
        self.real = RealImages.of_streams(parts.streams, parts.data.classes if parts.data else None)
        self.real.require(1)
        self.fresh = partial(fresh_network, self.net or paper_convnet(self.real.images.shape), parts.offers)

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the images; the batch is not used."""
        yield Update("student", partial(self.terms, clock))

    def terms(self, clock: Clock) -> dict[str, Term]:
        """The terms of a step."""
        raise NotImplementedError

    def drawn(self, images: Tensor, labels: Tensor, key: Hashable) -> Sets:
        """A step's real images and the student's, augmented, with one draw for each class and both sides."""
        real, real_labels = self.real.to(images.device).draw(self.batch_real, (key, "real"))
        if self.augment:
            draws = siamese(self.real.classes, (key, "augment"), self.augment)
            images = augment(images, draws, self.equal(len(images)))
            real = augment(real, draws, self.real.shares(self.batch_real))
        return Sets(real, real_labels, images, labels)

    def equal(self, count: int) -> list[int]:
        """How many of ``count`` images of the student each class has."""
        return [count // self.real.classes] * self.real.classes

    def after_step(self, clock: Clock) -> None:
        """Clamp, if asked to; at the end store soft labels, where the student has room for them."""
        student = cast("SyntheticImages", self.student)
        if self.clamp:
            student.clamp_()
        if clock.step + 1 == clock.total:
            relabel_by(student, self.teachers)

    def count(self, batch: Batch) -> dict[str, int | Tensor]:
        """A step compares one synthetic set."""
        return {**super().count(batch), "sets": 1}
