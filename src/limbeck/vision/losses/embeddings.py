"""Losses on the embeddings or maps of single samples that need more than their distance. One value for each sample."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.losses import same_rows, same_shape, wide


def nce(positive: Tensor, negatives: Tensor, *, rows: int) -> Tensor:
    """Noise-contrastive loss, [B] and [B, K] -> [B] (Gutmann and Hyvarinen 2010; Tian et al. 2020, eq. 16 to 18).

    ``-log h(positive) - sum_k log(1 - h(negative_k))`` with ``h = g / (g + K / N)``, the probability that a sample is
    the anchor's other view and no noise, where the noise is uniform over N rows.

    Args:
        positive: log g of the sample that belongs to the anchor.
        negatives: log g of K samples of the noise.
        rows: N.

    Raises:
        ValueError: unlike numbers of samples, or no negatives.
    """
    same_rows(positive=positive, negatives=negatives)
    if positive.dim() != 1 or negatives.dim() != 2 or negatives.shape[1] == 0:
        raise ValueError(f"positive {tuple(positive.shape)} and negatives {tuple(negatives.shape)}: [B] and [B, K > 0]")
    # h is the logistic function of log g - log(K / N), which never overflows.
    noise = math.log(negatives.shape[1] / rows)
    return F.softplus(noise - wide(positive)) + F.softplus(wide(negatives) - noise).sum(1)


def gaussian(mean: Tensor, variance: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood of a Gaussian, [B, C, ...], [C] and [B, C, ...] -> [B] (Ahn et al. 2019, eq. 5).

    Mean over channels and cells of ``1/2 ((target - mean)^2 / variance + log variance)``; the constant is left out.

    Args:
        mean: what the student predicts of the target.
        variance: of each channel, positive.
        target: the teacher's feature.

    Raises:
        ValueError: the shapes of mean and target differ, or there is not one variance for each channel.
    """
    same_shape(mean=mean, target=target)
    if variance.shape != mean.shape[1:2]:
        raise ValueError(
            f"mean {tuple(mean.shape)} and variance {tuple(variance.shape)}: one variance for each channel"
        )
    width = wide(variance).view(-1, *[1] * (mean.dim() - 2))
    squares = (wide(target) - wide(mean)).square()
    return 0.5 * (squares / width + torch.log(width)).flatten(1).mean(1)
