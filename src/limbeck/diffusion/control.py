"""Sliders: low-rank adapters that move all samples in one direction, and what they do on another network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck.diffusion.levels import log_normal
from limbeck.diffusion.losses import denoising_weight, squared_error
from limbeck.diffusion.paths import like
from limbeck.engine import noise
from limbeck.models.lora import Adapted

Loss = Callable[[Adapted, Tensor, int], Tensor]
"""Of a network with adapters, the numbers of the samples int64 [B], and the step: a value for each sample [B]."""


@dataclass(frozen=True)
class Effect:
    """What a slider did to the mean of the samples.

    Attributes:
        cosine: between that change and the direction that was asked for.
        share: of the way in that direction.
    """

    cosine: float
    share: float


def train_slider(network: nn.Module, loss: Loss, *, rank: int, steps: int, batch_size: int, lr: float) -> Adapted:
    """Adapters on a copy of the network that went down a loss; the network stays as it is."""
    whole = copy.deepcopy(network).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        slider = Adapted(whole, rank, rank)
    learning = [p for p in slider.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learning, lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    device = learning[0].device
    with torch.enable_grad():
        for step in range(steps):
            ids = torch.arange(step * batch_size, (step + 1) * batch_size, device=device)
            optimizer.zero_grad()
            loss(slider, ids, step).mean().backward()
            optimizer.step()
            schedule.step()
    return slider.eval()


def denoising_loss(points: Tensor, shift: Tensor, sigma_data: float, seed: int) -> Loss:
    """A base's slider learns to denoise samples that were moved: the error of ``x + shift`` under EDM's weights.

    Args:
        points: samples of the base, [N, *shape].
        shift: the direction, [*shape].
        sigma_data: standard deviation of the samples.
        seed: of levels and noise.
    """

    def loss(slider: Adapted, ids: Tensor, step: int) -> Tensor:
        x0 = points[ids % len(points)] + shift
        sigma = log_normal(noise.normal(ids, (1,), (seed, "slider level")).squeeze(1), 0.0, 1.6)
        x = x0 + like(sigma, x0) * noise.normal(ids, tuple(x0.shape[1:]), (seed, "slider noise"))
        return denoising_weight(sigma, "edm", sigma_data) * squared_error(slider(x, sigma), x0)

    return loss


def moving_loss(network: nn.Module, level: float, shift: Tensor, seed: int) -> Loss:
    """A one-step generator's slider learns to move what the generator makes of the same noise.

    Args:
        network: of the generator.
        level: of pure noise.
        shift: the direction, [*shape].
        seed: of the noise.
    """

    def loss(slider: Adapted, ids: Tensor, step: int) -> Tensor:
        x = level * noise.normal(ids, tuple(shift.shape), (seed, "slider start"))
        at = torch.full((len(x),), level, device=x.device)
        with torch.no_grad():
            target = network(x, at) + shift
        return squared_error(slider(x, at), target)

    return loss


def effect(before: Tensor, after: Tensor, shift: Tensor) -> Effect:
    """The change of the mean from samples [N, *shape] to others of the same noise, beside a direction [*shape]."""
    moved, asked = (after - before).double().mean(0).flatten(), shift.double().flatten()
    along = float(moved @ asked)
    length = float(moved.norm() * asked.norm())
    return Effect(along / length if length else 0.0, along / float(asked @ asked))
