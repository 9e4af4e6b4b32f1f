"""Transfer of activation boundaries."""

from __future__ import annotations

from typing import Any

from limbeck.engine.method import Term
from limbeck.registry import register
from limbeck.vision.activations import BeforeActivationTaught, halved
from limbeck.vision.base import Seen, summed
from limbeck.vision.losses.maps import activation_boundary


@register("method")
class AB(BeforeActivationTaught):
    """Distillation of Activation Boundaries Formed by Hidden Neurons (Heo et al. 2019, arXiv 1811.03233).

    ``L = CE + beta sum_l 2^(l-n) A(r_l(s_l), t_l)`` of features before the activation at the end of the n stages: each
    neuron of the student, through a connector ``r``, is pushed ``margin`` beyond zero to the side where the teacher's
    is, whatever its size. The paper does so before training for the task, as phases of a recipe: the first with
    ``ce_weight: 0``, the second with ``kd`` or ``supervised``.

    Args:
        beta: weight of the boundaries of the deepest layer (0.003 on CIFAR-10, 0.001 on larger images).
        margin: how far beyond zero is enough.
    """

    def __init__(self, *, beta: float = 3e-3, margin: float = 1.0, **rest: Any) -> None:
        super().__init__(**rest)
        self.beta = beta
        self.margin = margin

    def compare(self, seen: Seen) -> dict[str, Term]:
        """``{"ab"}``: the sum over layers."""
        layers = zip(halved(len(seen.t)), self.projected(seen.s), seen.t, strict=True)
        values = summed(w * activation_boundary(s, t, margin=self.margin) for w, s, t in layers)
        return {"ab": Term.of(values, weight=self.beta)}
