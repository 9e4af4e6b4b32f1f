"""Losses on embeddings and maps against definitions written out by hand, in float64."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.vision.losses.embeddings import gaussian, nce


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_contrast_is_the_papers() -> None:
    positive, negatives, n = values(3), values(3, 5, seed=1), 40
    wanted = []
    for p, row in zip(positive.tolist(), negatives.tolist(), strict=True):
        h = [math.exp(u) / (math.exp(u) + 5 / n) for u in (p, *row)]
        wanted.append(-math.log(h[0]) - sum(math.log(1 - x) for x in h[1:]))
    torch.testing.assert_close(nce(positive, negatives, rows=n), torch.tensor(wanted, dtype=torch.float64))


def test_the_contrast_is_least_where_g_is_the_probability() -> None:
    """In expectation over partners from p and noise from the uniform distribution over n rows."""
    p, n = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), 3
    log_g = p.log().clone().requires_grad_()
    pairs = [(i, j) for i in range(n) for j in range(n)]
    loss = torch.stack([p[i] / n * nce(log_g[i, None], log_g[j].view(1, 1), rows=n)[0] for i, j in pairs]).sum()
    (gradient,) = torch.autograd.grad(loss, log_g)
    torch.testing.assert_close(gradient, torch.zeros(n, dtype=torch.float64), atol=1e-12, rtol=0)


def test_the_contrast_is_stable_and_its_gradient_right() -> None:
    given = [values(3).requires_grad_(), values(3, 5, seed=1).requires_grad_()]
    assert torch.autograd.gradcheck(lambda a, b: nce(a, b, rows=9), given)
    sure = [torch.tensor([-300.0], requires_grad=True), torch.tensor([[300.0]], requires_grad=True)]
    value = nce(*sure, rows=1)
    value.sum().backward()
    assert value.item() == pytest.approx(600) and all(x.grad.isfinite().all() for x in sure)


def test_the_contrast_needs_negatives_for_each_sample() -> None:
    with pytest.raises(ValueError, match="as many samples"):
        nce(values(3), values(1, 5), rows=9)
    with pytest.raises(ValueError, match="K > 0"):
        nce(values(3), values(3, 0), rows=9)


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 2, 2)])
def test_the_likelihood_is_that_of_independent_gaussians(shape: tuple[int, ...]) -> None:
    mean, target, variance = values(*shape), values(*shape, seed=1), values(4, seed=2).exp()
    scale = variance.view(4, *[1] * (len(shape) - 2)).sqrt().expand(shape[1:])
    law = torch.distributions.Normal(mean, scale)
    wanted = -law.log_prob(target).flatten(1).mean(1) - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(gaussian(mean, variance, target), wanted)
    given = (mean.requires_grad_(), variance.requires_grad_())
    assert torch.autograd.gradcheck(lambda m, v: gaussian(m, v, target), given)


def test_the_likelihood_refuses_unlike_shapes() -> None:
    with pytest.raises(ValueError, match="same shape"):
        gaussian(values(3, 4), values(4), values(1, 4))
    with pytest.raises(ValueError, match="one variance for each channel"):
        gaussian(values(3, 4), values(1), values(3, 4))
