"""Channel-wise distillation."""

from __future__ import annotations

from typing import Any

from limbeck.engine.method import Term
from limbeck.registry import register
from limbeck.vision.base import ProjectedTaught, Seen, summed
from limbeck.vision.losses.maps import cwd


@register("method")
class CWD(ProjectedTaught):
    """Channel-wise Knowledge Distillation for Dense Prediction (Shu et al. 2021, arXiv 2011.13256), on a classifier.

    ``L = CE + beta T^2 / C sum_c KL(phi_t || phi_s)`` with ``phi`` the softmax of each channel over its cells: where in
    the image a channel is strongest, not how strong it is. At the last map unless layers are named.

    Args:
        beta: weight of the channels (50 for features, 3 for maps of logits).
        channel_temperature: T, divides the activations before the softmax over cells.
    """

    look = "last"

    def __init__(self, *, beta: float = 50.0, channel_temperature: float = 4.0, **rest: Any) -> None:
        super().__init__(**rest)
        self.beta = beta
        self.channel_temperature = channel_temperature

    def compare(self, seen: Seen) -> dict[str, Term]:
        """``{"cwd"}``: the sum over layers."""
        layers = zip(self.projected(seen.s), seen.t, strict=True)
        values = summed(cwd(s, t, temperature=self.channel_temperature) for s, t in layers)
        return {"cwd": Term.of(values, weight=self.beta)}
