"""Two networks on one noise path: the teacher takes the first steps of a sample, a distilled network the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.diffusion.base import conditioned
from limbeck.diffusion.few_step import FewStep, Rule
from limbeck.diffusion.grids import log_grid
from limbeck.diffusion.guidance import Guided
from limbeck.diffusion.solvers import dpmpp_2m


class Hybrid(FewStep):
    """A ``few_step`` generator that samples with its ``base`` first; in training mode it is the generator alone.

    The base goes from the first level to the one after ``first`` transitions by DPM-Solver++(2M), in ``fine`` calls
    evenly spaced in log sigma; the generator goes on from there with the noise that it would have used. So a seed gives
    the sample of the distilled network, but for what is decided in the first steps.

    Args:
        net: the distilled network.
        base: the teacher's network, which does not learn.
        levels: falling noise levels of the distilled network's calls.
        rule: what happens between two of them.
        first: transitions that the base takes; 0 leaves the generator alone.
        fine: calls of the base for these.
        guidance: scale of classifier-free guidance of the base.
        sigma_min: lowest level of the grid that the levels are from.
        sigma_max: highest level of the grid that the levels are from; by default the first of them.
    """

    first: Tensor
    fine: Tensor

    def __init__(
        self,
        net: nn.Module,
        base: nn.Module,
        levels: Sequence[float],
        rule: Rule = "renoise",
        *,
        first: int = 1,
        fine: int = 4,
        guidance: float = 1.0,
        sigma_min: float = 0.002,
        sigma_max: float | None = None,
    ) -> None:
        super().__init__(net, levels, rule, sigma_min=sigma_min, sigma_max=sigma_max)
        self.base = base.requires_grad_(False)
        self.guidance = guidance
        self.register_buffer("first", torch.tensor(first))
        self.register_buffer("fine", torch.tensor(fine))

    @property
    def begins(self) -> int:
        """How many transitions the base takes: none while the generator is trained."""
        return 0 if self.training else int(self.first)

    @property
    def nfe(self) -> int:
        """Network evaluations of a sample, those of the base among them."""
        if not self.begins:
            return len(self.levels)
        each = 2 if self.guidance != 1 and self.classes is not None else 1
        return len(self.levels) - self.begins + each * int(self.fine)

    @property
    def draws(self) -> int:
        """As many as the generator takes by itself, so that seeds go together."""
        return len(self.levels) if self.rule == "renoise" else 1

    def forward(
        self,
        noise: Tensor,
        label: Tensor | None = None,
        *,
        at: Tensor | None = None,
        to: Tensor | None = None,
        scale: Tensor | None = None,
        steps: int | None = None,
    ) -> Tensor:
        """Samples [B, *shape] from standard normal noise [B, *noise_shape]; the rest is as of a ``few_step``."""
        if at is not None or not self.begins:
            return super().forward(noise, label, at=at, to=to, scale=scale, steps=steps)
        return self.visits(noise, label)[-1][1]

    def visits(self, noise: Tensor, label: Tensor | None = None) -> list[tuple[float, Tensor]]:
        """Every level on the way of a sample and the point there, the sample itself at level 0 last."""
        if not self.begins:
            return super().visits(noise, label)
        draws = noise[:, None] if self.draws == 1 else noise
        start = draws[:, 0] * self.start
        x = self._by_base(start, label)
        seen = [(self.levels[0], start), (self.levels[self.begins], x)]
        for k in range(self.begins, len(self.levels) - 1):
            x = self._between(x, draws, label, k)
            seen.append((self.levels[k + 1], x))
        return [*seen, (0.0, self._heads_for(x, label, len(self.levels) - 1))]

    def _by_base(self, x: Tensor, label: Tensor | None) -> Tensor:
        """From the first level to the one where the generator goes on."""
        grid = log_grid(int(self.fine), self.levels[0], self.levels[self.begins])
        guided = self.guidance != 1 and label is not None
        denoise = Guided(self.base, self.guidance) if guided else self.base
        given: dict[str, Any] = dict(conditioned(label))
        with torch.no_grad():
            return dpmpp_2m(denoise, x, grid, **given).samples
