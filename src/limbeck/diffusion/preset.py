"""A sampler of a fixed number of calls whose settings are part of the model: levels, solver and guidance of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from limbeck.diffusion.guidance import Guided
from limbeck.diffusion.solvers import Solution, dpmpp_2m, dpmpp_3m, euler

SOLVERS: dict[int, Callable[..., Solution]] = {1: euler, 2: dpmpp_2m, 3: dpmpp_3m}
"""Solvers of one call a step, by order."""


class Preset(nn.Module):
    """Samples of a denoiser by a multistep solver through given levels; the last call's estimate is the sample.

    The settings are buffers, so that they are stored with the network and a method may choose them. Nothing is drawn
    but the start: a preset is a map from noise to samples.

    Args:
        net: a denoiser with ``shape`` and, if it is conditional, ``classes``.
        levels: falling noise levels of the calls; the first scales the start.
        order: of the solver, 1 to 3 (:mod:`limbeck.diffusion.solvers`); 1 is DDIM.
        guidance: scale of guidance at every call, of a conditional network.
        sigma_min: lowest level of the grid that the levels are from.
        sigma_max: level of pure noise.
    """

    levels: Tensor
    order: Tensor
    scales: Tensor

    def __init__(
        self,
        net: nn.Module,
        levels: Sequence[float],
        order: int = 2,
        guidance: float = 1.0,
        *,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
    ) -> None:
        super().__init__()
        self.net = net
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.float32))
        self.register_buffer("order", torch.tensor(order))
        self.register_buffer("scales", torch.full((len(levels),), guidance))

    @property
    def nfe(self) -> int:
        """Network evaluations of a sample; a guided call is two."""
        guided = 0 if self.classes is None else int((self.scales != 1).sum())
        return len(self.levels) + guided

    @property
    def sigma(self) -> float:
        """The level of pure noise."""
        return self.sigma_max

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return tuple(self.net.shape)  # type: ignore[arg-type]

    @property
    def classes(self) -> int | None:
        """How many classes it is conditioned on, if any."""
        return getattr(self.net, "classes", None)

    def forward(self, noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Samples [B, *shape] from standard normal noise [B, *shape] and class, int64 [B]."""
        grid = torch.cat([self.levels, torch.zeros_like(self.levels[:1])]).double()
        scales = iter(self.scales.tolist())

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            scale = next(scales)
            if label is None:
                return self.net(x, sigma)
            return self.net(x, sigma, label) if scale == 1 else Guided(self.net, scale)(x, sigma, label)

        return SOLVERS[int(self.order)](denoise, noise * float(self.levels[0]), grid).samples

    def example_inputs(self, batch_size: int) -> tuple[Tensor]:
        """Arguments for one call."""
        return (torch.zeros(batch_size, *self.shape),)
