"""DataDAM: synthetic images that draw the attention of random networks where the real ones draw it."""

from __future__ import annotations

from typing import Any

import torch

from limbeck.condensation.losses import attention, distribution_matching
from limbeck.condensation.matching import MatchingMethod, Ops
from limbeck.condensation.networks import relu_maps
from limbeck.engine.method import Clock, Term
from limbeck.errors import UserError
from limbeck.registry import register

FACTOR = 100.0
"""What the published code multiplies the loss by, for a learning rate of 1."""


@register("method")
class DataDAM(MatchingMethod):
    """Data-set condensation with attention matching (Sajedi et al., ICCV 2023, arXiv 2310.00093).

    As ``dm``, with a fresh random network and a Siamese augmentation in each step. What is matched by class are the
    means of the attention maps after every ReLU but the last, ``sum_channels |F|^p`` as a vector of length 1 for each
    image, and, with a small weight, those of the last features. The published code takes SGD with learning rate 1 (10
    from 100 images a class on) and momentum 0.5 over 20,000 steps.

    Args:
        balance: lambda, weight of the features beside the attention.
        power: p of the maps. The paper's text says 4, its code 1.
    """

    def __init__(
        self,
        *,
        batch_real: int = 64,
        augment: Ops = ("color", "crop", "cutout", "flip", "scale", "rotate"),
        balance: float = 0.01,
        power: float = 1.0,
        **rest: Any,
    ) -> None:
        super().__init__(batch_real=batch_real, augment=augment, **rest)
        if power <= 0:
            raise UserError(f"datadam: power must be above 0, not {power:g}")
        self.balance = balance
        self.power = power

    def terms(self, clock: Clock) -> dict[str, Term]:
        """The terms ``attention`` and ``features``; their count is 1: the paper sums over classes and layers."""
        images, labels = self.student()
        key = (clock.seed, clock.step)
        network = self.fresh((key, "network"), images.device).requires_grad_(False)
        sets = self.drawn(images, labels, key)
        with torch.no_grad():
            real_maps, real = relu_maps(network, sets.real)
        own_maps, own = relu_maps(network, sets.images)
        if len(own_maps) < 2:
            raise UserError(f"datadam: {type(network).__name__} needs two ReLUs or more, whose maps are compared")
        gaps = [
            distribution_matching(
                attention(a, self.power), sets.real_labels, attention(b, self.power), labels, self.real.classes
            ).sum()
            for a, b in zip(real_maps[:-1], own_maps[:-1], strict=True)
        ]
        last = distribution_matching(real, sets.real_labels, own, labels, self.real.classes).sum()
        return {
            "attention": Term(FACTOR * torch.stack(gaps).sum(), 1, unit="sets"),
            "features": Term(FACTOR * last, 1, self.balance, unit="sets"),
        }
