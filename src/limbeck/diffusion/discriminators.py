"""Discriminators with networks of their own, that know the noise level and may compare a point with one higher up.

A logit is that of *real*. Those that stand on the features of a denoising network are in :mod:`limbeck.diffusion.gan`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.diffusion.gan import Head
from limbeck.diffusion.networks import LOWEST, Condition
from limbeck.diffusion.paths import like

SLOPE = 0.2
"""Of the leaky rectifiers, below zero."""


class Discriminator(nn.Module):
    """Points at a level, and where there are pairs the points that they came from, to the logit [B] of *real*.

    An MLP for vectors; convolutions, with every second one at half the size, for pictures [C, H, W]. Points are scaled
    to unit variance.

    Args:
        shape: of one sample.
        width: of the hidden layers.
        depth: number of residual layers.
        sigma_data: standard deviation of the data.
        classes: number of classes it is conditioned on.
        pairs: whether it sees a second point, at a level of its own.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int,
        depth: int,
        sigma_data: float,
        classes: int | None = None,
        *,
        pairs: bool = False,
    ) -> None:
        super().__init__()
        self.sigma_data = sigma_data
        self.flat = len(shape) != 3
        inputs = (math.prod(shape) if self.flat else shape[0]) * (1 + pairs)
        self.condition = Condition(width, classes, jumps=pairs)
        layer = nn.Linear if self.flat else _convolution
        self.first = layer(inputs, width)
        self.layers = nn.ModuleList(layer(width, width) for _ in range(depth))
        self.last = nn.Linear(width, 1)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        label: Tensor | None = None,
        *,
        beside: Tensor | None = None,
        at: Tensor | None = None,
        penalised: bool = False,
    ) -> Tensor:
        """The logit, [B]; ``penalised``, the logit and the penalty on its slope at the points, [B, 2].

        Args:
            x: points [B, *shape].
            sigma: their level [B], which may be 0.
            label: class, int64 [B].
            beside: the second points [B, *shape].
            at: their level [B].
            penalised: see above. The slope is taken here, within the call, as a wrapped module demands.
        """
        if not penalised:
            return self._logit(x, sigma, label, beside, at)
        points = x.detach().requires_grad_()
        logit = self._logit(points, sigma, label, beside, at)
        return torch.stack([logit, gradient_penalty(logit, points)], dim=1)

    def _logit(
        self, x: Tensor, sigma: Tensor, label: Tensor | None, beside: Tensor | None, at: Tensor | None
    ) -> Tensor:
        points = [self._scaled(x, sigma)]
        if beside is not None and at is not None:
            points.append(self._scaled(beside, at))
        h = torch.cat([p.flatten(1) for p in points] if self.flat else points, dim=1)
        there = self.condition(torch.log(sigma.clamp_min(LOWEST)) / 4, label, to=at)
        h = self.first(h) + (there if self.flat else there[:, :, None, None])
        for k, layer in enumerate(self.layers):
            h = h + layer(F.leaky_relu(h, SLOPE))
            if not self.flat and k % 2 == 0 and min(h.shape[-2:]) > 3:
                h = F.avg_pool2d(h, 2)
        h = F.leaky_relu(h, SLOPE)
        return self.last(h if self.flat else h.mean(dim=(2, 3))).squeeze(1)

    def _scaled(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x / like(torch.sqrt(sigma**2 + self.sigma_data**2), x)


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def gradient_penalty(logit: Tensor, points: Tensor) -> Tensor:
    """``|d logit / d point|^2 / 2`` [B], R1 where the points are real (arXiv 1801.04406, eq. 9).

    Args:
        logit: [B], each of its own point.
        points: [B, *shape], that take a gradient.
    """
    (slope,) = torch.autograd.grad(logit.sum(), points, create_graph=True)
    return slope.square().flatten(1).sum(dim=1) / 2


def hinge_real(logit: Tensor) -> Tensor:
    """``max(0, 1 - logit)`` [B], a real sample's part of the hinge loss (arXiv 1705.02894)."""
    return F.relu(1 - logit)


def hinge_fake(logit: Tensor) -> Tensor:
    """``max(0, 1 + logit)`` [B], a generated sample's part of the hinge loss."""
    return F.relu(1 + logit)


class Heads(nn.Module):
    """A head on each of several features, to their logits [B, heads] of *real*.

    Args:
        inputs: features of each, [B, D] or maps [B, D, H, W], which are taken by their mean.
        width: of the hidden layers.
    """

    def __init__(self, inputs: Sequence[int], width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(size, width) for size in inputs)

    def forward(self, *features: Tensor, penalised: bool = False) -> Tensor:
        """The logits; ``penalised``, with the penalty on the slope of each at its own features, [B, heads, 2]."""
        if not penalised:
            return torch.stack([head(f) for head, f in zip(self.heads, features, strict=True)], dim=1)
        found = []
        for head, f in zip(self.heads, features, strict=True):
            at = f.detach().requires_grad_()
            logit = head(at)
            found.append(torch.stack([logit, gradient_penalty(logit, at)], dim=1))
        return torch.stack(found, dim=1)
