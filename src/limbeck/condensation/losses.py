"""Losses of data-set condensation: pure functions on features."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import one_hot


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
