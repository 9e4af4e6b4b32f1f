"""AGD: adapters that stand for guidance, trained where the guided sampler goes."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.diffusion.base import conditioned
from limbeck.diffusion.levels import log_normal
from limbeck.diffusion.losses import Weighting, denoising_weight, squared_error
from limbeck.diffusion.paths import like
from limbeck.diffusion.samplers import karras_grid
from limbeck.diffusion.self_guided import SelfGuided
from limbeck.diffusion.visited import Visited, visit
from limbeck.engine import noise
from limbeck.engine.method import Batch, Clock, Term
from limbeck.engine.pools import Pool, Rows
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class AGD(SelfGuided):
    """Adapter guidance distillation (Jensen and Sadat, arXiv 2503.07274).

    Small adapters on a frozen conditional network are told the strength of guidance, and learn the guided estimate of
    that same network, so that one call does for two. They learn it at the states that the guided sampler itself
    visits, of trajectories with strengths of their own that are made once, at the first step, and drawn from; noised
    data is elsewhere, the more so the stronger the guidance. No data is needed. The student's network is a
    ``guidance_adapter``.

    What differs: states are kept in full precision, and adapters are on blocks or hidden layers, not on
    attention alone.

    Args:
        states: where it is trained: ``visited`` ones, or ``noised`` data (or samples of the teacher), as other methods.
        trajectories: how many.
        trajectory_steps: of Heun's sampler, which are the levels that are visited.
        scale_min: the lowest strength.
        scale_max: the highest strength.
        weighting: of the noise levels; ``snr`` is the paper's error of eps.
        mean: of the logarithm of the levels, for ``noised`` states.
        std: standard deviation of that logarithm.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    controls = {"noised": {"method": {"states": "noised"}}}
    dial = "scale_max"

    def __init__(
        self,
        *,
        states: Literal["visited", "noised"] = "visited",
        trajectories: int = 1000,
        trajectory_steps: int = 18,
        scale_min: float = 1.0,
        scale_max: float = 5.0,
        weighting: Literal["edm", "snr", "uniform"] = "snr",
        mean: float = -0.5,
        std: float = 1.5,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        if trajectories < 1 or trajectory_steps < 1 or scale_min > scale_max or std <= 0:
            raise UserError(
                "agd: trajectories >= 1, trajectory_steps >= 1, scale_min <= scale_max and std > 0 must hold"
            )
        self.states = states
        self.trajectories = trajectories
        self.trajectory_steps = trajectory_steps
        self.scale_min = scale_min
        self.scale_max = scale_max
        self.weighting: Weighting = weighting
        self.mean = mean
        self.std = std
        self._visited: Pool | None = None

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The weighted error to the guided estimate."""
        x, sigma, label, scale, target = (self.visits if self.states == "visited" else self.noised)(batch, clock)
        weight = denoising_weight(sigma, self.weighting, self.sigma_data)
        return {"guidance": Term.of(weight * squared_error(self.network(x, sigma, label, scale=scale), target))}

    def visits(self, batch: Batch, clock: Clock) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
        """State, level, class, strength and target of random places on the trajectories."""
        if self._visited is None:
            self._visited = self.pool(
                "trajectories",
                lambda ids: self._made_for(ids, clock.seed),
                self.trajectories,
                clock.seed,
                batch["id"].device,
                sampler="heun",
                steps=self.trajectory_steps,
                nfe=2 * self.trajectory_steps - 1,
                scale_min=float(self.scale_min),
                scale_max=float(self.scale_max),
            )
        u, level = clock.uniform(batch["id"], (2,), "visited").unbind(dim=1)
        rows = self._visited[(u * self.trajectories).long()]
        grid = karras_grid(self.trajectory_steps, self.sigma_min, self.sigma_max, self.rho)[:-1].to(rows["x"])
        found = Visited(rows["x"], grid, rows["target"], rows.get("label"), rows["scale"])
        return found.at(torch.arange(len(u), device=u.device), (level * self.trajectory_steps).long())

    def noised(self, batch: Batch, clock: Clock) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
        """The same of noised samples."""
        ids = batch["id"]
        x0, label = self.clean(batch, clock, "data")
        z = clock.normal(ids, (1,), "level").squeeze(1)
        sigma = log_normal(z, self.mean, self.std).clamp(self.sigma_min, self.sigma_max)
        x = x0 + like(sigma, x0) * clock.normal(ids, self.shape, "noise")
        scale = self.strength(clock.uniform(ids, (1,), "scale").squeeze(1))
        return x, sigma, label, scale, self.guided(x, sigma, label, scale)

    def strength(self, u: Tensor) -> Tensor:
        """Strengths from uniform numbers."""
        return self.scale_min + u * (self.scale_max - self.scale_min)

    def _made_for(self, ids: Tensor, seed: int) -> Rows:
        start, label = self.pair_start(ids, seed)
        scale = self.strength(noise.uniform(ids, (1,), (seed, "visited scale")).squeeze(1))
        grid = {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max, "rho": self.rho}
        with self.alone():
            made = visit(self.base, start, label, scale, steps=self.trajectory_steps, **grid)
        return {"x": made.x, "target": made.target, "scale": scale, **conditioned(label)}
