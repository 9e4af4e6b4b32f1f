"""Knowledge review."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from limbeck.engine.method import Clock, Term
from limbeck.registry import register
from limbeck.vision.base import FeatureTaught, Seen, summed
from limbeck.vision.fusion import Review
from limbeck.vision.losses.review import hcl
from limbeck.vision.shapes import as_map, as_vector

WIDEST = 512


@register("method")
class ReviewKD(FeatureTaught):
    """Distilling Knowledge via Knowledge Review (Chen et al. 2021, arXiv 2104.09044).

    ``L = CE + w beta sum_l HCL(R_l(f_s^l .. f_s^L), f_t^l)``: every level of the teacher is compared with that level of
    the student and all that are deeper, fused from deep to shallow. The levels are the ends of the stages and, as the
    deepest, the average of the last one over its cells. ``w`` grows from 0 to 1 over the warm-up.

    Args:
        beta: weight of the review (0.6 to 8 by the pair of models).
        warmup: epochs over which ``w`` grows linearly (20 in the paper's 240-epoch recipe).
        levels: sides of the coarser grids at which two maps are compared too.
        fusion: ``attention`` weighs each cell of the two maps (the paper); ``sum`` adds them; ``none`` compares each
            level alone. The latter two are the paper's ablation.
        width: channels of the fused maps; by default those of the student's deepest level, at most 512.
    """

    def __init__(
        self,
        *,
        beta: float = 1.0,
        warmup: float = 20.0,
        levels: tuple[int, ...] = (4, 2, 1),
        fusion: Literal["attention", "sum", "none"] = "attention",
        width: int | None = None,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        self.beta = beta
        self.warmup = warmup
        self.levels = levels
        self.fusion: Literal["attention", "sum", "none"] = fusion
        self.width = width

    def helpers(self, s: list[Tensor], t: list[Tensor]) -> dict[str, nn.Module]:
        """The fusion blocks."""
        own, other = _levels(s), _levels(t)
        width = min(own[-1].shape[1], WIDEST) if self.width is None else self.width
        return {"review": Review(own, other, width, self.fusion)}

    def compare(self, seen: Seen) -> dict[str, Term]:
        """``{"review"}``: the sum over levels."""
        pairs = zip(self.learners["review"](_levels(seen.s)), _levels(seen.t), strict=True)
        value = summed(hcl(s, t, levels=self.levels) for s, t in pairs)
        return {"review": Term.of(value, weight=self.beta * self.ramp(seen.clock))}

    def ramp(self, clock: Clock) -> float:
        """``min(epoch / warmup, 1)`` with the first epoch counted as 1."""
        return min((clock.epoch + 1) / self.warmup, 1.0) if self.warmup > 0 else 1.0


def _levels(features: list[Tensor]) -> list[Tensor]:
    """Maps, shallow to deep, and the average of the last one as a map of a single cell."""
    return [*map(as_map, features), as_vector(features[-1])[:, :, None, None]]
