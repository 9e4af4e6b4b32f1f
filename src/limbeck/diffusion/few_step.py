"""Generators of a few steps: a network, the noise levels it is called at, and what happens between two calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.diffusion.dial import spoken
from limbeck.diffusion.levels import karras
from limbeck.diffusion.steps import jump, renoise

Rule = Literal["renoise", "ode", "map"]
"""Between two calls: fresh noise on the clean estimate; the line to it (DDIM); or a jump by a network that knows where
it goes (a flow map)."""


def few_levels(nfe: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> list[float]:
    """The first ``nfe`` of ``nfe + 1`` levels of EDM's grid: from ``sigma_max`` down, without ``sigma_min`` itself."""
    u = 1 - torch.arange(nfe, dtype=torch.float64) / nfe
    return [float(v) for v in karras(u, sigma_min, sigma_max, rho)]


class FewStep(nn.Module):
    """Samples in as many calls of a network as there are levels.

    With ``at`` it is the network itself at these levels instead: what methods train, called through this module, so
    that it may be wrapped or sharded.

    Args:
        net: a denoiser with ``shape`` and, if it is conditional, ``classes``.
        levels: falling noise levels of the calls; the first is that of pure noise.
        rule: what happens between two calls.
        scale: the strength of guidance that a ``guided`` network is asked for when it samples.
        sigma_min: lowest level of the grid that the levels are from; by default EDM's.
        sigma_max: highest level of the grid that the levels are from; by default the first of them.
    """

    def __init__(
        self,
        net: nn.Module,
        levels: Sequence[float],
        rule: Rule = "renoise",
        *,
        scale: float | None = None,
        sigma_min: float = 0.002,
        sigma_max: float | None = None,
    ) -> None:
        super().__init__()
        self.sigma_min = sigma_min
        self.sigma_max = levels[0] if sigma_max is None else sigma_max
        self.net = net
        self.levels = tuple(levels)
        self.rule = rule
        self.scale = scale

    levels_from = ""
    """Where the levels come from, in words; who builds a generator may set it."""

    def says(self) -> list[str]:
        """What the number of calls sets."""
        if self.nfe == 1:
            return [f"nfe 1: level {spoken(self.levels)}"]
        origin = f", {self.levels_from}" if self.levels_from else ""
        return [f"nfe {self.nfe}: levels {spoken(self.levels)} (rule {self.rule}{origin})"]

    @property
    def nfe(self) -> int:
        """Network evaluations of a sample."""
        return len(self.levels)

    @property
    def any_calls(self) -> bool:
        """Whether the network knows all levels, so that it can be called at others: not one of fixed steps."""
        return self.rule != "renoise" or float(getattr(self.net, "floor", 0.0)) > 0

    def in_calls(self, nfe: int) -> FewStep:
        """The same network, called another number of times."""
        levels = few_levels(nfe, self.sigma_min, self.sigma_max)
        grid = {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max}
        return FewStep(self.net, levels, self.rule, scale=self.scale, **grid).train(self.training)

    @property
    def sigma(self) -> float:
        """The level of pure noise."""
        return self.levels[0]

    @property
    def start(self) -> float:
        """What multiplies standard normal noise: the level of pure noise, unless the network says otherwise."""
        scale = getattr(self.net, "start_scale", None)
        return self.levels[0] if scale is None else float(scale(self.levels[0]))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return tuple(self.net.shape)  # type: ignore[arg-type]

    @property
    def draws(self) -> int:
        """How many independent draws of noise a sample takes."""
        return self.nfe if self.rule == "renoise" else 1

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Of the noise of one sample: ``[draws, *shape]``, or ``shape`` for a single draw."""
        return self.shape if self.draws == 1 else (self.draws, *self.shape)

    @property
    def classes(self) -> int | None:
        """How many classes it is conditioned on, if any."""
        return getattr(self.net, "classes", None)

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
        """Samples [B, *shape] from standard normal noise [B, *noise_shape].

        Args:
            noise: or, with ``at``, points [B, *shape] at these levels.
            label: class, int64 [B].
            at: levels [B] to call the network at, once.
            to: levels [B] that a jump goes to, with ``at``.
            scale: strength of guidance [B], with ``at``.
            steps: the estimate after so many calls, of which only the last passes a gradient (arXiv 2405.14867,
                section 4.5); by default after all.
        """
        if at is not None:
            return self._call(noise, at, label, to, scale)
        stop = self.nfe if steps is None else steps
        draws = noise[:, None] if self.draws == 1 else noise
        x = draws[:, 0] * self.start
        with torch.no_grad():
            for k in range(stop - 1):
                x = self._between(x, draws, label, k)
        return self._heads_for(x, label, stop - 1)

    def visits(self, noise: Tensor, label: Tensor | None = None) -> list[tuple[float, Tensor]]:
        """Every level on the way of a sample and the point there [B, *shape], the sample itself at level 0 last."""
        draws = noise[:, None] if self.draws == 1 else noise
        x = draws[:, 0] * self.start
        seen = [(self.levels[0], x)]
        for k in range(self.nfe - 1):
            x = self._between(x, draws, label, k)
            seen.append((self.levels[k + 1], x))
        return [*seen, (0.0, self._heads_for(x, label, self.nfe - 1))]

    def _between(self, x: Tensor, draws: Tensor, label: Tensor | None, k: int) -> Tensor:
        """From level ``k`` to the next."""
        now, then = (x.new_full((x.shape[0],), level) for level in self.levels[k : k + 2])
        if self.rule == "map":
            return jump(x, self._call(x, now, label, then), now, then)
        denoised = self._call(x, now, label)
        return renoise(denoised, then, draws[:, k + 1]) if self.rule == "renoise" else jump(x, denoised, now, then)

    def _heads_for(self, x: Tensor, label: Tensor | None, k: int) -> Tensor:
        now = x.new_full((x.shape[0],), self.levels[k])
        return self._call(x, now, label, torch.zeros_like(now) if self.rule == "map" else None)

    def _call(
        self, x: Tensor, at: Tensor, label: Tensor | None, to: Tensor | None = None, scale: Tensor | None = None
    ) -> Tensor:
        given = {"to": to} if to is not None else {}
        if scale is None and self.scale is not None:
            scale = x.new_full((x.shape[0],), self.scale)
        if scale is not None:
            given["scale"] = scale
        return self.net(x, at, label, **given)

    def example_inputs(self, batch_size: int) -> tuple[Tensor]:
        """Arguments for one call."""
        return (torch.zeros(batch_size, *self.noise_shape),)

    def save_pipeline(self, folder: Path) -> dict[str, Any]:
        """See :func:`limbeck.diffusion.delivery.save_pipeline`."""
        from limbeck.diffusion.delivery import save_pipeline

        return save_pipeline(self, folder)


class OneStep(FewStep):
    """The generator of one step: ``G(z) = D_net(sigma z, sigma)`` with ``sigma`` fixed.

    Args:
        net: a denoiser with ``shape`` and, if it is conditional, ``classes``.
        sigma: the level the network takes its input to be at: the start of the teacher's sampler.
    """

    def __init__(self, net: nn.Module, sigma: float) -> None:
        super().__init__(net, [sigma])
