"""A flow map with one number to learn, for tests of methods that learn maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from toolkit.diffusion import MEAN, STD, ExactFlow


class BentFlow(ExactFlow):
    """:class:`ExactFlow` with its stretch to a ``power``: right over no way at all, and elsewhere for a power of 1."""

    def __init__(self, power: float = 1.5, floor: float = 0.0) -> None:
        super().__init__(floor)
        self.gain.requires_grad_(False)
        self.power = nn.Parameter(torch.tensor(power))

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None, *, to: Tensor | None = None) -> Tensor:
        """As :class:`ExactFlow`'s."""
        there = torch.full_like(sigma, self.floor) if to is None else to
        ratio = torch.sqrt((STD**2 + there**2) / (STD**2 + sigma**2))[:, None] ** self.power
        arrived = MEAN + ratio * (x - MEAN)
        if to is None:
            return arrived
        share = (there / sigma)[:, None]
        # Over no way, the point that the map's own slope heads for: sigma dX/dto = x - h.
        denoised = x - self.power * (sigma**2 / (STD**2 + sigma**2))[:, None] * (x - MEAN)
        same = share > 1 - 1e-5
        jump = (arrived - share * x) / torch.where(same, torch.ones_like(share), 1 - share)
        return torch.where(same, denoised, jump)
