"""Methods that learn, beside the images, the learning rate that networks learn them with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.condensation.matching import MatchingMethod
from limbeck.condensation.synthetic import SyntheticImages, image_set
from limbeck.engine.method import Batch, Clock, Parts, Update
from limbeck.errors import UserError

LEAST = 1e-6
"""No rate is below it: descent must go downhill."""


class Rate(nn.Module):
    """A learning rate that learns: calling it gives a scalar.

    Args:
        value: the first one.
        form: what moves: ``plain`` the rate itself, ``softplus`` a number whose softplus it is (and which stays above
            zero by itself).
    """

    def __init__(self, value: float, form: Literal["plain", "softplus"] = "plain") -> None:
        super().__init__()
        self.form = form
        self.raw = nn.Parameter(torch.tensor(value if form == "plain" else value + math.log(-math.expm1(-value))))

    def forward(self) -> Tensor:
        """The rate."""
        return self.raw if self.form == "plain" else F.softplus(self.raw)

    @torch.no_grad()
    def keep_positive_(self) -> None:
        """Bring a rate that has gone below zero back to a very small one."""
        if self.form == "plain":
            self.raw.clamp_(min=LEAST)


class RateLearning(MatchingMethod):
    """Base of methods that differentiate through a training on the student's images.

    The rate is a learner of its own, ``rate``, so that ``train.learners.rate`` says how it learns. Labels that learn
    move with the images.

    Attributes:
        form: what moves, as for :class:`Rate`.
    """

    learns_labels: ClassVar[bool] = True
    form: ClassVar[Literal["plain", "softplus"]] = "plain"

    def setup(self, parts: Parts) -> None:
        """Take the student's rate as the first one.

        Raises:
            UserError: as :class:`MatchingMethod` says, or the student has no rate.
        """
        super().setup(parts)
        student = image_set(parts.student)
        if student.rate is None:
            name = type(self).__name__.lower()
            raise UserError(f"{name} learns the rate that the images are learnt with: give student.rate a first value")
        self.regression = student.regression
        self.learners["rate"] = Rate(float(student.rate), self.form)

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the images and the rate together."""
        yield Update(("student", "rate"), partial(self.terms, clock))

    def rate(self) -> Tensor:
        """The learning rate, a scalar that takes gradients."""
        return cast("Tensor", self.learners["rate"]())

    @torch.no_grad()
    def after_step(self, clock: Clock) -> None:
        """Clamp, if asked to, and store the rate with the images."""
        super().after_step(clock)
        cast("Rate", self.learners["rate"]).keep_positive_()
        stored = cast("SyntheticImages", self.student).rate
        assert stored is not None
        stored.copy_(self.rate())


def lesson(logits: Tensor, labels: Tensor, *, regression: bool = False) -> Tensor:
    """What networks learn a set by: cross-entropy with labels [B] or probabilities [B, K], or squared error."""
    return F.mse_loss(logits, labels) if regression else F.cross_entropy(logits, labels)
