"""Losses of data-set condensation: pure functions on features and gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

TINY = 1e-6


def class_means(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Mean feature of each class, [B, D] and int64 [B] -> [classes, D]; zero for a class that is absent.

    One matrix product, so its gradient does not depend on an order of atomic additions.

    Raises:
        ValueError: the features are not [B, D] with one label each.
    """
    if features.dim() != 2 or labels.shape != features.shape[:1]:
        raise ValueError(f"features must be [B, D] and labels [B]; got {tuple(features.shape)}, {tuple(labels.shape)}")
    member = one_hot(labels, classes).to(features.dtype)
    return (member / member.sum(0).clamp(min=1)).T @ features


def distribution_matching(
    real: Tensor, real_labels: Tensor, synthetic: Tensor, synthetic_labels: Tensor, classes: int
) -> Tensor:
    """``|| mean phi(real of class c) - mean phi(synthetic of class c) ||^2`` for each class, [classes].

    Zhao and Bilen, WACV 2023 (arXiv 2110.04181), equation 4 for one network; the paper sums over the classes.

    Args:
        real: features of real images, [B, D].
        real_labels: int64 [B].
        synthetic: features of synthetic images, [M, D].
        synthetic_labels: int64 [M].
        classes: number of classes.

    Raises:
        ValueError: the feature widths differ, or a batch has not one label per row.
    """
    if real.shape[1:] != synthetic.shape[1:]:
        raise ValueError(f"real {tuple(real.shape)} and synthetic {tuple(synthetic.shape)} features differ in width")
    gap = class_means(real, real_labels, classes) - class_means(synthetic, synthetic_labels, classes)
    return gap.square().sum(1)


def gradient_distance(
    real: Sequence[Tensor], synthetic: Sequence[Tensor], distance: Literal["rows", "cosine", "mse", "l1"] = "rows"
) -> Tensor:
    """How far two gradients of the same weights are from each other, a scalar.

    Zhao, Mopuri and Bilen, ICLR 2021 (arXiv 2006.05929), equation 10: ``sum_l sum_i (1 - cos)`` over the layers l and
    the output units i, of whose weights a gradient has one row each. Gradients of one dimension (biases, norms) do not
    count.

    Args:
        real, synthetic: of each parameter, in the same order.
        distance: ``rows`` is the paper's; ``cosine`` takes all matrices as one vector, ``mse`` is the squared distance
            of these vectors and ``l1`` the sum of absolute differences.

    Raises:
        ValueError: the gradients are not of the same parameters.
    """
    if [g.shape for g in real] != [g.shape for g in synthetic]:
        raise ValueError("the gradients are of unlike parameters")
    pairs = [(a.flatten(1), b.flatten(1)) for a, b in zip(real, synthetic, strict=True) if a.dim() > 1]
    if distance == "rows":
        return torch.stack([(1 - cosine(a, b)).sum() for a, b in pairs]).sum()
    a, b = (torch.cat([pair[side].flatten() for pair in pairs]) for side in (0, 1))
    if distance == "cosine":
        return 1 - cosine(a[None], b[None])[0]
    return (a - b).abs().sum() if distance == "l1" else (a - b).square().sum()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Of the rows of two matrices [N, D] -> [N]; 0 for a row of zeros, as the published code has it (1e-6)."""
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + TINY)


def attention(maps: Tensor, power: float = 1.0) -> Tensor:
    """``sum_channels |F|^p`` of each image as a vector of length 1: [B, C, H, W] -> [B, H W].

    Sajedi et al., ICCV 2023 (arXiv 2310.00093), equation 2. An image without any activation has a vector of zeros.

    Raises:
        ValueError: the maps are not [B, C, H, W].
    """
    if maps.dim() != 4:
        raise ValueError(f"attention is of maps [B, C, H, W], not {tuple(maps.shape)}")
    return normalize(maps.abs().pow(power).sum(1).flatten(1), dim=1)
