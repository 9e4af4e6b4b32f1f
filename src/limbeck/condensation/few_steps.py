"""Learning a set in a few plain steps, with weights to start from that may be known beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.condensation.networks import fresh_network
from limbeck.condensation.rates import lesson
from limbeck.condensation.unroll import Flat, unroll
from limbeck.registry import Block


def share(count: int, steps: int, number: int) -> Tensor:
    """Rows of a step's share of ``count`` images, which are sorted by class: every ``steps``-th, int64."""
    return torch.arange(number % steps, count, steps)


def known_network(block: Block, offers: Mapping[str, Any], seed: int, device: torch.device | None = None) -> nn.Module:
    """The network that a run with this seed starts from where its first weights are fixed."""
    return fresh_network(block, offers, (seed, "known network"), device)


def learnt(
    flat: Flat,
    start: Tensor,
    images: Tensor,
    labels: Tensor,
    rate: Tensor,
    *,
    steps: int,
    epochs: int,
    regression: bool = False,
    checkpoint: bool = False,
) -> Tensor:
    """Weights [P] after ``epochs`` passes of ``steps`` plain steps over the images, each step on its share of them.

    Differentiable in images, labels where they are numbers, and rate (Wang et al. 2018, arXiv 1811.10959, section 3.4).

    Args:
        flat: the network.
        start: its first weights, [P].
        images: [N, ...], sorted by class.
        labels: int64 [N] or float [N, K].
        rate: a scalar.
        steps: shares that the images are dealt into.
        epochs: passes.
        regression: by squared error.
        checkpoint: as for :func:`limbeck.condensation.unroll.unroll`.
    """

    def loss(weights: Tensor, step: int, x: Tensor, y: Tensor) -> Tensor:
        rows = share(len(x), steps, step)
        return lesson(flat(weights, x[rows]), y[rows], regression=regression)

    return unroll(loss, start, rate, steps * epochs, (images, labels), checkpoint=checkpoint)[-1]
