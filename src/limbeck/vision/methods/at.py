"""Attention transfer."""

from __future__ import annotations

from typing import Any

from limbeck.engine.method import Term
from limbeck.registry import register
from limbeck.vision.base import FeatureTaught, Seen, summed
from limbeck.vision.losses.maps import attention


@register("method")
class AT(FeatureTaught):
    """Paying More Attention to Attention (Zagoruyko and Komodakis 2017, arXiv 1612.03928).

    ``L = CE + beta sum_l mean_cells (Q_s - Q_t)^2`` with ``Q`` the normalised mean over channels of ``|A|^p``, at the
    end of every stage. No projector: channels are averaged away.

    Args:
        beta: weight of the attention maps, of every layer alike.
        p: power of the activations.
    """

    def __init__(self, *, beta: float = 1000.0, p: float = 2.0, **rest: Any) -> None:
        super().__init__(**rest)
        self.beta = beta
        self.p = p

    def compare(self, seen: Seen) -> dict[str, Term]:
        """``{"at"}``: the sum over layers."""
        layers = zip(seen.s, seen.t, strict=True)
        return {"at": Term.of(summed(attention(s, t, p=self.p) for s, t in layers), weight=self.beta)}
