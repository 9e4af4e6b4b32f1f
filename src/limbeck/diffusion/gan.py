"""A discriminator on the features of a denoising network, at every noise level: the diffusion-GAN of DMD2."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.features import Taps, submodule
from limbeck.errors import UserError

HEAD = "discriminator"
"""The role of the head."""


class Head(nn.Module):
    """Features [B, D], or maps [B, C, H, W] by their mean, to the logit [B] of *real*.

    At its optimum the logit is the logarithm of the ratio of the densities of real and generated noised samples.

    Args:
        inputs: features.
        width: of the hidden layer.
    """

    def __init__(self, inputs: int, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, features: Tensor) -> Tensor:
        """The logit, [B]."""
        pooled = features.flatten(2).mean(dim=2) if features.dim() > 2 else features
        return self.layers(pooled).squeeze(1)


class Features:
    """Reads what a denoising network sees inside, at one module.

    Args:
        trunk: the network, as it was built.
        path: of the module; by default the network's own choice (``features_at``).

    Raises:
        UserError: the network has no such place.
    """

    def __init__(self, trunk: nn.Module, path: str | None = None) -> None:
        chosen = path or getattr(trunk, "features_at", None)
        if chosen is None:
            raise UserError(f"{type(trunk).__name__} does not say where its features are: name a module of it")
        self.trunk = trunk
        self.place = submodule(trunk, chosen)

    def __call__(self, call: Any, *args: Any, **given: Any) -> Tensor:
        """The features while ``call(*args, **given)`` runs the network (as the loop wrapped it)."""
        with Taps(self.place, [""]) as taps:  # the place itself: a step does not search the network for it
            call(*args, **given)
            return taps.pop()[""]

    def width(self, shape: tuple[int, ...]) -> int:
        """How many features there are, for samples of a shape."""
        some = next(self.trunk.parameters(), torch.zeros(()))
        x = torch.zeros(1, *shape, device=some.device, dtype=some.dtype)
        with torch.no_grad():
            return int(self(self.trunk, x, x.new_ones(1)).shape[1])


def real_is_real(logit: Tensor) -> Tensor:
    """``softplus(-logit)`` [B]: the loss of taking a sample for generated where it ought to be real."""
    return F.softplus(-logit)


def fake_is_fake(logit: Tensor) -> Tensor:
    """``softplus(logit)`` [B]: the loss of taking a sample for real where it is generated."""
    return F.softplus(logit)
