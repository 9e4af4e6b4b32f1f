"""Samplers against the schedulers of diffusers: the same model on the same levels, step for step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from limbeck.diffusion import mixture, samplers

diffusers = pytest.importorskip("diffusers")

LAW = mixture.ring(8, 1.0, 0.2)
STEPS = 12
SHARED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
NOISE = torch.randn(STEPS + 1, 32, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def denoised(x: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
    return LAW.denoise(x, x.new_full((len(x),), float(sigma)))


def solved(scheduler: Any, preserving: bool, **step: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the scheduler ends, and its levels; ``preserving`` ones scale the samples to unit variance."""
    sigmas = scheduler.sigmas.double()
    x = NOISE[0] * sigmas[0]
    scale = (1 + sigmas[0] ** 2).sqrt() if preserving else 1.0
    x = x / scale
    for k, t in enumerate(scheduler.timesteps):
        index = 0 if scheduler.step_index is None else scheduler.step_index
        sigma = sigmas[index]
        scale = (1 + sigma**2).sqrt() if preserving else 1.0
        eps = (x * scale - denoised(x * scale, sigma)) / sigma
        given = {name: noise[k] for name, noise in step.items()}
        x = scheduler.step(eps, t, x, **given).prev_sample.double()
    last = sigmas[-1]
    return x * ((1 + last**2).sqrt() if preserving else 1.0), sigmas


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    # Their levels and steps are single precision.
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def dpm(**config: Any) -> Any:
    made = diffusers.DPMSolverMultistepScheduler(**SHARED, use_karras_sigmas=True, **config)
    made.set_timesteps(STEPS)
    return made


def test_euler():
    scheduler = diffusers.EulerDiscreteScheduler(**SHARED, use_karras_sigmas=True)
    scheduler.set_timesteps(STEPS)
    end, sigmas = solved(scheduler, preserving=False)
    close(samplers.euler(LAW.denoise, NOISE[0] * sigmas[0], sigmas).samples, end)


def test_heun():
    scheduler = diffusers.HeunDiscreteScheduler(**SHARED, use_karras_sigmas=True)
    scheduler.set_timesteps(STEPS)
    end, sigmas = solved(scheduler, preserving=False)
    grid = torch.cat([sigmas[:1], sigmas[1:-1:2], sigmas[-1:]])  # theirs has every level between twice
    assert len(grid) == STEPS + 1
    close(samplers.heun(LAW.denoise, NOISE[0] * grid[0], grid).samples, end)


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_dpm_solver_of_several_steps(order, lower):
    end, sigmas = solved(dpm(solver_order=order, lower_order_final=lower), preserving=True)
    solver = {
        1: samplers.euler,
        2: lambda *a: samplers.dpmpp_2m(*a, lower_order_final=lower),
        3: lambda *a: samplers.dpmpp_3m(*a, lower_order_final=lower, published=True),
    }[order]
    close(solver(LAW.denoise, NOISE[0] * sigmas[0], sigmas).samples, end)


@pytest.mark.parametrize("order", [1, 2])
def test_dpm_solver_with_noise(order):
    scheduler = dpm(solver_order=order, algorithm_type="sde-dpmsolver++")
    end, sigmas = solved(scheduler, preserving=True, variance_noise=NOISE[1:])
    solver = samplers.sde_dpmpp_1 if order == 1 else samplers.sde_dpmpp_2m
    close(solver(LAW.denoise, NOISE[0] * sigmas[0], sigmas, noise=NOISE[1:]).samples, end)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim(eta):
    scheduler = diffusers.DDIMScheduler(**SHARED, clip_sample=False)
    scheduler.set_timesteps(STEPS)
    kept = scheduler.alphas_cumprod.double()
    levels = ((1 - kept) / kept).sqrt()[scheduler.timesteps]
    x = NOISE[0] * levels[0] / (1 + levels[0] ** 2).sqrt()
    for k, t in enumerate(scheduler.timesteps):
        scale = (1 + levels[k] ** 2).sqrt()
        eps = (x * scale - denoised(x * scale, levels[k])) / levels[k]
        noise = NOISE[k + 1] if eta > 0 else None
        x = scheduler.step(eps, t, x, eta=eta, variance_noise=noise).prev_sample
    sigmas = torch.cat([levels, torch.zeros(1)])
    close(samplers.ddim(LAW.denoise, NOISE[0] * levels[0], sigmas, noise=NOISE[1:], eta=eta).samples, x)
