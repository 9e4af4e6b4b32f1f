"""Self-distillation of kernel ridge regression in closed form (Borup and Andersen 2021, arXiv 2102.13088).

Step t fits ``a y + (1 - a) yhat_{t-1}`` with the same kernel and ridge, from ``yhat_0 = y``. On the training inputs it
is ``yhat_t = A (a y + (1 - a) yhat_{t-1})`` with ``A = K (K + ridge I)^-1``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def fit(kernel: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """Coefficients ``(K + ridge I)^-1 targets``, [N, N] and [N, ...] -> [N, ...]; ``kernel @ fit`` predicts.

    Raises:
        ValueError: the kernel is not square, or has other rows than the targets.
    """
    if kernel.shape != (len(targets), len(targets)):
        raise ValueError(
            f"kernel {tuple(kernel.shape)} and targets {tuple(targets.shape)}: must be [N, N] and [N, ...]"
        )
    whole = kernel + ridge * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    rows = targets.reshape(len(targets), -1)
    return torch.linalg.solve(whole, rows).view_as(targets)


def self_distilled(kernel: Tensor, targets: Tensor, ridge: float, label_weights: Sequence[float]) -> list[Tensor]:
    """Coefficients of each step of self-distillation (section 3).

    Args:
        kernel: [N, N], of the training inputs.
        targets: y, [N, ...].
        ridge: lambda, the same at every step.
        label_weights: a of each step, in order. With ``a = 1`` every step is the same as the first.
    """
    found: list[Tensor] = []
    previous = targets
    for a in label_weights:
        found.append(fit(kernel, a * targets + (1 - a) * previous, ridge))
        previous = kernel @ found[-1]
    return found


def limit(kernel: Tensor, targets: Tensor, ridge: float, label_weight: float) -> Tensor:
    """Predictions after infinitely many steps: ordinary ridge regression with ``ridge / label_weight`` (theorem 3.6).

    Without labels (0) they are zero: repeated self-distillation forgets everything.
    """
    if label_weight == 0:
        return torch.zeros_like(targets)
    return kernel @ fit(kernel, targets, ridge / label_weight)


def best_label_weight(wanted: Tensor, of_labels: Tensor, of_previous: Tensor) -> Tensor:
    """The label weight of a step that brings its predictions closest to what is wanted, a scalar (section 3.4).

    Predictions are affine in the weight, ``(1 - a) of_previous + a of_labels``: exactly so for ridge regression, about
    so for networks. So two fits, of the labels (``a = 1``) and of the previous predictions (``a = 0``), tell it.

    Args:
        wanted: validation targets, [N, ...].
        of_labels: validation predictions of the model fitted to the labels.
        of_previous: those of the model fitted to the previous step's predictions.

    Raises:
        ValueError: the shapes differ.
    """
    if not wanted.shape == of_labels.shape == of_previous.shape:
        shapes = f"{tuple(wanted.shape)}, {tuple(of_labels.shape)} and {tuple(of_previous.shape)}"
        raise ValueError(f"targets and predictions must have the same shape: {shapes}")
    along = of_labels - of_previous
    return ((wanted - of_previous) * along).sum() / along.square().sum()


def rbf(a: Tensor, b: Tensor, gamma: float) -> Tensor:
    """``exp(-gamma |a - b|^2)`` of all pairs, [N, D] and [M, D] -> [N, M]."""
    return (-gamma * torch.cdist(a, b).square()).exp()
