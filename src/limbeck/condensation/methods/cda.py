"""CDA: recovering from nearly whole images first and from small crops later."""

from __future__ import annotations

import math
from typing import Any, Literal

from limbeck.condensation.recover import DecoupledMethod
from limbeck.engine.method import Clock
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class CDA(DecoupledMethod):
    """Curriculum data augmentation (Yin and Shen, TMLR 2024, arXiv 2311.18838), in the recovery of ``sre2l``.

    The least share of the area that a crop shows falls from 1 to ``crop``: with t the step over ``milestone`` times all
    steps, ``crop + (1 - crop) (1 + cos(pi t)) / 2``; after the milestone it is ``crop``. The first steps so draw the
    outline, the last the parts. For ImageNet-1K the paper takes 4000 steps of rate 0.25 and ``bn_weight`` 0.01, for
    Tiny-ImageNet 0.4 and 0.05, for ImageNet-21K 2000 steps of 0.05 and 0.25.

    Args:
        curriculum: how the share falls: ``cosine``, ``linear``, or ``step`` (whole images up to the milestone);
            ``reversed`` is the cosine backwards in time, from ``crop`` to 1, for comparison.
        milestone: part of the steps over which it falls.
    """

    def __init__(
        self,
        *,
        curriculum: Literal["cosine", "linear", "step", "reversed"] = "cosine",
        milestone: float = 1.0,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        if not 0 < milestone <= 1:
            raise UserError(f"cda: milestone is a part of the steps, above 0 and at most 1, not {milestone:g}")
        self.curriculum = curriculum
        self.milestone = milestone

    def crop_at(self, clock: Clock) -> float:
        """The share at this step."""
        time = min(clock.progress / self.milestone, 1.0)
        if self.curriculum == "step":
            whole = float(time < 1)
        elif self.curriculum == "linear":
            whole = 1 - time
        else:
            whole = (1 + math.cos(math.pi * time)) / 2
        return self.crop + (1 - self.crop) * (1 - whole if self.curriculum == "reversed" else whole)
