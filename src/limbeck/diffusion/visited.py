"""States that a guided sampler visits: what a network must be right about that is to stand for guidance."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.diffusion.base import conditioned
from limbeck.diffusion.guidance import Guided
from limbeck.diffusion.paths import Denoise, like
from limbeck.diffusion.samplers import karras_grid
from limbeck.diffusion.steps import step


class Visited(NamedTuple):
    """States with what the guided teacher says there; all of a trajectory have its class and strength.

    Attributes:
        x: [N, levels, *shape].
        sigma: [levels], falling.
        target: the guided estimates, shape of ``x``.
        label: int64 [N], or None.
        scale: [N].
    """

    x: Tensor
    sigma: Tensor
    target: Tensor
    label: Tensor | None
    scale: Tensor

    def at(self, which: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
        """State, level, class, strength and target of the trajectories ``which`` [B] at the places ``level`` [B]."""
        label = None if self.label is None else self.label[which]
        return self.x[which, level], self.sigma[level], label, self.scale[which], self.target[which, level]


@torch.no_grad()
def visit(
    denoise: Denoise,
    noise: Tensor,
    label: Tensor | None,
    scale: Tensor,
    *,
    steps: int,
    sigma_min: float,
    sigma_max: float,
    rho: float = 7.0,
) -> Visited:
    """The states of trajectories from standard normal ``noise`` [N, *shape], each guided by its own strength [N].

    Heun's method goes down the Karras grid of so many steps; the state at each level is kept before the step.
    """
    strong, condition = Guided(denoise, like(scale, noise)), conditioned(label)

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        return strong(x, sigma, **condition)

    grid = karras_grid(steps, sigma_min, sigma_max, rho).to(noise)
    x, states, targets = noise * sigma_max, [], []
    for now, then in pairwise(grid):
        here, there = now.expand(len(x)), then.expand(len(x))
        states.append(x)
        targets.append(guided(x, here))
        x = step(guided, x, here, there)
    return Visited(torch.stack(states, dim=1), grid[:-1], torch.stack(targets, dim=1), label, scale)


def joined(parts: list[Visited]) -> Visited:
    """Several as one, over the same levels."""
    labels = [p.label for p in parts if p.label is not None]
    x, target, scale = (torch.cat([getattr(p, name) for p in parts]) for name in ("x", "target", "scale"))
    return Visited(x, parts[0].sigma, target, torch.cat(labels) if labels else None, scale)
