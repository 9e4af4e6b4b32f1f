"""Variational information distillation."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.method import Term
from limbeck.errors import UserError
from limbeck.losses import wide
from limbeck.registry import register
from limbeck.vision.base import FeatureTaught, Seen, summed
from limbeck.vision.losses.embeddings import gaussian
from limbeck.vision.shapes import as_map, same_cells

LEAST = 1e-5
"""Least variance of a channel."""


@register("method")
class VID(FeatureTaught):
    """Variational Information Distillation for Knowledge Transfer (Ahn et al. 2019, arXiv 1904.05835).

    ``L = CE + beta sum_l mean 1/2 ((t - mu(s))^2 / var_c + log var_c)``: a bound on the information that the teacher's
    features and the student's share, by a Gaussian whose mean is a network of three 1x1 convolutions and whose
    variance is learnt for each channel. Of unlike grids the finer is averaged to the coarser.

    Args:
        beta: weight of the bound, of every layer alike.
        variance: of every channel at the start.
    """

    fixed = ("variance",)

    def __init__(self, *, beta: float = 1.0, variance: float = 5.0, **rest: Any) -> None:
        super().__init__(**rest)
        if variance <= LEAST:
            raise UserError(f"vid: the variance must be above {LEAST:g}, got {variance}")
        self.beta = beta
        self.variance = variance

    def helpers(self, s: list[Tensor], t: list[Tensor]) -> dict[str, nn.Module]:
        """A Gaussian for each pair of layers."""
        widths = [(as_map(own).shape[1], as_map(other).shape[1]) for own, other in zip(s, t, strict=True)]
        return {"gaussians": Gaussians(widths, self.variance)}

    def compare(self, seen: Seen) -> dict[str, Term]:
        """``{"vid"}``: the sum over layers."""
        pairs = [same_cells(as_map(s), as_map(wide(t))) for s, t in zip(seen.s, seen.t, strict=True)]
        laws = self.learners["gaussians"]([s for s, _ in pairs])
        values = (gaussian(mean, variance, t) for (mean, variance), (_, t) in zip(laws, pairs, strict=True))
        return {"vid": Term.of(summed(values), weight=self.beta)}


class Gaussians(nn.Module):
    """Mean and variance of the teacher's channels given the student's, for several layers.

    Args:
        widths: channels of student and teacher by layer.
        variance: of every channel at the start.
    """

    def __init__(self, widths: list[tuple[int, int]], variance: float) -> None:
        super().__init__()
        self.means = nn.ModuleList(_mean(own, other) for own, other in widths)
        # The inverse of the softplus that keeps a variance positive.
        start = math.log(math.expm1(variance - LEAST))
        self.spreads = nn.ParameterList(torch.full((other,), start) for _, other in widths)

    def forward(self, features: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """[B, C_s, H, W] each -> mean [B, C_t, H, W] and variance [C_t] each."""
        variances = [F.softplus(wide(spread)) + LEAST for spread in self.spreads]
        means = [mean(feature) for mean, feature in zip(self.means, features, strict=True)]
        return list(zip(means, variances, strict=True))


def _mean(own: int, other: int) -> nn.Sequential:
    def layer(inputs: int) -> nn.Conv2d:
        return nn.Conv2d(inputs, other, 1, bias=False)

    return nn.Sequential(layer(own), nn.ReLU(), layer(other), nn.ReLU(), layer(other))
