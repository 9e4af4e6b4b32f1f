"""iCT: consistency training with neither a slow copy nor a learned distance."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from limbeck.diffusion.paths import like
from limbeck.diffusion.trajectories import TrajectoryMethod
from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class ICT(TrajectoryMethod):
    """Improved consistency training (Song and Dhariwal, arXiv 2310.14189).

    As consistency training, with targets of the network itself, a pseudo-Huber distance, the weight ``1 / (s' - s)``
    of neighbours, levels drawn by a log-normal law cut to the grid (section 3.5), and a grid whose steps double at
    equal shares of the training (section 3.4). Dropout, of which the paper has much, must be the same in both calls;
    networks here have none.

    Args:
        levels: grid steps at most, s1.
        first_levels: grid steps that the training begins with, s0.
        mean: of the logarithm of the levels.
        std: standard deviation of that logarithm.
        huber: c of the pseudo-Huber distance, in units of ``sqrt(dimensions)``.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(
        self,
        *,
        levels: int = 1280,
        first_levels: int = 10,
        mean: float = -1.1,
        std: float = 2.0,
        huber: float = 0.00054,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        if first_levels < 1 or levels < 1:
            raise UserError("ict: first_levels and levels must be 1 or more")
        self.huber = huber
        self.level_count = levels
        self.first_levels = first_levels
        self.mean = mean
        self.std = std

    def setup(self, parts: Parts) -> None:
        """The student's network must be the identity at ``sigma_min``."""
        super().setup(parts)
        self.need_floor(parts, self.sigma_min)

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The weighted distance between the answers at two neighbouring levels."""
        x0, label = self.clean(batch, clock, "data")
        eps = clock.normal(batch["id"], self.shape, "noise").to(x0)
        higher, lower = self.neighbours(clock.uniform(batch["id"], (1,), "level").squeeze(1), clock)
        target = self.lagging(x0 + like(lower, x0) * eps, lower, label)
        distance = self.apart(self.network(x0 + like(higher, x0) * eps, higher, label), target)
        return {"consistency": Term.of(distance / (higher - lower))}

    def due(self, clock: Clock) -> int:
        """Grid steps at this point of the training: they double at equal shares."""
        phases = max(int(math.log2(self.level_count / self.first_levels)) + 1, 1)
        share = max(clock.total // phases, 1)
        return min(self.first_levels * 2 ** (clock.step // share), self.level_count)

    def neighbours(self, u: Tensor, clock: Clock) -> tuple[Tensor, Tensor]:
        """A level and the one below it, from uniform numbers."""
        count = self.due(clock)
        grid = self.levels(torch.linspace(0, 1, count + 1, dtype=torch.float64, device=u.device))
        below = torch.erf((grid.log() - self.mean) / (math.sqrt(2) * self.std))
        law = (below - below[0]) / (below[-1] - below[0])
        k = (torch.searchsorted(law, u.double(), right=True) - 1).clamp(0, count - 1)
        return grid[k + 1].to(u), grid[k].to(u)
