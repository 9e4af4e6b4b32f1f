"""Distribution matching: synthetic images whose mean features are those of the real ones."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal, cast

from torch import Tensor

from limbeck.condensation.augment import augment, siamese
from limbeck.condensation.losses import distribution_matching
from limbeck.condensation.networks import embed, features_of, fresh_network, paper_convnet
from limbeck.condensation.synthetic import RealImages, SyntheticImages, image_set
from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.registry import ModelBlock, register


@register("method")
class DM(Method):
    """Data-set condensation with distribution matching (Zhao and Bilen, WACV 2023, arXiv 2110.04181).

    Each step draws a fresh random network, frozen, and one differentiable Siamese augmentation per class, and moves
    the student's images so that their mean feature in each class is that of a batch of real images:
    ``sum_c || mean phi(a_c(x)) - mean phi(a_c(s)) ||^2``. There is no teacher. The paper takes SGD with learning rate
    1, momentum 0.5 and no weight decay over 20,000 steps, and does not clamp.

    The method is ``data_free`` to the loop because the batches it needs are drawn class by class, not from the stream:
    it keeps the training images in memory and takes each draw from the run's seed and the step alone.

    Args:
        net: the random network; by default the papers' ConvNet of 128 channels for the image's size.
        batch_real: real images of each class in a step (all of them, where a class has fewer).
        augment: operations of the Siamese augmentation; none where empty. Leave out ``flip`` for digits and text.
        clamp: keep the pixels within the range of real images after each step.
    """

    couples_samples = True
    data_free = True
    controls = {"random": {"method": {"name": "real_subset", "selection": "random"}}}

    def __init__(
        self,
        *,
        net: ModelBlock | None = None,
        batch_real: int = 256,
        augment: tuple[Literal["color", "crop", "cutout", "flip", "scale", "rotate"], ...] = (
            "color", "crop", "cutout", "flip", "scale", "rotate",
        ),
        clamp: bool = False,
    ) -> None:  # fmt: skip
        self.net = net
        self.batch_real = batch_real
        self.augment = tuple(augment)
        self.clamp = clamp

    def setup(self, parts: Parts) -> None:
        """Take the training images into memory.

        Raises:
            UserError: the student is no set of images, or a class has no training image.
        """
        super().setup(parts)
        image_set(parts.student)
        self.real = RealImages.of_streams(parts.streams, parts.data.classes if parts.data else None)
        self.real.require(1)
        self.fresh = partial(fresh_network, self.net or paper_convnet(self.real.images.shape), parts.offers)

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the images; the batch is not used."""
        yield Update("student", partial(self.terms, clock))

    def terms(self, clock: Clock) -> dict[str, Term]:
        """The one term of a step; its count is 1, because the paper sums over the classes."""
        images, labels = self.student()
        key = (clock.seed, clock.step)
        network = self.fresh((key, "network"), images.device).requires_grad_(False)
        real, real_labels = self.real.to(images.device).draw(self.batch_real, (key, "real"))
        if self.augment:
            draws = siamese(self.real.classes, (key, "augment"), self.augment)
            images, real = augment(images, draws, labels), augment(real, draws, real_labels)
        target, moved = embed(network, real), features_of(network)(images)
        gaps = distribution_matching(target, real_labels, moved, labels, self.real.classes)
        return {"dm": Term(gaps.sum(), 1, unit="sets")}

    def after_step(self, clock: Clock) -> None:
        """Clamp, if asked to."""
        if self.clamp:
            cast("SyntheticImages", self.student).clamp_()

    def count(self, batch: Batch) -> dict[str, int | Tensor]:
        """A step compares one synthetic set."""
        return {**super().count(batch), "sets": 1}
