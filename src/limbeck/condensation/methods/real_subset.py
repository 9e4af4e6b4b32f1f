"""A few real images: the baselines that a condensed set must beat with as many bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from limbeck.condensation.features import features_as_targets
from limbeck.condensation.selection import herding, k_center, k_means
from limbeck.condensation.synthetic import RealImages, first_images, image_set, relabel_by, tiled
from limbeck.engine.method import Batch, Clock, Method, Parts, Update
from limbeck.registry import register


@register("method")
class RealSubset(Method):
    """Real training images, or their means, in place of learned ones; nothing is trained.

    The student is the same set of images as a condensation method's, with as many bytes and the same evaluation.
    ``random`` with the student's ``init: real`` keeps its first images, which are those a condensation arm with the
    same seed starts from. ``herding`` (Welling 2009), ``k_center`` (Sener and Savarese 2018) and ``k_means`` (nearest
    to each cluster's centre) compare pixels, or the teacher's features where the recipe names a teacher that has them.
    ``mean`` averages random shares of each class. A set that stores soft labels gets those of the teachers, and one
    whose targets are features the teacher's.

    Args:
        selection: how the images are chosen.
    """

    data_free = True
    controls: ClassVar[Mapping[str, dict[str, Any]]] = {}

    def __init__(self, *, selection: Literal["random", "herding", "k_center", "k_means", "mean"] = "random") -> None:
        self.selection = selection

    def setup(self, parts: Parts) -> None:
        """Choose the images and put them into the student.

        Raises:
            UserError: the student is no set of images, a class is too small, no training data has labels, or there is
                no teacher for the soft labels of a set that stores them.
        """
        super().setup(parts)
        student = image_set(parts.student)
        real = RealImages.of_streams(parts.streams, parts.data.classes if parts.data else None)
        count = student.per_class * student.tiles**2
        real.require(count)
        student.replace_(tiled(self.choose(real, count, student.seed), student.tiles).to(student.images.device))
        relabel_by(student, self.teachers)
        if student.targets is not None and student.targets.shape[1] != real.classes:
            features_as_targets(student, self.teachers)

    def choose(self, real: RealImages, per_class: int, seed: int) -> Tensor:
        """The chosen images, [classes * per_class, ...], sorted by class."""
        if self.selection == "random":
            return first_images(real, per_class, "real", seed)
        if self.selection == "mean":
            return first_images(real, per_class, "mean", seed)
        chosen = []
        for label in range(real.classes):
            images = real.of_class(label)
            chosen.append(images[self.rows(self.features(images), per_class, seed)])
        return torch.cat(chosen)

    def rows(self, features: Tensor, count: int, seed: int) -> Tensor:
        """Row numbers of ``count`` of the class's images, by their features [N, D]."""
        if self.selection == "herding":
            return herding(features, count)
        return k_center(features, count) if self.selection == "k_center" else k_means(features, count, seed)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """What images are compared by: the teacher's features if there is a teacher that has them, else pixels."""
        teacher = self.teachers.get("teacher")
        phi = getattr(teacher.module, "features", None) if teacher else None
        return phi(images).flatten(1) if callable(phi) else images.flatten(1)

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """None: the images stay as chosen."""
        yield from ()
