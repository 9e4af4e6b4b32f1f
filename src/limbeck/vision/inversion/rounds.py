"""Methods that make images in rounds, keep them in a bank, and let the student learn from the bank."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from limbeck.engine.batch_statistics import norms_of
from limbeck.engine.method import Batch, Clock, Parts, Term, Update
from limbeck.errors import UserError
from limbeck.models.forward import forward
from limbeck.vision.inversion.bank import Bank
from limbeck.vision.inversion.base import DataFree, held
from limbeck.vision.inversion.views import shifted
from limbeck.vision.losses.inversion import disagreement


class Rounds(DataFree):
    """Base: every n-th step a round makes images; in each step the student learns from images of the bank.

    All processes make the same images, for a round depends on the step and on the weights alone. A subclass writes
    :meth:`round`.

    Args:
        every: steps from one round to the next.
        iterations: inner steps of a round.
        warmup: further rounds before the student's first step.
        synthesis_batch: images that are made in a round.
        bank_size: images that are kept; the oldest leave.
        padding: the student sees an image shifted by at most so many pixels.
        flip: the student sees half of the images mirrored.
        temperature: of the student's soft targets.
    """

    same_view = False
    couples_samples = True
    controls = {"noise": {"method": {"name": "noise_kd"}}}

    def __init__(
        self,
        *,
        every: int = 400,
        iterations: int = 200,
        warmup: int = 0,
        synthesis_batch: int = 256,
        bank_size: int = 40960,
        padding: int = 4,
        flip: bool = True,
        temperature: float = 20.0,
    ) -> None:
        if min(every, iterations, synthesis_batch, bank_size) < 1:
            raise UserError("every, iterations, synthesis_batch and bank_size must be 1 or more")
        if warmup < 0:
            raise UserError(f"warmup must be 0 or more, not {warmup}")
        self.every = every
        self.iterations = iterations
        self.warmup = warmup
        self.synthesis_batch = synthesis_batch
        self.bank_size = bank_size
        self.padding = padding
        self.flip = flip
        self.temperature = temperature

    def setup(self, parts: Parts) -> None:
        """An empty bank.

        Raises:
            UserError: the teacher has no batch normalisation.
        """
        super().setup(parts)
        self.bank = Bank(self.bank_size)
        self._rival = parts.student
        if not norms_of(self.teacher.module):
            says = "this method matches the statistics in the teacher's batch normalisation"
            raise UserError(f"{says}, and {type(self.teacher.module).__name__} has none")

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """A round where it is time, then the student."""
        if clock.step % self.every == 0:
            for number in range(1 + (self.warmup if clock.step == 0 else 0)):
                yield from self.round(clock, batch["id"].device, number)
        yield Update("student", partial(self.student_terms, batch, clock))

    def round(self, clock: Clock, device: torch.device, number: int) -> Iterable[Update]:
        """Make images and add them to the bank; what learns with them is updated on the way.

        Args:
            clock: names of its noise must tell the rounds of one step apart.
            device: where the images shall be.
            number: of the round in its step; all but the last of the first step are the warm-up.
        """
        raise NotImplementedError

    def student_terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """``{"kd"}`` at images of the bank."""
        places = self.bank.draw(clock.uniform(batch["id"], (1,), "bank")[:, 0])
        images = self.augmented(self.bank.at(places, "images")["images"], batch["id"], clock, "view")
        return self.taught(images, self.tell(images), self.temperature)

    def augmented(self, images: Tensor, ids: Tensor, clock: Clock, name: str) -> Tensor:
        """Images as the student sees them, shifted over black and mirrored."""
        draws = clock.uniform(ids, (3,), name)
        return shifted(images, draws, padding=self.padding, flip=self.flip, fill=self.scale.black)

    def draw_labels(self, ids: Tensor, clock: Clock, name: str) -> Tensor:
        """A class for each image of a round, uniformly, int64 [B]."""
        return (clock.uniform(ids, (1,), name)[:, 0] * self.classes).long().clamp(max=self.classes - 1)

    def rival(self, images: Tensor) -> Tensor:
        """The logits [B, K] of the student as it stands, in evaluation mode, with the gradient of the images."""
        # The bare network: what the loop wraps it in is for its own backward passes.
        with held(self._rival), self.teacher.context():
            return forward(self._rival, {"input": images}).logits

    def adversary(self, images: Tensor, teacher: Tensor) -> Tensor:
        """Mean :func:`disagreement` of student and teacher, a scalar."""
        return disagreement(self.rival(images), teacher).mean()

    def state_dict(self) -> dict[str, Any]:
        """The bank."""
        return {**super().state_dict(), "bank": self.bank.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        self.bank.load(state["bank"])


class Least:
    """The rows of the step at which a loss was least, without waiting for the device."""

    def __init__(self) -> None:
        self.loss: Tensor | None = None
        self.rows: Mapping[str, Tensor] = {}

    def take(self, loss: Tensor, **rows: Tensor) -> None:
        """Offer what a step gave."""
        loss, rows = loss.detach(), {name: values.detach().clone() for name, values in rows.items()}
        if self.loss is None:
            self.loss, self.rows = loss, rows
            return
        better = loss < self.loss
        self.rows = {name: torch.where(better, values, self.rows[name]) for name, values in rows.items()}
        self.loss = torch.where(better, loss, self.loss)


def descend(optimizer: Optimizer, loss: Tensor) -> list[Tensor]:
    """One step of an inner optimizer, which touches no other gradient; gives the gradients of its first group."""
    groups = [group["params"] for group in optimizer.param_groups]
    parameters = [p for group in groups for p in group]
    gradients = torch.autograd.grad(loss, parameters)
    for p, gradient in zip(parameters, gradients, strict=True):
        p.grad = gradient
    optimizer.step()
    return list(gradients[: len(groups[0])])
