"""Few calls without training: the settings of the sampler are searched against the teacher's own long run."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from limbeck.diffusion import samplers
from limbeck.diffusion.base import DiffusionMethod, conditioned
from limbeck.diffusion.levels import karras
from limbeck.diffusion.preset import SOLVERS, Preset
from limbeck.engine import noise
from limbeck.engine.method import Batch, Clock, Parts, Update
from limbeck.errors import UserError
from limbeck.metrics.samples import energy_distance
from limbeck.registry import register

BETTER, WORSE = 1.3, 0.9
"""What a step that finds something better, and one that does not, do to the width of the search."""


class Settings(NamedTuple):
    """Of a preset: ``place`` [P] is what is searched (logarithms), ``scales`` [K] those of guidance, and the order."""

    place: Tensor
    scales: Tensor
    order: int


@register("method")
class FewStepHparams(DiffusionMethod):
    """Sampler settings for a few calls (the idea of arXiv 2510.02390: "Hyperparameters are all you need").

    The paper shows that much of what a few steps lose, they lose by where the steps are put, by the solver's order, by
    guidance and by how the last step ends, and gives settings for text-to-image models by an analysis of truncation
    errors. Here they are searched for: a step of the training proposes changes of the best settings so far (the levels
    of all calls with it the first and the last one, the order of the solver, and with guidance its scale at each
    call), samples with them from fixed noise, and keeps the best of them where it is nearer to what many steps of the
    same teacher make of this noise. It is an evolution strategy with one parent whose width grows with success. No
    gradient is taken and no weight changes; the student is a ``preset`` around the teacher's network.

    What differs from the paper: the settings come from a search in place of its analysis, there is no rescaling of a
    U-Net's skips, and the last call names the sample, at whatever level is found for it.

    Args:
        objective: what is lowered: ``map`` is the mean square of the distance to where the long run ends from the
            same noise, ``law`` the energy distance of both sets of samples.
        grid: what is searched: ``free`` levels, or those of a ``karras`` grid by its curvature and its two ends.
        highest_order: of the solvers that are tried, 1 to 3.
        samples: fixed starts that settings are judged on.
        proposals: settings that are tried in each step, every other one with a solver of another order; 0 leaves the
            default settings.
        spread: standard deviation of a first change, in the logarithm of a level.
        reference_steps: of Heun's method, for the long run.
        rho: curvature of the long run's grid, and of the one that the search starts from.
        guidance: scale of classifier-free guidance of the teacher, for classes; 1 is none.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    controls = {
        "default_settings": {"method": {"name": "few_step_hparams", "proposals": 0}},
    }

    def __init__(
        self,
        *,
        objective: Literal["map", "law"] = "map",
        grid: Literal["free", "karras"] = "free",
        highest_order: int = 3,
        samples: int = 256,
        proposals: int = 8,
        spread: float = 0.3,
        reference_steps: int = 50,
        rho: float = 7.0,
        guidance: float = 1.0,
    ) -> None:
        super().__init__(rho=rho, guidance=guidance)
        if highest_order not in SOLVERS:
            raise UserError(f"few_step_hparams: highest_order must be one of 1, 2 and 3, not {highest_order}")
        if min(samples, reference_steps) < 1 or proposals < 0:
            raise UserError("few_step_hparams: samples and reference_steps must be 1 or more, proposals 0 or more")
        self.objective = objective
        self.grid = grid
        self.highest_order = highest_order
        self.samples = samples
        self.proposals = proposals
        self.spread = spread
        self.reference_steps = reference_steps

    def setup(self, parts: Parts) -> None:
        """Take the preset.

        Raises:
            UserError: the student is no preset.
        """
        super().setup(parts)
        if not isinstance(parts.student, Preset):
            raise UserError("few_step_hparams chooses the settings of a sampler: student: {name: preset, net: {...}}")
        self.preset = parts.student
        self.best: Settings | None = None
        self.lowest = math.inf
        self.width = 1.0
        self._reference: Tensor | None = None

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """None: nothing learns by gradients."""
        yield from ()

    @torch.no_grad()
    def before_step(self, clock: Clock) -> Collection[str]:
        """Try proposals, and give the preset the best settings so far."""
        if self.best is None:
            self.best = self.first()
            self.lowest = self.loss(self.best, clock)
        tried = [self.proposal(self.best, clock, k) for k in range(self.proposals)]
        losses = [self.loss(settings, clock) for settings in tried]
        better = min(losses, default=math.inf) < self.lowest
        if better:
            self.lowest = min(losses)
            self.best = tried[losses.index(self.lowest)]
        self.width *= BETTER if better else WORSE
        self.put(self.best)
        return ()

    # -- settings ------------------------------------------------------------------------------------------------------

    def first(self) -> Settings:
        """Where the search starts: EDM's grid of as many levels, the second order, and the teacher's guidance."""
        calls = len(self.preset.levels)
        scales = torch.full((calls,), float(self.guidance), dtype=torch.float64)
        ends = torch.tensor([self.sigma_max, self.sigma_min], dtype=torch.float64).log()
        if self.grid == "karras":
            place = torch.cat([torch.tensor([self.rho], dtype=torch.float64).log(), ends])
        else:
            place = samplers.karras_grid(calls, self.sigma_min, self.sigma_max, self.rho)[:-1].log()
        return Settings(place, scales, min(2, self.highest_order))

    def proposal(self, best: Settings, clock: Clock, number: int) -> Settings:
        """A change of the best settings, which depends on the seed, the step and its number alone."""
        ids = torch.tensor([number])
        width = self.spread * self.width
        place = best.place + width * clock.normal(ids, tuple(best.place.shape), "levels")[0].double()
        scales = best.scales
        if self.guidance != 1:
            scales = scales * (width * clock.normal(ids, tuple(scales.shape), "guidance")[0].double()).exp()
        others = [order for order in SOLVERS if order != best.order and order <= self.highest_order]
        switches = number % 2 == 1 and bool(others)
        return Settings(place, scales, others[number // 2 % len(others)] if switches else best.order)

    def levels_of(self, settings: Settings) -> Tensor:
        """The levels [K] of settings, falling, none above the level of pure noise."""
        calls = len(self.preset.levels)
        if self.grid == "free":
            return settings.place.exp().clamp(max=self.sigma_max).sort(descending=True).values
        rho, high, low = settings.place.exp().tolist()
        high, low = min(max(high, low), self.sigma_max), min(high, low, self.sigma_max)
        return karras(torch.linspace(1, 0, calls, dtype=torch.float64), low, high, rho)

    def put(self, settings: Settings) -> None:
        """Give them to the preset."""
        self.preset.levels.copy_(self.levels_of(settings))
        self.preset.scales.copy_(settings.scales)
        self.preset.order.fill_(settings.order)

    # -- judging them --------------------------------------------------------------------------------------------------

    def loss(self, settings: Settings, clock: Clock) -> float:
        """How far a preset with these settings is from the long run, on the fixed starts."""
        levels = self.levels_of(settings)
        if not bool((levels.diff() < 0).all()):
            return math.inf
        self.put(settings)
        start, label = self.starts(clock)
        made = self.student(start, **conditioned(label))
        if self._reference is None:
            self._reference = self.long_run(start, label)
        if not bool(made.isfinite().all()):
            return math.inf
        if self.objective == "map":
            return float((made - self._reference).square().mean())
        return energy_distance(made.flatten(1).cpu(), self._reference.flatten(1).cpu())

    def starts(self, clock: Clock) -> tuple[Tensor, Tensor | None]:
        """The fixed noise and classes, by the run's seed."""
        ids = torch.arange(self.samples, device=self.preset.levels.device)
        return noise.normal(ids, self.shape, (clock.seed, "few calls")), self._labels(ids, (clock.seed, "few classes"))

    def long_run(self, start: Tensor, label: Tensor | None) -> Tensor:
        """Where many steps of the teacher's sampler end."""
        with self.teacher.context():
            return samplers.sample(
                self.real,
                start,
                steps=self.reference_steps,
                sigma_min=self.sigma_min,
                sigma_max=self.sigma_max,
                rho=self.rho,
                label=label,
            ).samples

    # -- resuming ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The best settings, their loss and the width of the search."""
        if self.best is None:
            return {}
        numbers = torch.tensor([self.lowest, self.width, self.best.order], dtype=torch.float64)
        return {"place": self.best.place, "scales": self.best.scales, "numbers": numbers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        if state:
            self.lowest, self.width, order = state["numbers"].tolist()
            self.best = Settings(state["place"].cpu(), state["scales"].cpu(), int(order))
