"""Distribution matching: synthetic images whose mean features are those of the real ones."""

from __future__ import annotations

from typing import Any

from limbeck.condensation.losses import distribution_matching
from limbeck.condensation.matching import MatchingMethod, Ops
from limbeck.condensation.networks import embed, features_of
from limbeck.engine.method import Clock, Term
from limbeck.registry import register


@register("method")
class DM(MatchingMethod):
    """Data-set condensation with distribution matching (Zhao and Bilen, WACV 2023, arXiv 2110.04181).

    Each step draws a fresh random network, frozen, and one differentiable Siamese augmentation per class, and moves
    the student's images so that their mean feature in each class is that of a batch of real images:
    ``sum_c || mean phi(a_c(x)) - mean phi(a_c(s)) ||^2``. The paper takes SGD with learning rate 1, momentum 0.5 and no
    weight decay over 20,000 steps, and does not clamp.
    """

    def __init__(
        self,
        *,
        augment: Ops = ("color", "crop", "cutout", "flip", "scale", "rotate"),
        **rest: Any,
    ) -> None:
        super().__init__(augment=augment, **rest)

    def terms(self, clock: Clock) -> dict[str, Term]:
        """The one term of a step; its count is 1, because the paper sums over the classes."""
        images, labels = self.student()
        key = (clock.seed, clock.step)
        network = self.fresh((key, "network"), images.device).requires_grad_(False)
        sets = self.drawn(images, labels, key)
        target, moved = embed(network, sets.real), features_of(network)(sets.images)
        gaps = distribution_matching(target, sets.real_labels, moved, labels, self.real.classes)
        return {"dm": Term(gaps.sum(), 1, unit="sets")}
