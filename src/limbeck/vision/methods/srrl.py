"""Softmax regression representation learning."""

from __future__ import annotations

import copy
from typing import Any

from limbeck.engine.method import Parts, Term
from limbeck.losses import mse, wide
from limbeck.models import places
from limbeck.registry import register
from limbeck.vision.base import ProjectedTaught, Seen, example


@register("method")
class SRRL(ProjectedTaught):
    """Knowledge Distillation via Softmax Regression Representation Learning (Yang et al. 2021, ICLR).

    ``L = CE + alpha mean (r(f_s) - f_t)^2 + beta mean (h(r(f_s)) - z_t)^2``: the student's embedding, through a trained
    map r, is the teacher's, and the teacher's frozen last layer h gives the teacher's logits for it. The map takes the
    pooled embedding, and is none where the widths are equal.

    Args:
        alpha: weight of the embeddings.
        beta: weight of the logits.
    """

    look = "embedding"

    def __init__(self, *, alpha: float = 1.0, beta: float = 1.0, **rest: Any) -> None:
        super().__init__(**rest)
        self.alpha = alpha
        self.beta = beta

    def setup(self, parts: Parts) -> None:
        """The map, and a copy of the teacher's last layer, which is not the one whose input is recorded."""
        teacher = parts.teachers["teacher"].module
        head = copy.deepcopy(places.head(teacher, example(parts))[1])
        super().setup(parts)
        self.frozen["head"] = head

    def compare(self, seen: Seen) -> dict[str, Term]:
        """``{"embedding", "regression"}``."""
        mapped = wide(self.projected(seen.s)[-1])
        return {
            "embedding": Term.of(mse(mapped, seen.t[-1]), weight=self.alpha),
            "regression": Term.of(mse(self.frozen["head"](mapped), seen.teacher), weight=self.beta),
        }
