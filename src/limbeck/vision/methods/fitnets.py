"""FitNets: hints."""

from __future__ import annotations

from typing import Any

from limbeck.engine.method import Term
from limbeck.losses import mse
from limbeck.registry import register
from limbeck.vision.base import ProjectedTaught, Seen, summed


@register("method")
class FitNets(ProjectedTaught):
    """FitNets: Hints for Thin Deep Nets (Romero et al. 2015, arXiv 1412.6550), in one stage.

    ``L = CE + beta mean (r(f_s) - f_t)^2`` with a trained regressor ``r``, at the middle stage unless layers are named.
    The paper's two stages are phases of a recipe: the first with ``ce_weight: 0`` and ``parameters`` up to the hint,
    the second with ``kd``.

    Args:
        beta: weight of the hint (100 in the common CIFAR-100 recipe).
    """

    look = "middle"

    def __init__(self, *, beta: float = 100.0, **rest: Any) -> None:
        super().__init__(**rest)
        self.beta = beta

    def compare(self, seen: Seen) -> dict[str, Term]:
        """``{"hint"}``: the sum over the layers."""
        layers = zip(self.projected(seen.s), seen.t, strict=True)
        return {"hint": Term.of(summed(mse(s, t) for s, t in layers), weight=self.beta)}
