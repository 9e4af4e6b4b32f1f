"""Flat trajectory distillation: experts whose way forgives a student that starts beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from limbeck.condensation.experts import Course
from limbeck.condensation.methods.mtt import MTT
from limbeck.registry import register


@register("method")
class FTD(MTT):
    """``mtt`` with experts that seek flat minima (Du et al., CVPR 2023, arXiv 2211.11004).

    A network that learns the images starts each stretch where the last one ended, not where an expert was, and the
    errors add up; along a flat way they count less. The paper delivers a moving average of the images with decay 0.9995
    over 5,000 steps (``train.ema``, ``train.deliver``); the steps themselves do without it.

    Args:
        ascent: ``sam`` follows the gradient at the worst point nearby, ``gsam`` that less what lowers the loss here
            more than there.
        rho: how far nearby is, as a length in the weights.
        alpha: share of that part which GSAM takes away.
    """

    fixed = ("expert_lr", "expert_momentum", "expert_decay", "rho", "alpha")

    def __init__(
        self, *, ascent: Literal["sam", "gsam"] = "gsam", rho: float = 0.01, alpha: float = 1.0, **rest: Any
    ) -> None:
        super().__init__(**rest)
        self.ascent = ascent
        self.rho = rho
        self.alpha = alpha

    def course(self) -> Course:
        """With flat minima."""
        return replace(super().course(), flat=self.ascent, rho=self.rho, alpha=self.alpha)
