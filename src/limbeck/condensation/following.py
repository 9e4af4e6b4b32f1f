"""Base of methods whose images make a network go the way that experts went on the real ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from limbeck.condensation.augment import augment as augmented
from limbeck.condensation.augment import unpaired
from limbeck.condensation.experts import Course, Experts, require_budget
from limbeck.condensation.matching import Ops
from limbeck.condensation.networks import paper_convnet
from limbeck.condensation.rates import RateLearning, lesson
from limbeck.condensation.synthetic import image_set
from limbeck.condensation.trajectory import distance
from limbeck.condensation.unroll import StepLoss, gradient
from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.engine.noise import uniform
from limbeck.errors import UserError
from limbeck.registry import ModelBlock

OPS: Ops = ("color", "crop", "cutout", "flip", "scale", "rotate")
SEGMENTS = 3
"""Stretches over which the error of a training from an expert's first weights adds up, for the health."""


class Following(RateLearning):
    """Base of matching training trajectories.

    ``experts`` networks are trained on the real images, and their weights after every epoch are kept. A step takes one
    of them after t epochs and lets it go on for ``steps`` steps on the student's images, augmented, at a rate that
    learns; where it should end is where the expert was at t + ``ahead``. Labels that learn start as the teachers'
    probabilities if there are teachers.

    Args:
        experts: trainings on the real images; what they depend on is what they are found by on disk.
        expert_epochs: of each.
        expert_batch: images in an expert's step.
        expert_lr: of its SGD.
        expert_momentum: of that.
        expert_decay: its weight decay.
        keep: how much of the disk they may take; ``null`` holds them in memory.
        steps: on the student's images (N).
        ahead: epochs that the expert is ahead in the end (M).
        starts: the expert's epochs that it starts after are those below this (T+); by default all that ``ahead`` more
            follow.
        batch: the student's images in a step; by default all.
        momentum: of the descent on the student's images.
        targets_lr: learning rate of labels that learn, in that of the images; 0 keeps them.
        net: the networks; by default the papers' ConvNet of 128 channels for the image's size.
        augment: operations on the experts' images and on the student's; none where empty.
        clamp: keep the pixels within the range of real images after each step.
    """

    fixed: ClassVar[tuple[str, ...]] = ("expert_lr", "expert_momentum", "expert_decay")

    def __init__(
        self,
        *,
        experts: int = 100,
        expert_epochs: int = 50,
        expert_batch: int = 256,
        expert_lr: float = 0.01,
        expert_momentum: float = 0.0,
        expert_decay: float = 0.0,
        keep: str | None = "10GB",
        steps: int = 20,
        ahead: int = 2,
        starts: int | None = None,
        batch: int | None = None,
        momentum: float = 0.0,
        targets_lr: float = 1.0,
        net: ModelBlock | None = None,
        augment: Ops = OPS,
        clamp: bool = False,
    ) -> None:
        super().__init__(net=net, augment=augment, clamp=clamp)
        name = type(self).__name__.lower()
        self.latest = expert_epochs - ahead + 1 if starts is None else starts
        if min(experts, expert_epochs, expert_batch, steps, ahead, 1 if batch is None else batch) < 1:
            raise UserError(f"{name}: numbers of experts, epochs, images and steps must be 1 or more")
        if self.latest < 1 or self.latest - 1 + ahead > expert_epochs:
            last = f"starts - 1 + ahead = {max(self.latest, 1) - 1 + ahead}"
            raise UserError(f"{name}: the experts have {expert_epochs} epochs and {last} are needed")
        require_budget(keep)
        self.experts = experts
        self.expert_epochs = expert_epochs
        self.expert_batch = expert_batch
        self.expert_lr = expert_lr
        self.expert_momentum = expert_momentum
        self.expert_decay = expert_decay
        self.keep = keep
        self.steps = steps
        self.ahead = ahead
        self.starts = starts
        self.batch = batch
        self.momentum = momentum
        self.targets_lr = targets_lr

    def setup(self, parts: Parts) -> None:
        """Give labels that learn the teacher's probabilities, if there is a teacher; the experts come later."""
        super().setup(parts)
        self.block = self.net or paper_convnet(self.real.images.shape)
        self.quiet = parts.quiet
        self._experts: Experts | None = None
        student = image_set(parts.student)
        if student.targets is not None and self.teachers:
            # What comes of one stored image shares its label: the mean of what the teachers say of all.
            images, each = student.decode()[0].detach(), []
            for teacher in self.teachers.values():
                teacher.module.to(images.device)
                each.append(teacher.compute({"input": images}).logits.softmax(1))
            said = torch.stack(each).mean(0).unflatten(0, (-1, student.expansion)).mean(1)
            with torch.no_grad():
                student.targets.copy_(said)

    def course(self) -> Course:
        """How the experts are trained."""
        return Course(
            epochs=self.expert_epochs,
            batch_size=self.expert_batch,
            lr=self.expert_lr,
            momentum=self.expert_momentum,
            weight_decay=self.expert_decay,
            augment=tuple(self.augment),
        )

    def expert_weights(self, clock: Clock, expert: int, epochs: list[int], device: torch.device) -> list[Tensor]:
        """Weights [P] of an expert after so many epochs each."""
        if self._experts is None:
            given = (self.block, self.fresh, self.real, self.course(), self.experts, clock.seed)
            self._experts = Experts(*given, keep=self.keep, quiet=self.quiet)
            self.flat = self._experts.net
        return self._experts.at(expert, epochs, device)

    def segment(self, clock: Clock) -> tuple[int, int]:
        """The expert of a step, and the epoch that it starts after."""
        drawn = uniform(torch.zeros(1, dtype=torch.int64), (2,), (clock.seed, clock.step, "segment"))[0].tolist()
        return int(drawn[0] * self.experts), int(drawn[1] * self.latest)

    def pulled(self) -> tuple[Tensor, Tensor]:
        """The student's images and labels; the gradient of labels that learn is scaled by ``targets_lr``."""
        images, labels = self.student()
        if labels.is_floating_point():
            labels = labels.detach() + self.targets_lr * (labels - labels.detach())
        return images, labels

    def step_loss(self, clock: Clock, name: str = "inner") -> StepLoss:
        """The loss of step k on the student's images [N, ...] and labels, as a function of the weights [P]."""
        key = (clock.seed, clock.step, name)

        def loss(weights: Tensor, k: int, images: Tensor, labels: Tensor) -> Tensor:
            if self.batch is not None and self.batch < len(images):
                rows = _dealt(len(images), self.batch, k, key).to(images.device)
                images, labels = images[rows], labels[rows]
            if self.augment:
                images = augmented(images, unpaired(len(images), (key, k), self.augment))
            return lesson(self.flat(weights, images), labels, regression=self.regression)

        return loss

    @torch.no_grad()
    def health(self, batch: Batch, clock: Clock) -> Mapping[str, Term]:
        """What is left of an expert's way when a network starts where it did and learns the student's images alone.

        ``accumulated`` is ``|w - w*| / |w*_0 - w*|`` after as many steps as lead to w* stretch by stretch (Du et al.,
        arXiv 2211.11004, section 3).
        """
        images, labels = self.student()
        stretches = min(SEGMENTS, self.expert_epochs // self.ahead)
        expert, _ = self.segment(clock)
        begin, target = self.expert_weights(clock, expert, [0, stretches * self.ahead], images.device)
        loss, rate, weights, velocity = self.step_loss(clock, "health"), self.rate(), begin, torch.zeros_like(begin)
        for k in range(stretches * self.steps):
            velocity = self.momentum * velocity + gradient(loss, weights, k, (images, labels))
            weights = weights - rate * velocity
        return {"accumulated": Term(distance(weights, target, begin).sqrt(), 1, unit="sets")}


def _dealt(count: int, size: int, k: int, key: tuple[object, ...]) -> Tensor:
    """Rows of batch ``k``: the images are shuffled and dealt out, again and again."""
    epoch, place = divmod(k, -(-count // size))
    order = uniform(torch.arange(count), (1,), (*key, epoch, "order"))[:, 0].argsort()
    return order.split(size)[place]
