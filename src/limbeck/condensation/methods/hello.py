"""HeLlO: a small projector that says the labels, in place of labels that are stored."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.condensation.lightened import LightenedImages, Projector, divergence
from limbeck.condensation.recover import DecoupledMethod, real_images, start_realistic
from limbeck.condensation.relabel import mixed_classes
from limbeck.condensation.synthetic import RealImages, labeller
from limbeck.engine.batch_statistics import Statistics
from limbeck.engine.method import Clock, Parts, Term
from limbeck.engine.noise import key_of
from limbeck.errors import UserError
from limbeck.models.forward import forward
from limbeck.registry import register


@register("method")
class HeLlO(DecoupledMethod):
    """Label-space lightening (Yu et al., ICCV 2025, arXiv 2408.08201), in the recovery of ``sre2l``.

    The student is ``lightened_images``, whose projector h takes its encoder from the teacher of the role ``encoder``:
    a public network, which may have learnt without labels or from other data. First h alone learns, in its low-rank
    factors, from sights of all training images: ``KL(softmax(z / T) || softmax(h / T)) + fit_ce CE(h, y)``, z what
    the ``teacher`` says. Then the images, which start as crops that the teacher finds real, move to where both agree:
    the same divergence with the losses of ``sre2l``. Networks learn them by what h says of each sight.

    Args:
        fit_epochs: passes over the training images, seen as the student's images are.
        fit_batch: images in a step of these.
        fit_lr: Adam's rate, which falls to zero as a cosine.
        fit_ce: weight of the labels, mixed as the images are.
        temperature: T, in both parts.
        gap_weight: of the divergence between teacher and h on the set's images.
        ce_weight: of the teacher's cross-entropy on them.
        start: ``realistic`` crops or the student's own first images.
        start_crop: least share of an image's area that such a crop shows.
    """

    needs: ClassVar[dict[str, set[str]]] = {"teacher": {"logits"}, "encoder": {"features"}}
    fixed = ("fit_lr", "fit_ce", "temperature", "start_crop")
    controls = {"hard": {"student": {"labels": "mixed"}}}

    def __init__(
        self,
        *,
        fit_epochs: int = 30,
        fit_batch: int = 128,
        fit_lr: float = 5e-3,
        fit_ce: float = 0.1,
        temperature: float = 4.0,
        gap_weight: float = 1.0,
        ce_weight: float = 0.1,
        start: Literal["realistic", "own"] = "realistic",
        start_crop: float = 0.5,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        if min(fit_epochs, fit_batch) < 1 or min(fit_lr, temperature) <= 0 or not 0 < start_crop <= 1:
            raise UserError(
                "hello: fit_epochs and fit_batch are at least 1, fit_lr and temperature above 0, and start_crop is a "
                "share"
            )
        self.fit_epochs = fit_epochs
        self.fit_batch = fit_batch
        self.fit_lr = fit_lr
        self.fit_ce = fit_ce
        self.temperature = temperature
        self.gap_weight = gap_weight
        self.ce_weight = ce_weight
        self.start = start
        self.start_crop = start_crop

    def setup(self, parts: Parts) -> None:
        """Fit the projector, and choose the first images.

        Raises:
            UserError: as :meth:`DecoupledMethod.setup`, the student has no projector, there are not the two teachers
                ``teacher`` and ``encoder``, or the latter is not built as the student's encoder.
        """
        if set(parts.teachers) != {"teacher", "encoder"}:
            raise UserError("hello takes two teachers, called 'teacher' and 'encoder'")
        if not isinstance(parts.student, LightenedImages):
            raise UserError("hello fits a projector: the student must be lightened_images")
        # The encoder is no judge of the images, and need not have batch normalisation.
        super().setup(replace(parts, teachers={"teacher": parts.teachers["teacher"]}))
        student = parts.student
        real = real_images(parts).to(student.images.device)
        student.projector.adopt_(parts.teachers["encoder"].module)
        student.projector.begin_(real.images, real.labels)
        self.fit(student, real)
        if self.start == "realistic":
            start_realistic(student, real, labeller(self.teacher), self.start_crop)

    def fit(self, student: LightenedImages, real: RealImages) -> None:
        """Let the low-rank factors of the projector learn what the teacher says of real images."""
        views = replace(student.views, seed=key_of((student.views.seed, "fit")), batch_size=self.fit_batch)
        learnt = student.projector.low_rank()
        optimizer = torch.optim.Adam(learnt, lr=self.fit_lr)
        for factor in learnt:
            factor.requires_grad_(True)
        for epoch in range(self.fit_epochs):
            for group in optimizer.param_groups:
                group["lr"] = self.fit_lr * (1 + math.cos(math.pi * epoch / self.fit_epochs)) / 2
            for sight in views.epoch(real.images, epoch):
                truth = mixed_classes(real.labels, real.classes, sight)
                optimizer.zero_grad()
                self.fit_loss(student.projector, sight.images, truth).backward()
                optimizer.step()
        for factor in learnt:
            factor.requires_grad_(False)
            factor.grad = None

    def fit_loss(self, projector: Projector, images: Tensor, truth: Tensor) -> Tensor:
        """Mean over images [B, C, H, W], whose classes are probabilities [B, K]: a scalar."""
        said = projector(images)
        gap = divergence(self.teacher.compute({"input": images}).logits.float(), said, self.temperature)
        return gap.mean() + self.fit_ce * F.cross_entropy(said, truth)

    def terms(self, clock: Clock) -> dict[str, Term]:
        """The terms ``gap``, ``class`` and ``bn``, added up over the batches of classes of all slots."""
        images, labels = self.slots()
        seen = self.seen(images, clock).flatten(0, 1)
        batches = [rows for slot in self.batches(*images.shape[:2]) for rows in slot]
        with Statistics(self.teacher.module) as statistics, self.teacher.context():
            taught = forward(self.teacher.module, {"input": seen}).logits.float()
            bn = torch.stack([self.distance(statistics, rows) for rows in batches]).sum()
        said = cast("LightenedImages", self.images).projector(seen).float()
        gap = divergence(taught, said, self.temperature)
        ce = F.cross_entropy(taught, labels.repeat(len(images)), reduction="none")
        return {
            "gap": Term(_summed(gap, batches), 1, self.gap_weight, unit="sets"),
            "class": Term(_summed(ce, batches), 1, self.ce_weight, unit="sets"),
            "bn": Term(bn, 1, self.bn_weight, unit="sets"),
        }


def _summed(values: Tensor, batches: list[slice]) -> Tensor:
    """The sum of the batches' means."""
    return torch.stack([values[rows].mean() for rows in batches]).sum()
