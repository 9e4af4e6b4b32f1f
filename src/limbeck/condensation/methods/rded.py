"""RDED: mosaics of the crops that a trained network finds most real."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch

from limbeck.condensation.realism import realistic_crops
from limbeck.condensation.recover import real_images
from limbeck.condensation.synthetic import image_set, relabel_by, tiled
from limbeck.engine.method import Batch, Clock, Method, Parts, Update
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class RDED(Method):
    """Realistic, Diverse and Efficient Distillation (Sun et al., CVPR 2024, arXiv 2312.03526); nothing is trained.

    Of ``pool`` real images a class, the one of ``crops`` random crops stays that the teacher finds most like its class;
    the best ``factor^2`` for each stored image are shrunk and stitched together to it. A set that stores soft labels
    gets the teacher's.

    Args:
        factor: rows and columns of crops in an image. The paper takes 2, and 1 for very small images.
        pool: images of each class that are looked at.
        crops: of each of them.
        crop: least share of an image's area that a crop shows.
    """

    data_free = True
    live = True
    same_view = False
    needs = {"*": {"logits"}}
    controls: ClassVar[Mapping[str, dict[str, Any]]] = {
        "random": {"method": {"name": "real_subset", "selection": "random"}}
    }
    fixed = ("crop",)

    def __init__(self, *, factor: int = 2, pool: int = 300, crops: int = 5, crop: float = 0.08) -> None:
        if min(factor, pool, crops) < 1 or not 0 < crop <= 1:
            raise UserError("rded: factor, pool and crops are at least 1, and crop is a share of the area")
        self.factor = factor
        self.pool = pool
        self.crops = crops
        self.crop = crop

    def setup(self, parts: Parts) -> None:
        """Choose the crops and put the mosaics into the student.

        Raises:
            UserError: the student is no set of images, ``factor`` does not divide an image, there is no teacher, or a
                class is too small.
        """
        super().setup(parts)
        student = image_set(parts.student)
        if any(side % self.factor for side in student.images.shape[2:]):
            raise UserError(f"rded: images of {tuple(student.images.shape[2:])} pixels are no {self.factor} crops wide")
        if not self.teachers:
            raise UserError("rded asks a trained network how real a crop is: name a teacher")
        device = student.images.device
        for teacher in self.teachers.values():
            teacher.module.to(device)
        crops = realistic_crops(
            real_images(parts).to(device),
            student.per_class * self.factor**2,
            lambda x: torch.stack([t.compute({"input": x}).logits for t in self.teachers.values()]).mean(0),
            (student.seed, "realism"),
            pool=self.pool,
            crops=self.crops,
            least=self.crop,
        )
        student.replace_(tiled(crops, self.factor))
        relabel_by(student, self.teachers)

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """None: the images stay as chosen."""
        yield from ()
