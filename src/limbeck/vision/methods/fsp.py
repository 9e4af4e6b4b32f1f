"""Flow of the solution procedure."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor

from limbeck.engine.method import Parts, Term
from limbeck.errors import UserError
from limbeck.registry import register
from limbeck.vision.base import ProjectedTaught, Seen, summed
from limbeck.vision.losses.maps import fsp_matrix, squared_error


@register("method")
class FSP(ProjectedTaught):
    """A Gift from Knowledge Distillation (Yim et al., CVPR 2017): the flow between layers.

    ``L = CE + beta sum_l |G_l(s) - G_l(t)|^2`` with ``G_l`` the products of all channels of one layer and the next,
    averaged over cells; the layers are the ends of all stages. Maps of equal shape, as in the paper, are compared as
    they are, others through projectors. The paper's two stages are phases of a recipe: the first with ``ce_weight: 0``.

    Args:
        beta: weight of the flows, of every pair of layers alike.
    """

    def __init__(self, *, beta: float = 1.0, **rest: Any) -> None:
        super().__init__(**rest)
        self.beta = beta

    def setup(self, parts: Parts) -> None:
        """As its base; a flow is between two layers."""
        super().setup(parts)
        if len(self._own.paths) < 2:
            raise UserError(f"a flow is between two layers and there is only {self._own.paths}: name more")

    def compare(self, seen: Seen) -> dict[str, Term]:
        """``{"fsp"}``: the sum over consecutive layers."""
        both = zip(_flows(self.projected(seen.s)), _flows(seen.t), strict=True)
        return {"fsp": Term.of(summed(squared_error(s, t) for s, t in both), weight=self.beta)}


def _flows(features: list[Tensor]) -> list[Tensor]:
    return [fsp_matrix(first, second) for first, second in pairwise(features)]
