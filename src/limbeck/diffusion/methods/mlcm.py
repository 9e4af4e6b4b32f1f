"""MLCM: consistency in ever fewer segments, on states of the teacher's own trajectories."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.diffusion.base import conditioned
from limbeck.diffusion.rollouts import go_down, ladder
from limbeck.diffusion.segments import SegmentedMethod
from limbeck.engine.method import Batch, Clock
from limbeck.registry import register


@register("method")
class MLCM(SegmentedMethod):
    """Multistep latent consistency (Xie et al., arXiv 2406.05768; later called TLCM).

    Consistency in each segment, of which there are fewer stage after stage, without any data: the points that are
    learnt on are states of the teacher's own, guided trajectories from pure noise. These have another law than noised
    data where data is not what the teacher makes, as under guidance. A network that takes two levels serves every
    number of steps; another is for the student's own.

    What differs: a trajectory is followed anew down to each point, in ``pair_steps`` steps of the solver, from one of
    ``pairs`` draws of noise; the losses that the later version of the paper adds (distribution matching, a
    discriminator, rewards) are left out.

    Args:
        segments: of each stage, falling; the last as many as the student has steps, unless its network jumps.
        states: points of the ``teacher``'s trajectories, or noised clean samples (``data``), for comparison.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(
        self, *, segments: tuple[int, ...] = (8, 4, 2), states: Literal["teacher", "data"] = "teacher", **rest: Any
    ) -> None:
        super().__init__(segments=segments, **rest)
        self.states = states

    @torch.no_grad()
    def points_at(self, level: Tensor, batch: Batch, clock: Clock) -> tuple[Tensor, Tensor | None]:
        """Where trajectories of the teacher are at levels [B], and their class."""
        if self.states == "data":
            return super().points_at(level, batch, clock)
        which = (clock.uniform(batch["id"], (1,), "pair").squeeze(1) * self.pairs).long()
        start, label = self.pair_start(which, clock.seed)
        levels = [self.levels(place) for place in ladder(self.position(level), self.pair_steps)]
        with self.teacher.context():
            x = go_down(self.real, start * self.sigma_max, levels, order=self.order, **conditioned(label))
        return x, label

    def position(self, level: Tensor) -> Tensor:
        """Where levels are on the grid, in [0, 1]."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (level ** (1 / self.rho) - low) / (high - low)
