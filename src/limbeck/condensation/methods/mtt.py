"""Matching training trajectories: images on which a network goes the way that experts went on the real ones."""

from __future__ import annotations

from typing import Any

from limbeck.condensation.following import Following
from limbeck.condensation.trajectory import distance
from limbeck.condensation.unroll import unroll
from limbeck.engine.method import Clock, Term
from limbeck.registry import register


@register("method")
class MTT(Following):
    """Matching training trajectories (Cazenavette et al., CVPR 2022, arXiv 2203.11932).

    A step takes one of ``experts`` networks, trained on the real images, after t epochs, lets it go on for ``steps``
    steps on the student's images, augmented, at a rate that learns, and moves images and rate so that it ends where the
    expert was at t + ``ahead``: ``|w_N - w*_{t+M}|^2 / |w*_t - w*_{t+M}|^2``. The paper takes SGD with momentum 0.5
    over 5,000 steps, with learning rate 100 or 1,000 for the images and 1e-5 for the rate (``train.learners.rate``),
    and whitens CIFAR (data ``whitened``).

    Args:
        checkpoint: hold the graph of one step at a time: less memory, half as much time again, the same gradient.
    """

    def __init__(self, *, checkpoint: bool = False, **rest: Any) -> None:
        super().__init__(**rest)
        self.checkpoint = checkpoint

    def terms(self, clock: Clock) -> dict[str, Term]:
        """The one term of a step: the share of the expert's way that is left."""
        images, labels = self.pulled()
        expert, epoch = self.segment(clock)
        begin, target = self.expert_weights(clock, expert, [epoch, epoch + self.ahead], images.device)
        path = unroll(
            self.step_loss(clock),
            begin,
            self.rate(),
            self.steps,
            (images, labels),
            momentum=self.momentum,
            checkpoint=self.checkpoint,
        )
        return {"trajectory": Term(distance(path[-1], target, begin), 1, unit="sets")}
