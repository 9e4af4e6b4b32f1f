"""Overhaul of feature distillation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limbeck.engine.method import Parts, Term
from limbeck.losses import wide
from limbeck.registry import register
from limbeck.vision.activations import BeforeActivationTaught, halved, margins
from limbeck.vision.base import Seen, summed
from limbeck.vision.losses.maps import partial_l2


@register("method")
class OFD(BeforeActivationTaught):
    """A Comprehensive Overhaul of Feature Distillation (Heo et al. 2019, arXiv 1904.01866).

    ``L = CE + alpha sum_l 2^(l-n) d(r_l(s_l), max(t_l, m_l))`` of features before the activation at the end of the n
    stages. The teacher's are cut from below at ``m``, by channel the mean of its negative values (from the batch norm
    that gives them); ``r`` is a connector; ``d`` leaves out where both sides are off. In the paper the teacher
    normalises by the batch: ``mode: batch_stats`` in its block.

    Args:
        alpha: weight of the deepest layer (0.001 on CIFAR, 0.0001 on ImageNet).
    """

    def __init__(self, *, alpha: float = 1e-3, **rest: Any) -> None:
        super().__init__(**rest)
        self.alpha = alpha

    def setup(self, parts: Parts) -> None:
        """As its base; and the margins."""
        super().setup(parts)
        self._margins = margins(self.teacher.module, self._other.paths)

    def compare(self, seen: Seen) -> dict[str, Term]:
        """``{"ofd"}``: the sum over layers."""
        cut = [margin_relu(t, m) for t, m in zip(seen.t, self._margins, strict=True)]
        layers = zip(halved(len(cut)), self.projected(seen.s), cut, strict=True)
        return {"ofd": Term.of(summed(w * partial_l2(s, t) for w, s, t in layers), weight=self.alpha)}


def margin_relu(feature: Tensor, margin: Tensor) -> Tensor:
    """``max(x, m)`` with a margin for each channel, [B, C, ...] and [C] -> [B, C, ...]."""
    shaped = margin.to(feature.device).view(-1, *[1] * (feature.dim() - 2))
    return torch.maximum(wide(feature), shaped)
