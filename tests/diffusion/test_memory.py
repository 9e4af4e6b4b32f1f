"""The exact teacher of many points against the general mixture that it is one of."""

from __future__ import annotations

import pytest
import torch

from limbeck.diffusion.memory import Memory
from limbeck.diffusion.mixture import GaussianMixture


def both(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(30, 1, 4, 4, generator=generator, dtype=dtype)
    weights, labels = torch.rand(30, generator=generator, dtype=dtype) + 0.1, torch.arange(30) % 3
    return Memory(weights, means, 0.2, labels), GaussianMixture(weights, means, torch.full_like(means, 0.04), labels)


@pytest.mark.parametrize("label", [None, torch.tensor([0, 1, 2, -1, 0])])
@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_it_is_the_mixture(alpha, label):
    memory, mixture = both()
    sigma = torch.tensor([0.02, 0.5, 2.0, 20.0, 80.0], dtype=torch.float64)
    x = alpha * mixture.sample(5).samples + sigma[:, None, None, None] * torch.randn(5, 1, 4, 4, dtype=torch.float64)
    wanted = mixture.posterior_mean(x, alpha, sigma, label)
    torch.testing.assert_close(memory.posterior_mean(x, alpha, sigma, label), wanted)
    if alpha == 1:
        torch.testing.assert_close(memory(x, sigma, label), wanted)
        torch.testing.assert_close(memory.denoise(x, 0.5, label), mixture.denoise(x, 0.5, label))


def test_single_precision_does_at_low_levels():
    memory, mixture = both()
    x = mixture.sample(200).samples
    single = memory.float().denoise(x.float(), 0.02)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), mixture.denoise(x, 0.02), rtol=1e-4, atol=1e-4)


def test_its_derivatives_are_those_of_the_mixture():
    memory, mixture = both()
    x, direction = torch.randn(4, 1, 4, 4, dtype=torch.float64), torch.randn(4, 1, 4, 4, dtype=torch.float64)
    found, wanted = (torch.func.jvp(lambda x, m=m: m(x, 0.5), (x,), (direction,))[1] for m in (memory, mixture))
    torch.testing.assert_close(found, wanted)
