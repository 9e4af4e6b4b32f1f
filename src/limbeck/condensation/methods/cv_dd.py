"""CV-DD: images that a committee of networks votes on, with its labels by the statistics of each batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, Literal

import torch

from limbeck.condensation.networks import accuracy
from limbeck.condensation.recover import DecoupledMethod, Voter, real_images, start_realistic
from limbeck.condensation.synthetic import RealImages, image_set, labeller, relabel_by
from limbeck.engine.method import Clock, Parts
from limbeck.errors import UserError
from limbeck.registry import register

PERCENT = 100.0
CHUNK = 1024


@register("method")
class CVDD(DecoupledMethod):
    """Dataset Distillation via Committee Voting (Cui et al. 2025, arXiv 2501.07575), in the recovery of ``sre2l``.

    The k-th images of all classes are voted on by the k-th of all groups of ``voters`` teachers (cycling), with weights
    softmax(prior / prior_temperature) within the group. All teachers label, with weights softmax(score /
    label_temperature), and by the statistics of the very batch that is learnt. Images start as the crops that the
    committee finds most real. The batch of the student is small in the paper (16), its ``smooth`` 1 or 2.

    Args:
        voters: teachers in a group; 1 takes one after the other.
        priors: of each teacher, in per cent, in the recipe's order: the accuracy of networks that learn a set that was
            recovered from it alone. Where none are given, each teacher's own accuracy on images that it has not learnt
            (on the training images, where none are held out).
        prior_temperature: in per cent; a large one makes voters equal.
        scores: of each teacher as a labeller, in per cent; by default its own accuracy, as for ``priors``.
        label_temperature: in per cent.
        label_stats: ``batch`` lets batch normalisation take its statistics from the batch that is labelled,
            ``running`` from what it remembers.
        label_parts: of how many parts of that batch each; the published code halves it.
        start: ``realistic`` crops or the student's own first images.
        start_crop: least share of an image's area that such a crop shows.
    """

    fixed = ("start_crop",)

    def __init__(
        self,
        *,
        voters: int = 2,
        priors: tuple[float, ...] | None = None,
        prior_temperature: float = 5.0,
        scores: tuple[float, ...] | None = None,
        label_temperature: float = 10.0,
        label_stats: Literal["batch", "running"] = "batch",
        label_parts: int = 2,
        start: Literal["realistic", "own"] = "realistic",
        start_crop: float = 0.5,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        if voters < 1 or label_parts < 1 or min(prior_temperature, label_temperature) <= 0 or not 0 < start_crop <= 1:
            raise UserError(
                "cv_dd: voters and label_parts are at least 1, both temperatures above 0, and start_crop is a share"
            )
        self.voters = voters
        self.priors = priors
        self.prior_temperature = prior_temperature
        self.scores = scores
        self.label_temperature = label_temperature
        self.label_stats = label_stats
        self.label_parts = label_parts
        self.start = start
        self.start_crop = start_crop

    def setup(self, parts: Parts) -> None:
        """Measure the teachers where nothing is given, and choose the first images.

        Raises:
            UserError: as :meth:`DecoupledMethod.setup`, or there is not one prior or score for each teacher.
        """
        super().setup(parts)
        for name, given in (("priors", self.priors), ("scores", self.scores)):
            if given is not None and len(given) != len(self.teachers):
                raise UserError(f"cv_dd: {len(given)} {name} for {len(self.teachers)} teachers")
        self.measured = [] if self.priors is not None and self.scores is not None else self.measure(parts)
        if self.start == "realistic":
            self.start_real(parts)

    def measure(self, parts: Parts) -> list[float]:
        """Accuracy of each teacher, in per cent."""
        sources = parts.held_out or parts.streams
        unseen = RealImages.of_streams(sources, parts.data.classes if parts.data else None)
        unseen.to(next(parts.student.parameters()).device)
        return [PERCENT * accuracy(t.module, unseen.images, unseen.labels, CHUNK) for t in self.teachers.values()]

    def start_real(self, parts: Parts) -> None:
        """Put the crops that the committee finds most real into the student."""
        student = image_set(parts.student)
        asked = [labeller(t) for t in self.teachers.values()]
        real = real_images(parts).to(student.images.device)
        start_realistic(student, real, lambda x: torch.stack([ask(x) for ask in asked]).mean(0), self.start_crop)

    def votes(self, slots: int, clock: Clock) -> list[Voter]:
        """The weights of each slot's group of teachers."""
        priors = self.measured if self.priors is None else self.priors
        groups = list(combinations(range(len(priors)), min(self.voters, len(priors))))
        weights = [[0.0] * slots for _ in priors]
        for slot in range(slots):
            group = groups[slot % len(groups)]
            for member, weight in zip(group, softmax([priors[m] for m in group], self.prior_temperature), strict=True):
                weights[member][slot] = weight
        return [Voter(t, w) for t, w in zip(self.teachers.values(), weights, strict=True)]

    def relabel(self) -> None:
        """Store the committee's labels."""
        weights = softmax(self.measured if self.scores is None else self.scores, self.label_temperature)
        parts = self.label_parts if self.label_stats == "batch" else 0
        relabel_by(self.images, self.teachers, weights, batch_parts=parts)


def softmax(values: Sequence[float], temperature: float) -> list[float]:
    """``exp(v / T) / sum exp(v / T)``."""
    most = max(values)
    powers = [math.exp((value - most) / temperature) for value in values]
    return [power / sum(powers) for power in powers]
