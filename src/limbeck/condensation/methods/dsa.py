"""Gradient matching under differentiable Siamese augmentation."""

from __future__ import annotations

from typing import Any

from limbeck.condensation.matching import Ops
from limbeck.condensation.methods.dc import DC
from limbeck.registry import register


@register("method")
class DSA(DC):
    """``dc`` with real and learned images of a class augmented alike (Zhao and Bilen, ICML 2021, arXiv 2102.08259).

    The network that looks learns the images under augmentation, too, each image then by its own numbers.
    """

    def __init__(self, *, augment: Ops = ("color", "crop", "cutout", "flip", "scale", "rotate"), **rest: Any) -> None:
        super().__init__(augment=augment, **rest)
