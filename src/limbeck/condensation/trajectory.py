"""Matching a stretch of an expert's training: the distance, and its gradient in constant memory."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.condensation.unroll import StepLoss, gradient


def distance(end: Tensor, target: Tensor, begin: Tensor) -> Tensor:
    """``|end - target|^2 / |begin - target|^2`` of weights [P], a scalar: how much of the expert's way is left.

    Cazenavette et al., CVPR 2022 (arXiv 2203.11932), equation 2.
    """
    return (end - target).square().sum() / (begin - target).square().sum()


def constant_memory(
    loss: StepLoss,
    begin: Tensor,
    target: Tensor,
    rate: Tensor,
    steps: int,
    inputs: tuple[Tensor, ...],
    *,
    momentum: float = 0.0,
) -> tuple[Tensor, list[Tensor | None], Tensor]:
    """The distance after a descent, and its gradient with the graph of one step at a time (TESLA).

    Cui et al., ICML 2023 (arXiv 2211.10586), section 3.1. With ``w_N = w_0 - r sum_i c_i g_i`` the gradient is
    ``sum_i d/ds < 2 r c_i (target - w_N) / D, g_i(s) >`` and ``-2 < w_N - target, sum_i c_i g_i > / D`` in the rate,
    where D is the distance's denominator and ``c_i = 1`` without momentum. Each g_i is taken at weights that count as
    constant: what they owe to earlier steps is left out, so that it is exact for one step alone.

    Args:
        loss: as for :func:`limbeck.condensation.unroll.unroll`.
        begin: first weights, [P].
        target: the expert's, [P].
        rate: learning rate, a scalar.
        steps: N.
        inputs: what the loss depends on.
        momentum: m; a step's gradient then counts ``c_i = (1 - m^(N - i)) / (1 - m)`` times, i from 0.

    Returns:
        the distance, its gradient by each of the inputs (None for whole numbers), and by the rate.
    """
    begin, target, rate = begin.detach(), target.detach(), rate.detach()
    weights, velocity, moved = begin, torch.zeros_like(begin), torch.zeros_like(begin)
    for k in range(steps):
        velocity = momentum * velocity + gradient(loss, weights, k, inputs)
        moved = moved + velocity
        weights = weights - rate * velocity
    scale = 2 / (begin - target).square().sum()
    left = scale * (weights - target)
    leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]
    learns = [x for x in leaves if x.requires_grad]
    found = [torch.zeros_like(x) for x in learns]
    at, velocity = begin, torch.zeros_like(begin)
    for k in range(steps):
        counts = float(steps - k) if momentum == 1 else (1 - momentum ** (steps - k)) / (1 - momentum)
        slope, parts = _through(loss, at, k, leaves, learns, -counts * rate * left)
        found = [a + b for a, b in zip(found, parts, strict=True)]
        velocity = momentum * velocity + slope
        at = at - rate * velocity
    each = iter(found)
    by_rate = -(left @ moved)
    return distance(weights, target, begin), [next(each) if x.requires_grad else None for x in leaves], by_rate


def _through(
    loss: StepLoss, weights: Tensor, k: int, inputs: list[Tensor], learns: list[Tensor], along: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """A step's gradient in the weights, and the gradient by what learns of its product with ``along``."""
    with torch.enable_grad():
        leaf = weights.detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss(leaf, k, *inputs), leaf, create_graph=True)
        parts = torch.autograd.grad(slope @ along, learns)
    return slope.detach(), list(parts)
