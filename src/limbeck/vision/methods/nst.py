"""Neuron selectivity transfer."""

from __future__ import annotations

from typing import Any, Literal

from limbeck.engine.method import Term
from limbeck.registry import register
from limbeck.vision.base import FeatureTaught, Seen, summed
from limbeck.vision.losses.maps import nst


@register("method")
class NST(FeatureTaught):
    """Like What You Like: Neuron Selectivity Transfer (Huang and Wang 2017, arXiv 1707.01219).

    ``L = CE + beta sum_l MMD^2(s, t)``: the student's channels, each a direction in the space of cells, are distributed
    as the teacher's. No projector: the numbers of channels may differ. Memory grows with their product.

    Args:
        beta: weight of the discrepancy, of every layer alike.
        kernel: of the discrepancy, ``polynomial`` or ``gaussian``.
        degree: of the polynomial; 1 is the paper's linear kernel.
        constant: of the polynomial.
    """

    def __init__(
        self,
        *,
        beta: float = 50.0,
        kernel: Literal["polynomial", "gaussian"] = "polynomial",
        degree: int = 2,
        constant: float = 0.0,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        self.beta = beta
        self.kernel: Literal["polynomial", "gaussian"] = kernel
        self.degree = degree
        self.constant = constant

    def compare(self, seen: Seen) -> dict[str, Term]:
        """``{"nst"}``: the sum over layers."""
        values = summed(
            nst(s, t, kernel=self.kernel, degree=self.degree, constant=self.constant)
            for s, t in zip(seen.s, seen.t, strict=True)
        )
        return {"nst": Term.of(values, weight=self.beta)}
