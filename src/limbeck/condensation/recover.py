"""Base of methods that squeeze, recover and relabel: images that trained networks know, with these networks' labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.condensation.realism import realistic_crops
from limbeck.condensation.relabel import random_crop
from limbeck.condensation.synthetic import RealImages, SyntheticImages, image_set, relabel_by, tiled
from limbeck.engine.batch_statistics import Statistics, norms_of
from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.engine.noise import uniform
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.models.forward import forward


class Voter(NamedTuple):
    """A teacher, and the weight of its loss on each slot."""

    teacher: Teacher
    weights: Sequence[float]


class DecoupledMethod(Method):
    """Base of decoupled condensation (Yin, Xing and Shen, NeurIPS 2023, arXiv 2306.13092).

    The k-th images of all classes are a *slot*: a batch, at most ``batch_classes`` wide, whose statistics in the layers
    of a trained teacher shall be those that its batch normalisation remembers. Each step moves every slot down
    ``CE(f(a(s)), y) + bn_weight (first_layer R_1 + sum_{l > 1} R_l)`` with ``R_l = |mean - running mean|_2 + |variance
    - running variance|_2``, where ``a`` crops, mirrors and rolls all images of a slot alike, and brings the pixels back
    to the range of real ones. The slots do not know of each other: the losses add up, and Adam, whose steps do not
    depend on the scale, moves each as if it were alone. After the last step a set that stores soft labels gets those
    of the teachers. The papers take Adam with betas (0.5, 0.9) and a cosine rate.

    Args:
        bn_weight: of the statistics.
        first_layer: factor on those of the first layer.
        crop: least share of an image's area that a crop shows; 1 shows whole images.
        flip: mirror half of the slots. Not for digits and text.
        jitter: largest roll, in pixels, down and to the right.
        batch_classes: classes whose images make up a batch.
    """

    couples_samples = True
    data_free = True
    live = True
    same_view = False
    needs = {"*": {"logits"}}
    controls = {"random": {"method": {"name": "real_subset", "selection": "random"}}}

    def __init__(
        self,
        *,
        bn_weight: float = 0.01,
        first_layer: float = 10.0,
        crop: float = 0.08,
        flip: bool = True,
        jitter: int = 4,
        batch_classes: int = 100,
    ) -> None:
        if not 0 < crop <= 1 or jitter < 0 or batch_classes < 1:
            name = type(self).__name__.lower()
            raise UserError(f"{name}: crop is a share of the area, jitter 0 or more, and batch_classes at least 1")
        self.bn_weight = bn_weight
        self.first_layer = first_layer
        self.crop = crop
        self.flip = flip
        self.jitter = jitter
        self.batch_classes = batch_classes

    def setup(self, parts: Parts) -> None:
        """Look at the student and the teachers.

        Raises:
            UserError: the student is no set of images or its labels learn, there is no teacher, or one has no batch
                normalisation.
        """
        super().setup(parts)
        name = type(self).__name__.lower()
        if image_set(parts.student).targets is not None:
            raise UserError(f"{name} learns images of fixed classes: student.labels must be hard")
        if not self.teachers:
            raise UserError(f"{name} recovers images from trained networks: name a teacher")
        for role, teacher in self.teachers.items():
            if not norms_of(teacher.module):
                raise UserError(f"{name} matches what batch normalisation remembers, and the {role} has none")
            teacher.module.to(next(parts.student.parameters()).device)

    @property
    def images(self) -> SyntheticImages:
        """The set that learns."""
        return cast("SyntheticImages", self.student)

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the images; the batch is not used."""
        yield Update("student", partial(self.terms, clock))

    def terms(self, clock: Clock) -> dict[str, Term]:
        """The terms ``class`` and ``bn``, added up over slots."""
        images, labels = self.slots()
        seen = self.seen(images, clock)
        losses: list[Tensor] = []
        for voter in self.votes(len(images), clock):
            heard = [slot for slot, weight in enumerate(voter.weights) if weight]
            if heard:
                weights = seen.new_tensor([voter.weights[slot] for slot in heard])
                losses.append((weights[:, None] * self.look(voter.teacher, seen[heard], labels)).sum(0))
        ce, bn = torch.stack(losses).sum(0)
        return {"class": Term(ce, 1, unit="sets"), "bn": Term(bn, 1, self.bn_weight, unit="sets")}

    def slots(self) -> tuple[Tensor, Tensor]:
        """Images [slots, classes, ...] and the labels [classes] of each slot."""
        images, labels = self.student()
        return slotted(images, self.images.classes), labels[:: len(labels) // self.images.classes]

    def votes(self, slots: int, clock: Clock) -> list[Voter]:
        """Whose loss counts, with its weight on each slot: all teachers alike."""
        return [Voter(teacher, [1 / len(self.teachers)] * slots) for teacher in self.teachers.values()]

    def crop_at(self, clock: Clock) -> float:
        """Least share of the area that a crop shows in this step."""
        return self.crop

    def seen(self, images: Tensor, clock: Clock) -> Tensor:
        """The slots [S, C, ...] cropped, mirrored and rolled, the images of a slot alike."""
        ids = torch.arange(len(images)).repeat_interleave(images.shape[1])
        key = (clock.seed, clock.step, "recover")
        cropped = random_crop(images.flatten(0, 1), self.crop_at(clock), key, flip=self.flip, ids=ids)
        cropped = cropped.view(images.shape)
        if not self.jitter:
            return cropped
        # On the CPU, where the numbers are needed: the device is not waited for.
        draws = uniform(torch.arange(len(images)), (2,), (key, "jitter"))
        shifts = ((draws * (2 * self.jitter + 1)).long() - self.jitter).tolist()
        return torch.stack([x.roll(shift, (-2, -1)) for x, shift in zip(cropped, shifts, strict=True)])

    def look(self, teacher: Teacher, images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy and statistics' distance of each slot [S, C, ...], [S, 2]: sums over its batches of classes."""
        with Statistics(teacher.module) as statistics, teacher.context():
            logits = forward(teacher.module, {"input": images.flatten(0, 1)}).logits.float()
            ce = F.cross_entropy(logits, labels.repeat(len(images)), reduction="none")
            found = [[(ce[rows].mean(), self.distance(statistics, rows)) for rows in batches]
                     for batches in self.batches(*images.shape[:2])]  # fmt: skip
        return torch.stack([torch.stack([torch.stack(pair) for pair in batches]).sum(0) for batches in found])

    def batches(self, slots: int, classes: int) -> list[list[slice]]:
        """Rows of each batch of classes of each slot, where the slots follow one another."""
        starts = range(0, classes, self.batch_classes)
        rows = [slice(s * classes + a, s * classes + min(a + self.batch_classes, classes))
                for s, a in product(range(slots), starts)]  # fmt: skip
        return [rows[i : i + len(starts)] for i in range(0, len(rows), len(starts))]

    def distance(self, statistics: Statistics, rows: slice) -> Tensor:
        """How far the statistics of some images are from those that are remembered, a scalar."""
        layers = statistics.distances(statistics.moments(rows))
        return self.first_layer * layers[0] + layers[1:].sum()

    def after_step(self, clock: Clock) -> None:
        """Clamp; after the last step, label."""
        self.images.clamp_()
        if clock.step + 1 == clock.total:
            self.relabel()

    def relabel(self) -> None:
        """Store the teachers' soft labels, in a set that does."""
        relabel_by(self.images, self.teachers)

    def count(self, batch: Batch) -> dict[str, int | Tensor]:
        """A step moves one set."""
        return {**super().count(batch), "sets": 1}


def slotted(images: Tensor, classes: int) -> Tensor:
    """Images [classes * S, ...], sorted by class, as slots [S, classes, ...]: the k-th of every class."""
    return images.view(classes, -1, *images.shape[1:]).transpose(0, 1)


def real_images(parts: Parts) -> RealImages:
    """A run's training images."""
    return RealImages.of_streams(parts.streams, parts.data.classes if parts.data else None)


def start_realistic(
    student: SyntheticImages, real: RealImages, judge: Callable[[Tensor], Tensor], least: float
) -> None:
    """Put the crops that look most real into a set, as many as it shows images.

    Args:
        student: the set.
        real: what is cropped.
        judge: from images [B, ...] to logits [B, K].
        least: share of an image's area that a crop shows at least.

    Raises:
        UserError: a class has too few images.
    """
    count = student.per_class * student.tiles**2
    crops = realistic_crops(real, count, judge, (student.seed, "realism"), least=least)
    student.replace_(tiled(crops, student.tiles))
