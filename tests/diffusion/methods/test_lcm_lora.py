"""LCM-LoRA: adapters learnt on one base speed up another that was fine-tuned from it (arXiv 2311.05556, section 3)."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from limbeck.diffusion.few_step import FewStep, few_levels
from limbeck.diffusion.levels import log_normal
from limbeck.diffusion.mixture import GaussianMixture, ring
from limbeck.diffusion.networks import inherit
from limbeck.engine import noise
from limbeck.metrics.samples import energy_distance
from limbeck.registry import Block, build
from toolkit.diffusion import descend, made

pytestmark = pytest.mark.slow
NET = {"width": 64, "depth": 3, "sigma_data": 2.0, "classes": 2, "activation": "relu"}


def turned(law: GaussianMixture, angle: float, shift: float) -> GaussianMixture:
    """The law that the second base is fine-tuned to: modes turned about the origin and moved."""
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return GaussianMixture(law.weights, law.means @ turn + torch.tensor([shift, 0.0]), law.variances, law.labels)


def fit(net: nn.Module, law: GaussianMixture, steps: int, lr: float) -> nn.Module:
    """Train a denoiser as EDM is, one class in ten forgotten."""
    optimizer = torch.optim.Adam(net.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    ids = torch.arange(256)
    for k in range(steps):
        drawn = law.draw(ids, ("fit", k))
        label = torch.where(noise.uniform(ids, (), ("forgotten", k)) < 0.1, -1, law.labels[drawn.component])
        sigma = log_normal(noise.normal(ids, (), ("level", k)), -0.4, 1.6).clamp(0.02, 20)
        x = drawn.samples + sigma[:, None] * noise.normal(ids, (2,), ("noise", k))
        weight = (sigma**2 + 4) / (2 * sigma) ** 2
        optimizer.zero_grad()
        (weight[:, None] * (net(x, sigma, label) - drawn.samples) ** 2).mean().backward()
        optimizer.step()
        schedule.step()
    return net


def generator(net: nn.Module, nfe: int) -> FewStep:
    return FewStep(net, few_levels(nfe, 0.02, 20.0), sigma_min=0.02, sigma_max=20.0)


@torch.no_grad()
def distance(net: nn.Module, law: GaussianMixture, nfe: int) -> float:
    """Of samples of a few calls from the law."""
    made, ids = generator(net, nfe), torch.arange(2000)
    samples = made(noise.normal(ids, made.noise_shape, "start"), ids % 2)
    return energy_distance(samples, law.draw(ids, "truth").samples)


def test_adapters_of_one_base_serve_another_that_was_fine_tuned_from_it():
    torch.manual_seed(0)
    first = ring(8, 2.5, 0.25, 2).float()
    second = turned(first, 0.2, 0.4)
    base = fit(build("model", Block("mlp_denoiser", NET)), first, 1000, 3e-3)
    tuned = fit(copy.deepcopy(base), second, 300, 1e-3)
    adapted = build("model", Block("lora", {"base": Block("mlp_denoiser", {**NET, "floor": 0.02}), "rank": 16}))
    strength = {"scale_min": 1.0, "scale_max": 1.0, "told": False}
    method = made("lcm", base, generator(adapted, 1), levels=60, skip=4, pairs=2000, keep=None, **strength)
    descend(method, 600, lr=3e-3)
    alone = {nfe: distance(adapted, second, nfe) for nfe in (1, 2, 4)}
    assert inherit(adapted, tuned)  # the other base under the same adapters
    for nfe, without in alone.items():
        together, plain = distance(adapted, second, nfe), distance(tuned, second, nfe)
        assert together < plain / 4  # faster than the base by itself
        assert together < without  # and of its law, not of the one that the adapters saw
