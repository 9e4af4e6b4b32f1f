"""TESLA: matching training trajectories in the memory of one step."""

from __future__ import annotations

from limbeck.condensation.following import Following
from limbeck.condensation.trajectory import constant_memory
from limbeck.engine.method import Clock, Term
from limbeck.registry import register


@register("method")
class TESLA(Following):
    """``mtt`` whose gradient holds the graph of one step (Cui, Wang, Si and Hsieh, ICML 2023, arXiv 2211.10586).

    What a step's gradient owes to the steps before it is left out, so that the gradient is exact for one step alone and
    otherwise near that of ``mtt``; with ``checkpoint: true``, which takes as little memory, ``mtt`` has its own. The
    paper gives the images the probabilities of a teacher, which stay (``student.labels: soft``, a teacher in the
    recipe, ``targets_lr: 0``).
    """

    def terms(self, clock: Clock) -> dict[str, Term]:
        """The one term of a step: its value, and the gradient that it gives images, labels and rate."""
        images, labels = self.pulled()
        rate = self.rate()
        expert, epoch = self.segment(clock)
        begin, target = self.expert_weights(clock, expert, [epoch, epoch + self.ahead], images.device)
        value, slopes, by_rate = constant_memory(
            self.step_loss(clock), begin, target, rate, self.steps, (images, labels), momentum=self.momentum
        )
        moved = rate * by_rate
        for given, slope in zip((images, labels), slopes, strict=True):
            if slope is not None:
                moved = moved + (given * slope).sum()
        return {"trajectory": Term(value + moved - moved.detach(), 1, unit="sets")}
